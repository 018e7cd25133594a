"""A cluster of network namespaces on this machine: the real binary, real mounts, a real Consul, no Docker.

Needs root. Every node and Consul have a namespace and an address of their own; the bridge between them has one, too, where no
firewall rules of this machine (a Docker engine's, say) apply.
"""

import contextlib
import fcntl
import glob
import os
import shutil
import signal
import subprocess
import tempfile
import time

from .checker import wait_until
from .cluster import PAGES_SCRIPT, ClusterBase, answers

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
# Only the wall clock is faked, and a change of the file is seen within a second.
FAKETIME = {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_CACHE_DURATION": "1"}
CLUSTERS_MAX = 16  # side by side on one machine
CONFIG = """\
data:
  dir: {data}
  retention: {retention}
  retention-monitor-interval: 1s
fuse:
  dir: {mount}
http:
  addr: ":20202"
proxy:
  addr: ":8080"
  target: "127.0.0.1:8081"
  advertise-url: "http://{address}:8080"
{proxy_keys}
lease:
  type: consul
  hostname: {name}
  advertise-url: "http://{address}:20202"
  candidate: true
  consul:
    url: "http://{consul}:8500"
    key: "guestbook/primary"
tracing:
  enabled: false
log:
  timestamp: true
exec:
  - cmd: "python3 {application}"
"""


def run(*command, check=True):
    """Runs a command quietly; its output is in the error."""
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if check and result.returncode:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip()}")
    return result


def faketime_library():
    """Debian's libfaketime, installed when it is missing."""
    pattern = "/usr/lib/*/faketime/libfaketimeMT.so.1"
    if not glob.glob(pattern):
        run(os.path.join(ROOT, "integration", "packages.sh"), "install", "libfaketime")
    return glob.glob(pattern)[0]


def claim_number():
    """A number that no other cluster of this machine has, and the open lock file that keeps it."""
    for number in range(1, CLUSTERS_MAX + 1):
        claim = open(os.path.join(tempfile.gettempdir(), f"litefs-chaos-{number}.lock"), "w", encoding="ascii")
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return claim, number
        claim.close()
    raise RuntimeError(f"{CLUSTERS_MAX} clusters run on this machine already")


class Host:
    """A network namespace with one address."""

    def __init__(self, cluster, name, number):
        self.cluster, self.name = cluster, name
        self.address = f"{cluster.subnet}.{number}"
        self.space = f"lfs-{cluster.id}-{name}"
        self.link = f"l{cluster.id}{number}"
        self.process = None

    def create(self):
        run("ip", "netns", "add", self.space)
        switch = self.cluster.switch
        run("ip", "-n", switch, "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.space)
        run("ip", "-n", switch, "link", "set", self.link, "master", "bridge", "up")
        run("ip", "-n", self.space, "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            run("ip", "-n", self.space, "link", "set", device, "up")

    def spawn(self, command, log, environment=None):
        """Starts a command in the namespace, in a session of its own."""
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.space, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, **(environment or {})}, start_new_session=True,
            )

    def pids(self):
        """The process and all it started, parents first."""
        found = [self.process.pid] if self.process else []
        for pid in found:
            try:
                with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as children:
                    found.extend(int(child) for child in children.read().split())
            except OSError:
                pass
        return found

    def signal_all(self, number):
        for pid in self.pids():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def cut(self):
        run("ip", "-n", self.cluster.switch, "link", "set", self.link, "down")

    def mend(self):
        run("ip", "-n", self.cluster.switch, "link", "set", self.link, "up")


