"""A guestbook: what a small web application on SQLite looks like, so that there is something real to replicate.

Server-rendered, standard library only, one SQLite connection per request, as many such applications have it.

    DATABASE   path of the database file          (default guestbook.db)
    PORT       port to listen on, on 127.0.0.1    (default 8081)
    NODE       a name shown in the page's footer  (default the host name)
"""

import contextlib
import html
import json
import os
import signal
import socket
import sqlite3
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY_BYTES_MAX = 1 << 20
SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    author  TEXT NOT NULL,
    message TEXT NOT NULL,
    written TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX IF NOT EXISTS entries_author ON entries (author);
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Guestbook</title></head>
<body><h1>Guestbook</h1>
<form method="post" action="/entries">
<input name="author" placeholder="Your name" required>
<input name="message" placeholder="Your message" required><button>Sign</button>
</form><ul>
{entries}
</ul><footer>{count} entries, served by {node}</footer></body></html>
"""


class Guestbook:
    """The entries of one database file."""

    def __init__(self, path):
        self.path = path

    @contextlib.contextmanager
    def connect(self):
        """One connection; committed when the block ends well."""
        connection = sqlite3.connect(self.path, timeout=5)
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    def migrate(self):
        """Makes the tables. Only the primary can; a replica gets them with the data."""
        with self.connect() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(SCHEMA)

    def sign(self, author, message):
        """Adds an entry and returns its id."""
        with self.connect() as connection:
            connection.execute("PRAGMA synchronous = FULL")
            cursor = connection.execute("INSERT INTO entries (author, message) VALUES (?, ?)", (author, message))
            return cursor.lastrowid

    def entries(self, author=None, limit=100):
        """The newest entries first, of one author or of all."""
        query = "SELECT id, author, message, written FROM entries"
        arguments = ()
        if author is not None:
            query, arguments = query + " WHERE author = ?", (author,)
        with self.connect() as connection:
            rows = connection.execute(query + " ORDER BY id DESC LIMIT ?", (*arguments, limit)).fetchall()
        return [dict(zip(("id", "author", "message", "written"), row)) for row in rows]

    def count(self):
        """How many entries there are."""
        with self.connect() as connection:
            return connection.execute("SELECT count(*) FROM entries").fetchone()[0]


class Handler(BaseHTTPRequestHandler):
    """Routes: the page, the form, and the same as JSON."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    guestbook = None
    node = socket.gethostname()
    timeout = 60  # of a connection without a request
    waiting = set()  # connections between two requests
    stopping = False

    def handle_one_request(self):
        """As the base class does, and a stopping server closes connections that wait for their next request."""
        Handler.waiting.add(self.connection)
        super().handle_one_request()
        Handler.waiting.discard(self.connection)
        if Handler.stopping:
            self.close_connection = True

    def parse_request(self):
        Handler.waiting.discard(self.connection)
        return super().parse_request()

    def do_GET(self):
        self.answer(self.get)

    def do_POST(self):
        self.answer(self.post)

    def answer(self, route):
        """Runs a route; what SQLite refuses becomes a 503 that says so."""
        try:
            route(urllib.parse.urlsplit(self.path))
        except sqlite3.OperationalError as error:
            self.send(503, f"{error}\n")

    def get(self, url):
        if url.path == "/":
            entries = "\n".join(
                f"<li><b>{html.escape(e['author'])}</b>: {html.escape(e['message'])} <small>{e['written']}</small></li>"
                for e in self.guestbook.entries()
            )
            page = PAGE.format(entries=entries, count=self.guestbook.count(), node=html.escape(self.node))
            self.send(200, page, "text/html; charset=utf-8")
        elif url.path == "/entries":
            query = urllib.parse.parse_qs(url.query)
            try:
                limit = min(int(query.get("limit", ["100"])[0]), 100_000)
            except ValueError:
                return self.send(400, "limit must be a number\n")
            entries = self.guestbook.entries(query.get("author", [None])[0], limit)
            self.send(200, json.dumps(entries), "application/json")
        elif url.path == "/healthz":
            self.send(200, "ok\n")
        else:
            self.send(404, "no such page\n")

    def post(self, url):
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > BODY_BYTES_MAX:
            self.close_connection = True
            return self.send(413, "Content-Length is needed, at most 1 MiB\n")
        form = urllib.parse.parse_qs(self.rfile.read(int(length)).decode("utf-8", "replace"))
        if url.path != "/entries":
            return self.send(404, "no such page\n")
        author, message = form.get("author", [""])[0].strip(), form.get("message", [""])[0].strip()
        if not author or not message:
            return self.send(400, "author and message are needed\n")
        entry = self.guestbook.sign(author, message)
        if "application/json" in self.headers.get("Accept", ""):
            self.send(201, json.dumps({"id": entry, "node": self.node}), "application/json")
        else:
            self.send(303, "", location="/")

    def send(self, status, text, content_type="text/plain; charset=utf-8", location=None):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format, *args):
        """Keeps quiet: the proxy logs requests."""


def migrate_when_possible(guestbook, stop):
    """Makes the tables as soon as this node may write; a replica gets them with the data."""
    while not stop.is_set():
        try:
            guestbook.entries(limit=1)
            return
        except sqlite3.OperationalError:
            with contextlib.suppress(sqlite3.OperationalError):
                guestbook.migrate()
                return
        stop.wait(0.2)


def main():
    guestbook = Guestbook(os.environ.get("DATABASE", "guestbook.db"))
    Handler.guestbook = guestbook
    Handler.node = os.environ.get("NODE", Handler.node)
    stop = threading.Event()
    threading.Thread(target=migrate_when_possible, args=(guestbook, stop), daemon=True).start()
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8081"))), Handler)
    server.daemon_threads = False  # running requests are finished before the process ends

    def terminate(_signal, _frame):
        stop.set()
        Handler.stopping = True
        for connection in list(Handler.waiting):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, terminate)
    server.serve_forever(poll_interval=0.05)
    server.server_close()


if __name__ == "__main__":
    main()
