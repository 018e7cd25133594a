"""One HTTP request, with the token that the proxy gives to whoever wrote."""

import contextlib
import http.client
import socket
import urllib.parse


class Unanswered(Exception):
    """No whole answer came: the request may or may not have happened."""


class Answer:
    """Status, body and the token (`Litefs-Txid`) of an answer."""

    def __init__(self, status, body, headers):
        self.status, self.body = status, body
        self.token = headers.get("Litefs-Txid")
        self.outcome = headers.get("Litefs-Outcome")


CONNECT_SECONDS_MAX = 1.0  # an address that is gone does not refuse, it is silent


def request(url, method="GET", form=None, token=None, timeout=15.0):
    """Sends a request on a connection of its own."""
    parts = urllib.parse.urlsplit(url)
    headers = {"Accept": "application/json"}
    body = None
    if form is not None:
        body = urllib.parse.urlencode(form)
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    if token:
        headers["Litefs-Txid"] = token
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=min(timeout, CONNECT_SECONDS_MAX))
    try:
        connection.connect()
        connection.sock.settimeout(timeout)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return Answer(response.status, response.read(), response.headers)
    except (OSError, socket.timeout, http.client.HTTPException) as error:
        raise Unanswered(f"{method} {url}: {error!r}") from error
    finally:
        connection.close()


class SlowPost:
    """A form whose second half is still to come."""

    def __init__(self, url, form):
        parts = urllib.parse.urlsplit(url)
        body = urllib.parse.urlencode(form).encode()
        self._rest = body[len(body) // 2:]
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=CONNECT_SECONDS_MAX)
        self._connection.connect()
        self._connection.sock.settimeout(30)
        self._connection.putrequest("POST", parts.path)
        self._connection.putheader("Accept", "application/json")
        self._connection.putheader("Content-Type", "application/x-www-form-urlencoded")
        self._connection.putheader("Content-Length", str(len(body)))
        self._connection.endheaders(body[:len(body) // 2])

    def send_rest(self):
        """The second half."""
        with contextlib.suppress(OSError):  # then there is no answer
            self._connection.send(self._rest)

    def answer(self):
        """The answer, `None` when there is no whole one."""
        try:
            response = self._connection.getresponse()
            return Answer(response.status, response.read(), response.headers)
        except (OSError, http.client.HTTPException):
            return None
        finally:
            self._connection.close()


def refuses(url):
    """Whether nothing listens there any more."""
    parts = urllib.parse.urlsplit(url)
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=CONNECT_SECONDS_MAX).close()
    except OSError:
        return True
    return False
