"""One HTTP request, with the token that the proxy gives to whoever wrote."""

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
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    try:
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return Answer(response.status, response.read(), response.headers)
    except (OSError, socket.timeout, http.client.HTTPException) as error:
        raise Unanswered(f"{method} {url}: {error!r}") from error
    finally:
        connection.close()
