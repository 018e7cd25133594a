"""A small application behind the proxy: POST /<text> inserts a row, GET / counts them, POST /slow says so in a file first."""
import http.server
import sqlite3
import sys
import time

database, port, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]


class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("App-Node", name)
        self.end_headers()
        self.wfile.write(body)

    def run(self, sql, *args):
        connection = sqlite3.connect(database, timeout=10, isolation_level=None)
        try:
            return connection.execute(sql, args).fetchall()
        finally:
            connection.close()

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/slow":
            open(f"{name}-slow", "w").close()
            time.sleep(0.05)
        try:
            self.run("INSERT INTO t VALUES(?)", self.path)
            self.answer(200, "done")
        except sqlite3.Error as error:
            self.answer(500, f"{name}: {error}")

    def do_GET(self):
        try:
            self.answer(200, str(self.run("SELECT count(*) FROM t")[0][0]))
        except sqlite3.Error as error:
            self.answer(500, f"{name}: {error}")

    def log_message(self, *args):
        pass


http.server.ThreadingHTTPServer.daemon_threads = True
http.server.ThreadingHTTPServer(("127.0.0.1", port), App).serve_forever()
