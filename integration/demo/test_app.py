"""Tests of the guestbook alone, on an ordinary directory: python3 -m unittest discover integration/demo"""

import http.client
import json
import os
import sys
import tempfile
import threading
import unittest
from http.server import ThreadingHTTPServer

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import app  # noqa: E402


class GuestbookTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        guestbook = app.Guestbook(os.path.join(self.folder.name, "guestbook.db"))
        guestbook.migrate()
        handler = type("TestHandler", (app.Handler,), {"guestbook": guestbook})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def tearDown(self):
        self.server.shutdown()
        self.server.server_close()
        self.folder.cleanup()

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection(*self.server.server_address, timeout=30)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        result = response.status, response.read().decode(), response.headers
        connection.close()
        return result

    def test_a_signed_entry_is_on_the_page_escaped(self):
        status, _, headers = self.request("POST", "/entries", "author=Ada&message=%3Cb%3Ehi")
        self.assertEqual((status, headers["Location"]), (303, "/"))
        status, page, _ = self.request("GET", "/")
        self.assertEqual(status, 200)
        self.assertIn("&lt;b&gt;hi", page)
        self.assertIn("1 entries", page)

    def test_json_for_programs(self):
        status, body, _ = self.request("POST", "/entries", "author=a&message=m", {"Accept": "application/json"})
        self.assertEqual((status, json.loads(body)), (201, {"id": 1, "node": app.Handler.node}))
        self.request("POST", "/entries", "author=b&message=n")
        _, body, _ = self.request("GET", "/entries?author=b")
        self.assertEqual([e["message"] for e in json.loads(body)], ["n"])

    def test_bad_requests_change_nothing(self):
        for body, path in [("author=a", "/entries"), ("author=a&message=+", "/entries"), ("x", "/other")]:
            self.assertIn(self.request("POST", path, body)[0], (400, 404))
        self.assertEqual(self.request("GET", "/entries?limit=x")[0], 400)
        self.assertEqual(self.request("GET", "/nothing")[0], 404)
        self.assertEqual(json.loads(self.request("GET", "/entries")[1]), [])


if __name__ == "__main__":
    unittest.main()
