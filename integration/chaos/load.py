"""Writers and readers through the proxies of random nodes; every acknowledged write is recorded here, outside the cluster."""

import collections
import json
import random
import threading
import time

from .web import Unanswered, request


ROWS_MAX = 10_000  # of one client


class Write:
    """One acknowledged write: what, its token, the node that did it, and when it was begun and acknowledged (monotonic)."""

    def __init__(self, author, message, answer, begun):
        self.author, self.message, self.token, self.begun = author, message, answer.token, begun
        self.node = json.loads(answer.body).get("node")
        self.at = time.monotonic()

    def __repr__(self):
        return f"{self.author}/{self.message} by {self.node} at {self.token}, {self.begun:.3f} to {self.at:.3f}"


class Load:
    """A number of clients, each writing and then reading its own writes at another node."""

    def __init__(self, proxies, seed=1, clients=4):
        self.proxies = list(proxies)
        self.acknowledged = []
        self.stale = []
        self.refused = collections.Counter()
        self.unanswered = 0
        self.reads = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._client, args=(f"c{n}-{seed}", random.Random(seed * 1000 + n)), daemon=True)
            for n in range(clients)
        ]

    def start(self):
        for thread in self._threads:
            thread.start()
        return self

    def stop(self):
        """Ends the load and returns when every client has seen its last answer."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            if thread.is_alive():
                raise RuntimeError("a client of the load does not end")

    def count(self):
        with self._lock:
            return len(self.acknowledged)

    def wait_for(self, more, timeout=60.0):
        """Waits until `more` further writes are acknowledged; False when that does not happen."""
        goal, end = self.count() + more, time.monotonic() + timeout
        while self.count() < goal:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def longest_gap(self, since):
        """Seconds of the longest time without an acknowledged write after `since` (monotonic)."""
        with self._lock:
            times = sorted([since] + [write.at for write in self.acknowledged if write.at > since])
        return max((later - earlier for earlier, later in zip(times, times[1:])), default=0.0)

    def _client(self, author, rng):
        number = 0
        while not self._stop.is_set():
            number += 1
            message = f"{number}"
            token = self._write(author, message, rng)
            if token:
                self._read_own(author, message, token, rng)
            self._stop.wait(0.01 if token else 0.1)

    def _write(self, author, message, rng):
        begun = time.monotonic()
        try:
            answer = request(rng.choice(self.proxies) + "/entries", "POST", {"author": author, "message": message}, timeout=3)
        except Unanswered:
            with self._lock:
                self.unanswered += 1
            return None
        if answer.status != 201:
            with self._lock:
                self.refused[f"{answer.status} {answer.outcome or answer.body[:60].decode('utf-8', 'replace').strip()}"] += 1
            return None
        with self._lock:
            self.acknowledged.append(Write(author, message, answer, begun))
        return answer.token

    def _read_own(self, author, message, token, rng):
        """Reads at a random node with the token; any 200 must show the write. It need not be the newest: what this client gave up
        waiting for may be carried out later."""
        node = rng.choice(self.proxies)
        try:
            answer = request(f"{node}/entries?author={author}&limit={ROWS_MAX}", token=token, timeout=3)
        except Unanswered:
            return
        if answer.status != 200:
            return
        with self._lock:
            self.reads += 1
        shown = [entry["message"] for entry in json.loads(answer.body)]
        if message not in shown:
            with self._lock:
                self.stale.append(f"{node} did not show {author}/{message} for token {token}, but {shown[:10]}")
