"""The guestbook, with routes on which a proxy shows what it does. Environment as for the guestbook.

Every answer names the node in `App-Node`. `/raw/…`, `/live…` and `/echo` are what their configured globs make of them.
"""

import base64
import gzip
import hashlib
import json
import os
import signal
import socket
import sqlite3
import struct
import sys
import threading
import urllib.parse
from http.server import ThreadingHTTPServer

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "demo"))
import app  # noqa: E402

WEBSOCKET_KEY = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
released = threading.Event()
gone = threading.Event()


class Application(app.Handler):
    """Routes by path; what is not here is the guestbook's."""

    def send_response(self, *arguments):
        super().send_response(*arguments)
        self.send_header("App-Node", self.node)

    def get(self, url):
        query = dict(urllib.parse.parse_qsl(url.query))
        route = {
            "/echo": self.echo, "/raw/echo": self.echo, "/always/echo": self.echo, "/visit": self.visit, "/gzip": self.gzip,
            "/events": self.events, "/release": self.release, "/die": self.die, "/unchanged": self.unchanged,
            "/nothing": self.nothing, "/until-gone": self.until_gone, "/gone": self.was_gone, "/hints": self.hints,
            "/slow": self.slow, "/replay": self.replay, "/live": self.upgrade, "/chat": self.upgrade, "/shout": self.shout,
        }.get(url.path)
        return route(query) if route else super().get(url)

    def post(self, url):
        route = {"/upload": self.upload, "/raw/echo": self.echo, "/until-fenced": self.until_fenced,
                 "/raw/replay": self.replay, "/echo": self.echo, "/job": self.job}.get(url.path)
        return route(dict(urllib.parse.parse_qsl(url.query))) if route else super().post(url)

    def body(self):
        """The request's body in pieces, whatever its framing."""
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            piece = self.rfile.read(min(left, 1 << 16))
            if not piece:
                raise ConnectionError("the body broke off")
            left -= len(piece)
            yield piece

    def json(self, value):
        self.send(200, json.dumps(value), "application/json")

    def echo(self, _query):
        """What the application sees of the request."""
        body = b"".join(self.body()).decode("utf-8", "replace")
        fields = [[name.lower(), value] for name, value in self.headers.items()]
        self.json({"method": self.command, "target": self.path, "headers": fields, "body": body})

    def upload(self, _query):
        """Counts and digests a body of any size."""
        digest, count = hashlib.sha256(), 0
        for piece in self.body():
            digest.update(piece)
            count += len(piece)
        self.json({"bytes": count, "sha256": digest.hexdigest()})

    def visit(self, _query):
        """A GET that writes."""
        self.json({"id": self.guestbook.sign("visitor", "was here")})

    def job(self, _query):
        """A write to another database."""
        connection = sqlite3.connect(os.path.join(os.path.dirname(self.guestbook.path), "jobs.db"), timeout=5)
        try:
            with connection:
                connection.execute("CREATE TABLE IF NOT EXISTS jobs (id INTEGER PRIMARY KEY)")
                connection.execute("INSERT INTO jobs DEFAULT VALUES")
            self.json({"count": connection.execute("SELECT count(*) FROM jobs").fetchone()[0]})
        finally:
            connection.close()

    def until_fenced(self, _query):
        """Writes, and answers only when this node may not write any more."""
        entry = self.guestbook.sign("late", "under the lease")
        try:
            while True:
                self.guestbook.sign("late", "and again")
        except sqlite3.OperationalError:
            self.json({"id": entry})

    def replay(self, query):
        """An application written for Fly.io: it asks for the primary itself, where it finds `.primary`."""
        body = b"".join(self.body()).decode()
        if os.path.exists(os.path.join(os.path.dirname(self.guestbook.path), ".primary")):
            self.send_response(200)
            self.send_header("fly-replay", query.get("how", "region=primary") + ";state=captured")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        entry = self.guestbook.sign("replayed", body or "-")
        self.json({"id": entry, "source": self.headers.get("fly-replay-src"), "body": body})

    def gzip(self, _query):
        packed = gzip.compress(b"packed by the application", mtime=0)
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(packed)))
        self.end_headers()
        self.wfile.write(packed)

    def unchanged(self, _query):
        self.send_response(304)
        self.send_header("ETag", '"1"')
        self.end_headers()

    def nothing(self, _query):
        self.send_response(204)
        self.end_headers()

    def hints(self, _query):
        self.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
        self.send(200, "hinted\n")

    def slow(self, query):
        """Answers when `/release` is asked for, and says so beforehand in a file."""
        open(os.path.join(os.environ["MARKS"], query["mark"]), "w").close()
        released.wait(60)
        self.send(200, "at last\n")

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def stream(self, content_type):
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def events(self, _query):
        """One event at once, the next when `/release` is asked for."""
        self.stream("text/event-stream")
        self.chunk(b"data: first\n\n")
        released.wait(60)
        self.chunk(b"data: second\n\n")
        self.chunk(b"")

    def release(self, _query):
        released.set()
        self.json("released")

    def die(self, _query):
        """Breaks off in the middle of an answer."""
        self.stream("text/plain")
        self.chunk(b"the beginning")
        self.close_connection = True

    def until_gone(self, query):
        """Never answers; notes when the client has gone."""
        open(os.path.join(os.environ["MARKS"], query["mark"]), "w").close()
        self.connection.settimeout(60)
        if self.connection.recv(1) == b"":
            gone.set()
        self.close_connection = True

    def was_gone(self, _query):
        self.json(gone.wait(30))

    def upgrade(self, _query):
        """A WebSocket that greets with the node's name and echoes."""
        if self.headers.get("Upgrade", "").lower() != "websocket":
            return self.send(426, "a WebSocket is needed\n")
        accept = base64.b64encode(hashlib.sha1(self.headers["Sec-WebSocket-Key"].encode() + WEBSOCKET_KEY).digest())
        self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        self.close_connection = True
        self.frame(0x1, self.node.encode())
        message = b""
        while True:
            head = self.rfile.read(2)
            if len(head) < 2:
                return
            size = head[1] & 0x7F
            if size > 125:
                size = struct.unpack(*((">H", self.rfile.read(2)) if size == 126 else (">Q", self.rfile.read(8))))[0]
            mask = self.rfile.read(4)
            data = self.rfile.read(size)
            data = (int.from_bytes(data, "big") ^ int.from_bytes((mask * (size // 4 + 1))[:size], "big")).to_bytes(size, "big")
            code = head[0] & 0xF
            if code == 0x8:
                return self.frame(0x8, data)
            if code == 0x9:
                self.frame(0xA, data)
                continue
            message += data
            if head[0] & 0x80:
                self.frame(0x2, message)
                message = b""

    def frame(self, code, data):
        size = len(data)
        head = struct.pack(">BB", 0x80 | code, size) if size < 126 else (
            struct.pack(">BBH", 0x80 | code, 126, size) if size < 1 << 16 else struct.pack(">BBQ", 0x80 | code, 127, size))
        self.wfile.write(head + data)

    def shout(self, _query):
        """Any other protocol: reads to the client's end, then answers in capitals."""
        self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: shout/1\r\nConnection: Upgrade\r\n\r\n")
        self.close_connection = True
        said = self.rfile.read()
        self.wfile.write(said.upper())
        self.connection.shutdown(socket.SHUT_WR)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


def main():
    guestbook = app.Guestbook(os.environ["DATABASE"])
    Application.guestbook = guestbook
    Application.node = os.environ["NODE"]
    stop = threading.Event()
    threading.Thread(target=app.migrate_when_possible, args=(guestbook, stop), daemon=True).start()
    server = Server(("127.0.0.1", int(os.environ["PORT"])), Application)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=end, args=(server, stop)).start())
    server.serve_forever(poll_interval=0.05)


def end(server, stop):
    """The proxy has drained by now, or gives up."""
    stop.set()
    server.shutdown()


if __name__ == "__main__":
    main()