class Node(Host):
    """A litefs node with the guestbook as its child."""

    application = os.path.join(ROOT, "integration", "demo", "app.py")
    proxy_keys = '  db: "guestbook.db"'

    def __init__(self, cluster, name, number):
        super().__init__(cluster, name, number)
        self.api = f"http://{self.address}:20202"
        self.proxy = f"http://{self.address}:8080"
        self.folder = os.path.join(cluster.folder, name)
        self.data, self.mount = (os.path.join(self.folder, part) for part in ("data", "mount"))
        self.log = os.path.join(self.folder, "log")
        self.binary, self.environment = cluster.binary, {}
        os.makedirs(self.data)
        os.makedirs(self.mount)

    def start(self):
        config = os.path.join(self.folder, "litefs.yml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(CONFIG.format(
                data=self.data, mount=self.mount, name=self.name, address=self.address, retention=self.cluster.retention,
                consul=self.cluster.consul.address, application=self.application, proxy_keys=self.proxy_keys,
            ))
        database = os.path.join(self.mount, "guestbook.db")
        self.spawn([self.binary, "mount", "-config", config], self.log,
                   {"DATABASE": database, "PORT": "8081", "NODE": self.name, **self.environment})

    def upgrade(self):
        """After a stop: the next start runs another file of the program."""
        self.binary = os.path.join(self.folder, "litefs-next")
        shutil.copy(self.cluster.binary, self.binary)

    def fake_clock(self):
        """Before the start: its wall clock can jump from now on."""
        library = faketime_library()
        self.environment = {"LD_PRELOAD": library, **FAKETIME, "FAKETIME_TIMESTAMP_FILE": self.clock}
        self.jump(0)

    def jump(self, seconds):
        """Its wall clock is off by this from now on."""
        with open(self.clock, "w", encoding="ascii") as file:
            file.write(f"{seconds:+d}\n")

    @property
    def clock(self):
        return os.path.join(self.folder, "clock")

    def stop(self, timeout=30):
        """SIGTERM to the supervisor, as `docker stop`; seconds that it took."""
        begin = time.monotonic()
        os.kill(self.pids()[-1] if len(self.pids()) == 1 else self.process.pid, signal.SIGTERM)
        self.process.wait(timeout)
        self.process = None
        return time.monotonic() - begin

    def kill(self):
        """SIGKILL to everything at once, as when a container is killed: frozen first, or the worker of a killed supervisor, which
        is killed a moment later, has released its lease by then."""
        self.signal_all(signal.SIGSTOP)
        self.signal_all(signal.SIGKILL)
        self.process.wait(30)
        self.process = None

    def pause(self):
        self.signal_all(signal.SIGSTOP)

    def resume(self):
        self.signal_all(signal.SIGCONT)

    def erase(self):
        """An empty node again."""
        run("umount", "-l", self.mount, check=False)
        shutil.rmtree(self.data)
        os.makedirs(self.data)

    def limit_disk(self, megabytes):
        """Puts the data directory on a file system of its own, of this size; before the start."""
        run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", self.data)

    def fill_disk(self):
        """Leaves no byte free in the data directory."""
        with open(os.path.join(self.data, "filler"), "ab", buffering=0) as filler:
            try:
                while True:
                    filler.write(b"\0" * 65536)
            except OSError:
                pass

    def empty_disk(self):
        os.remove(os.path.join(self.data, "filler"))


class Cluster(ClusterBase):
    """Consul and three nodes."""

    def __init__(self, retention="10m", nodes=3, node=Node):
        self.claim, self.id = claim_number()
        self.subnet, self.retention = f"10.89.{self.id}", retention
        self.switch, self.uplink = f"lfs-{self.id}-switch", f"lfs{self.id}"
        self.binary = os.environ.get("LITEFS", os.path.join(ROOT, "target", "release", "litefs"))
        self.folder, self.keep = tempfile.mkdtemp(prefix="litefs-chaos-"), False
        self.consul = Host(self, "consul", 10)
        self.nodes = [node(self, f"n{n}", n) for n in range(1, nodes + 1)]

    def __enter__(self):
        try:
            self.remove_network()
            run("ip", "netns", "add", self.switch)
            run("ip", "-n", self.switch, "link", "add", "bridge", "type", "bridge")
            run("ip", "-n", self.switch, "link", "set", "bridge", "up")
            run("ip", "link", "add", self.uplink, "type", "veth", "peer", "name", "uplink", "netns", self.switch)
            run("ip", "-n", self.switch, "link", "set", "uplink", "master", "bridge", "up")
            run("ip", "address", "add", f"{self.subnet}.254/24", "dev", self.uplink)
            run("ip", "link", "set", self.uplink, "up")
            for host in [self.consul, *self.nodes]:
                host.create()
            self.start_consul()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def start_consul(self):
        consul = run(os.path.join(ROOT, "tests", "consul.sh")).stdout.strip().splitlines()[-1]
        self.consul.spawn([consul, "agent", "-dev", "-client", "0.0.0.0", "-bind", self.consul.address],
                          os.path.join(self.folder, "consul.log"))
        url = f"http://{self.consul.address}:8500/v1/status/leader"
        wait_until(lambda: answers(url, b":"), 60, "Consul")

    def lost_and_found(self, node):
        """What the node has set aside."""
        folder = os.path.join(node.data, "lost+found")
        return [os.path.join(path, name) for path, _, names in os.walk(folder) for name in names]

    def set_aside_pages(self, node):
        """The pages of all records that the node has set aside."""
        script = ["sh", "-c", PAGES_SCRIPT, "sh", os.path.join(node.data, "lost+found"), os.path.join(node.folder, "pages")]
        return subprocess.run([*script, self.binary], stdin=subprocess.DEVNULL, capture_output=True).stdout

    def logs(self):
        """The last lines of every node's log, for a failed scenario."""
        parts = []
        for node in self.nodes:
            with open(node.log, encoding="utf-8", errors="replace") as log:
                parts.append(f"--- {node.name}\n" + "".join(log.readlines()[-40:]))
        return "\n".join(parts)

    def remove_network(self):
        run("ip", "link", "delete", self.uplink, check=False)
        for space in [self.switch, *(host.space for host in [self.consul, *self.nodes])]:
            run("ip", "netns", "delete", space, check=False)

    def __exit__(self, *_):
        for host in [*self.nodes, self.consul]:
            if host.process:
                host.signal_all(signal.SIGCONT)
                host.signal_all(signal.SIGKILL)
                host.process.wait(30)
        self.remove_network()
        for node in self.nodes:
            run("umount", "-l", node.mount, check=False)
            run("umount", "-l", node.data, check=False)
        if self.keep:
            print(f"data and logs of the nodes: {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.claim.close()

