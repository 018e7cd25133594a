"""The same cluster in containers: integration/docker-compose.yml, driven through the docker client."""

import json
import os
import subprocess
import time

from .checker import wait_until
from .cluster import PAGES_SCRIPT, ClusterBase, answers
from .local import FAKETIME, run

HERE = os.path.dirname(os.path.abspath(__file__))
INTEGRATION = os.path.dirname(HERE)
PROJECT = "litefs-chaos"


def compose(*arguments, environment=None):
    """`docker compose` or, where that is missing, `docker-compose`."""
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
    command = ["docker", "compose"] if plugin else ["docker-compose"]
    result = subprocess.run(
        [*command, "-p", PROJECT, "-f", os.path.join(INTEGRATION, "docker-compose.yml"), *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, env={**os.environ, **(environment or {})},
    )
    if result.returncode:
        raise RuntimeError(f"compose {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout


class Container:
    """One service of the composition."""

    def __init__(self, cluster, name):
        self.cluster, self.name = cluster, name
        self.id = None

    def find(self):
        """Its container, which stays the same while it is stopped."""
        self.id = compose("ps", "-q", self.name, environment=self.cluster.environment).strip()

    def address(self):
        text = run("docker", "inspect", self.id).stdout
        networks = json.loads(text)[0]["NetworkSettings"]["Networks"]
        return next(iter(networks.values()))["IPAddress"] or self.known_address

    def cut(self):
        run("docker", "network", "disconnect", f"{PROJECT}_default", self.id)

    def mend(self):
        run("docker", "network", "connect", "--ip", self.known_address, "--alias", self.name, f"{PROJECT}_default", self.id)

    @property
    def known_address(self):
        return self.cluster.addresses[self.name]


class Node(Container):
    """A node's container."""

    @property
    def api(self):
        return f"http://{self.known_address}:20202"

    @property
    def proxy(self):
        return f"http://{self.known_address}:8080"

    def start(self):
        if self.id:
            run("docker", "start", self.id)
        else:
            compose("up", "-d", "--no-deps", self.name, environment=self.cluster.environment)
            self.find()

    def stop(self):
        begin = time.monotonic()
        run("docker", "stop", "-t", "30", self.id)
        return time.monotonic() - begin

    def upgrade(self):
        """After a stop: a new container of the next image, on the same volume."""
        run("docker", "rm", self.id)
        self.id = None
        self.cluster.environment["IMAGE"] = "litefs-demo:next"

    def fake_clock(self):
        """Before the start: its wall clock can jump from now on. The library is that image's."""
        clock = {"LD_PRELOAD": "/usr/lib/faketime.so", **FAKETIME, "FAKETIME_TIMESTAMP_FILE": "/tmp/clock"}
        self.cluster.environment.update(clock, IMAGE="litefs-demo:clock")

    def jump(self, seconds):
        """Its wall clock is off by this from now on."""
        run("docker", "exec", self.id, "sh", "-c", f"echo {seconds:+d} >/tmp/clock")

    def kill(self):
        run("docker", "kill", self.id)

    def pause(self):
        run("docker", "pause", self.id)

    def resume(self):
        run("docker", "unpause", self.id)

    def erase(self):
        """An empty node: a new container with a new volume."""
        run("docker", "rm", "-v", "-f", self.id)
        self.id = None
        run("docker", "volume", "rm", "-f", f"{PROJECT}_{self.name}")

    def limit_disk(self, megabytes):
        """Puts the data directory on a file system of its own, of this size; before the start. Compose has made the usual volume."""
        run("docker", "volume", "rm", "-f", f"{PROJECT}_{self.name}")
        self.cluster.environment["DATA_DRIVER_TYPE"] = "tmpfs"
        self.cluster.environment["DATA_DRIVER_OPTIONS"] = f"size={megabytes}m"

    def fill_disk(self):
        run("docker", "exec", self.id, "sh", "-c", "cat /dev/zero >/var/lib/litefs/filler", check=False)

    def empty_disk(self):
        run("docker", "exec", self.id, "rm", "/var/lib/litefs/filler")


class Cluster(ClusterBase):
    """Consul and three nodes as containers."""

    def __init__(self, retention="10m"):
        self.environment = {"RETENTION": retention}
        self.addresses = {"consul": "172.31.77.10", "n1": "172.31.77.11", "n2": "172.31.77.12", "n3": "172.31.77.13"}
        self.consul = Container(self, "consul")
        self.nodes = [Node(self, name) for name in ("n1", "n2", "n3")]

    def __enter__(self):
        self.down()
        compose("up", "-d", "consul", environment=self.environment)
        self.consul.find()
        wait_until(lambda: answers(f"http://{self.addresses['consul']}:8500/v1/status/leader", b":"), 60, "Consul")
        return self

    def lost_and_found(self, node):
        listing = run("docker", "exec", node.id, "find", "/var/lib/litefs/lost+found", "-type", "f", check=False)
        return listing.stdout.split()

    def set_aside_pages(self, node):
        command = ["sh", "-c", PAGES_SCRIPT, "sh", "/var/lib/litefs/lost+found", "/tmp/pages", "litefs"]
        return subprocess.run(
            ["docker", "exec", node.id, *command], stdin=subprocess.DEVNULL, capture_output=True
        ).stdout

    def logs(self):
        return compose("logs", "--tail", "40", environment=self.environment)

    def down(self):
        compose("down", "-v", "--remove-orphans", "-t", "1", environment=self.environment)

    def __exit__(self, *_):
        for node in self.nodes:
            run("docker", "unpause", node.id or "none", check=False)
        self.down()
