"""Nodes with the application of this folder behind their proxies."""

import contextlib
import json
import os
import signal
import subprocess
import time

from chaos import local
from chaos.checker import wait_until
from chaos.cluster import info
from chaos.web import refuses

from .clients import curl

APPLICATION = os.path.join(os.path.dirname(os.path.abspath(__file__)), "application.py")


class Site(local.Node):
    """A node; `keys` and `environment` are those of the cluster for its next start."""

    application = APPLICATION

    def start(self):
        self.proxy_keys = self.cluster.keys
        self.environment = {"MARKS": self.folder, **self.cluster.environment}
        super().start()

    def curl(self, path, *arguments, **more):
        return curl(self.proxy + path, *arguments, **more)

    def echo(self, path, *arguments, **more):
        """What the application saw of a request: its fields as a list of pairs, and the answer."""
        got = self.curl(path, *arguments, **more)
        assert got.status == 200, got
        seen = json.loads(got.body)
        return seen, [(name, value) for name, value in seen["headers"]], got

    @contextlib.contextmanager
    def run(self, *command):
        """A program beside the node, for a while."""
        process = subprocess.Popen(["ip", "netns", "exec", self.space, *command], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.kill()
            process.wait()

    def txid(self):
        """The position of the guestbook."""
        return int(info(self)["databases"]["guestbook.db"]["pos"][:16], 16)

    def metric(self, name):
        """A value of `/metrics`; the name may have labels."""
        text = curl(self.api + "/metrics").body.decode()
        values = [line.split()[-1] for line in text.splitlines() if line.startswith(name + " ")]
        return float(values[0]) if values else 0.0

    def lines(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read().splitlines()

    def marked(self, mark):
        """Waits until a request has reached the application."""
        wait_until(lambda: os.path.exists(os.path.join(self.folder, mark)), 60, f"the request marked {mark}")

    def worker(self):
        """The process that serves: the one named litefs-worker."""
        for pid in self.pids():
            with open(f"/proc/{pid}/cmdline", "rb") as line:
                if line.read().startswith(b"litefs-worker"):
                    return pid
        raise AssertionError("no worker")

    def cpu_seconds(self):
        with open(f"/proc/{self.worker()}/stat", encoding="ascii") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_memory_kb(self):
        with open(f"/proc/{self.worker()}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


class Sites(local.Cluster):
    """Consul and `nodes` sites, of which the first starts as the primary."""

    def __init__(self, nodes):
        self.keys, self.environment = '  db: "guestbook.db"', {}
        super().__init__(nodes=nodes, node=Site)

    def restart(self, keys, environment=None):
        """Starts all nodes with these lines of the `proxy:` section; only the first when the application is not to answer."""
        self.keys, self.environment = keys, environment or {}
        self.stop()
        if "PORT" in self.environment:
            self.nodes[0].start()
        else:
            self.start(self.nodes[0])
        wait_until(lambda: self.is_primary(self.nodes[0]), 60, "the first node is primary")
        if "PORT" not in self.environment:
            self.start(*self.nodes[1:])

    def stop(self):
        """Stops all nodes, the first one last."""
        for node in reversed(self.nodes):
            if node.process:
                node.stop()

    def is_primary(self, node):
        return info(node).get("isPrimary", False)

    def pair(self):
        """The primary and one replica that follows it."""
        primary = self.primary()
        replica = next(node for node in self.nodes if node is not primary)
        wait_until(lambda: follows(replica, primary), 60, f"{replica.name} follows {primary.name}")
        return primary, replica

    def lose_consul(self):
        """Nobody can renew: in a moment there is no primary."""
        self.consul.signal_all(signal.SIGSTOP)

    def find_consul(self):
        self.consul.signal_all(signal.SIGCONT)

    @contextlib.contextmanager
    def without_primary(self, primary):
        """Its primary is gone, and nobody can become one: Consul does not answer. In the end all is well again."""
        self.lose_consul()
        primary.kill()
        try:
            # A worker that is only about to die still takes connections: what is sent on one may have been executed.
            wait_until(lambda: refuses(primary.proxy), 30, "the primary takes no connections")
            yield
        finally:
            self.find_consul()
            self.start(primary)
            self.pair()


def follows(replica, primary):
    """Whether the replica knows the primary's proxy and has its data."""
    known = info(replica).get("primary", {}).get("hostname") == primary.name
    got = replica.curl("/entries?limit=1")
    return known and got.status == 200 and replica.txid() == primary.txid()


def elapsed(action):
    """Seconds and result."""
    begin = time.monotonic()
    result = action()
    return time.monotonic() - begin, result
