"""Write through one node, read through another, again and again, while primaries are stopped: no read is older than the write."""

import http.client
import json
import random
import threading
import time
import urllib.parse

from chaos.checker import wait_until

WAIT = 60


class Client(threading.Thread):
    """One client without favourites: each request goes to any node that runs."""

    def __init__(self, nodes, pairs, seed):
        super().__init__(daemon=True)
        self.nodes, self.pairs, self.random = nodes, pairs, random.Random(seed)
        self.connections = {}
        self.done = self.refused = self.unconfirmed = self.broken = self.elsewhere = 0
        self.longest = 0.0
        self.stale = []
        self.error = None

    def request(self, node, method, path, headers, body=None):
        """Status, headers and body; None when the connection broke (the node stops)."""
        connection = self.connections.get(node.name) or http.client.HTTPConnection(node.address, 8080, timeout=WAIT)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            answer = response.status, response.headers, response.read()
            self.connections[node.name] = connection
            return answer
        except (OSError, http.client.HTTPException):
            connection.close()
            self.connections.pop(node.name, None)
            return None

    def run(self):
        try:
            while self.done < self.pairs:
                self.pair()
        except Exception as error:  # shown by the main thread
            self.error = error

    def pair(self):
        form = urllib.parse.urlencode({"author": "pair", "message": str(self.done)})
        headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
        wrote = self.request(self.random.choice(self.nodes), "POST", "/entries", headers, form)
        if wrote is None:
            self.broken += 1
            return time.sleep(0.02)
        status, fields, body = wrote
        if status != 201:
            self.unconfirmed += fields.get("Litefs-Outcome") == "unconfirmed"
            self.refused += 1
            return time.sleep(0.02)
        entry, cookie = json.loads(body)["id"], fields["Set-Cookie"].partition(";")[0]
        while True:
            node = self.random.choice(self.nodes)
            begin = time.monotonic()
            read = self.request(node, "GET", "/entries?limit=1", {"Cookie": cookie})
            if read is not None and read[0] == 200:
                break
            self.broken += 1
            time.sleep(0.02)
        self.longest = max(self.longest, time.monotonic() - begin)
        newest = json.loads(read[2])[0]["id"]
        if newest < entry:
            self.stale.append((entry, newest, node.name, cookie))
        self.elsewhere += read[1]["App-Node"] != node.name
        self.done += 1


def stop_primary(cluster):
    """A clean stop: another one takes over, and this one comes back."""
    primary = cluster.primary()
    primary.stop(60)
    others = [node for node in cluster.nodes if node is not primary]
    wait_until(lambda: any(cluster.is_primary(node) for node in others), 60, "another primary")
    cluster.start(primary)


def run(cluster, pairs, clients=8, stops=None, seed=1):
    """Runs the pairs and prints what happened; an error when a read was stale."""
    workers = [Client(cluster.nodes, pairs // clients, seed * 1000 + number) for number in range(clients)]
    begin = time.monotonic()
    for worker in workers:
        worker.start()
    stopped = 0
    while any(worker.is_alive() for worker in workers) and (stops is None or stopped < stops):
        before = sum(worker.done for worker in workers)
        stop_primary(cluster)
        stopped += 1
        wait_until(lambda: sum(w.done for w in workers) > before + 100 or not any(w.is_alive() for w in workers), 120, "pairs go on")
    for worker in workers:
        worker.join(600)
        assert not worker.is_alive(), "a client hangs"
        if worker.error:
            raise worker.error
    total = {name: sum(getattr(w, name) for w in workers) for name in ("done", "elsewhere", "refused", "unconfirmed", "broken")}
    stale = [read for worker in workers for read in worker.stale]
    longest = max(worker.longest for worker in workers)
    print(f"pairs: {total['done']} in {time.monotonic() - begin:.0f} s, {stopped} primaries stopped, {len(stale)} stale reads, "
          f"{total['elsewhere']} reads answered by the primary instead, longest read {longest:.2f} s; "
          f"{total['refused']} writes refused ({total['unconfirmed']} unconfirmed), {total['broken']} connections broken", flush=True)
    assert not stale, f"stale: (wrote, read, node, cookie) {stale[:10]}"
    assert stopped or stops == 0, "no primary was stopped"
