"""The scenarios: what is done to the cluster while the load runs. Each returns its figures; the checker runs after it."""

import threading
import time

from .checker import wait_until
from .cluster import requests_in_flight
from .web import SlowPost, refuses

WARM = 30  # acknowledged writes before the harm, and again after it


class Scenario:
    """A name, what it does, and whether it loses a primary uncleanly (the asynchronous window of docs/semantics.md)."""

    def __init__(self, name, action, clean=True, setup=None, **options):
        self.name, self.action, self.clean, self.setup, self.options = name, action, clean, setup, options


SCENARIOS = []


def scenario(name, **options):
    def register(action):
        SCENARIOS.append(Scenario(name, action, **options))
        return action
    return register


def warm(load, verdict, text="writes go on"):
    verdict.require(load.wait_for(WARM, timeout=90), text)


@scenario("cold-start")
def cold_start(_cluster, load, verdict):
    warm(load, verdict)


def roll(cluster, load, verdict, between=lambda node: None):
    """Stops every node cleanly and starts it again, one after another; `between` is done to it in the meantime."""
    warm(load, verdict)
    begin, stops = time.monotonic(), []
    for node in cluster.nodes:
        stops.append(node.stop())
        between(node)
        node.start()
        cluster.wait_ready([node])
        warm(load, verdict, f"writes go on after {node.name} was restarted")
    return {"stop_s_max": max(stops), "write_gap_s": load.longest_gap(begin)}


@scenario("rolling-restart")
def rolling_restart(cluster, load, verdict):
    return roll(cluster, load, verdict)


@scenario("image-upgrade")
def image_upgrade(cluster, load, verdict):
    """A rolling restart, in which every node comes back with another image (without Docker: another file of the program)."""
    return roll(cluster, load, verdict, lambda node: node.upgrade())


@scenario("kill-primary", clean=False)
def kill_primary(cluster, load, verdict):
    warm(load, verdict)
    primary, begin = cluster.primary(), time.monotonic()
    primary.kill()
    warm(load, verdict, "another node takes over")
    gap = load.longest_gap(begin)
    primary.start()
    cluster.wait_ready([primary])
    warm(load, verdict)
    return {"write_gap_s": gap}


@scenario("stop-primary")
def stop_primary(cluster, load, verdict):
    warm(load, verdict)
    primary, begin = cluster.primary(), time.monotonic()
    seconds = primary.stop()
    warm(load, verdict, "another node takes over")
    gap = load.longest_gap(begin)
    primary.start()
    cluster.wait_ready([primary])
    return {"stop_s": seconds, "write_gap_s": gap}


@scenario("graceful-stop")
def graceful_stop(cluster, load, verdict):
    """Requests are half sent when the primary is told to stop. What comes in at once is carried out; what takes longer than the
    lease waits, and longer than the application is left without its signal, is answered all the same."""
    warm(load, verdict)
    primary, begin = cluster.primary(), time.monotonic()
    url = primary.proxy + "/entries"
    posts = [SlowPost(url, {"author": "graceful", "message": f"{number}"}) for number in range(16)]
    wait_until(lambda: requests_in_flight(primary) >= len(posts), 30, "the requests are in flight")
    stop = threading.Thread(target=primary.stop)
    stop.start()
    wait_until(lambda: refuses(primary.proxy), 30, "the proxy takes no more connections")
    for post in posts[:8]:
        post.send_rest()
    time.sleep(2.5)
    for post in posts[8:]:
        post.send_rest()
    answers = [post.answer() for post in posts]
    stop.join()
    seconds = time.monotonic() - begin
    statuses = [answer and answer.status for answer in answers]
    # 503: not carried out, or the answer came when the lease was another's already, and nothing is confirmed without it.
    verdict.require(set(statuses) <= {201, 503}, f"every request is answered: {statuses}")
    verdict.require(201 in statuses[:8], f"what is in flight is carried out: {statuses}")
    warm(load, verdict, "another node takes over")
    primary.start()
    cluster.wait_ready([primary])
    return {"stop_s": seconds, "carried_out": statuses.count(201), "answered": len(statuses) - statuses.count(None)}


@scenario("pause-primary", clean=False)
def pause_primary(cluster, load, verdict):
    """Frozen for longer than the lease: when it wakes, it must not accept a write any more."""
    warm(load, verdict)
    primary, begin = cluster.primary(), time.monotonic()
    primary.pause()
    try:
        warm(load, verdict, "another node takes over from the frozen one")
        gap = load.longest_gap(begin)
        time.sleep(max(0.0, 15 - (time.monotonic() - begin)))
    finally:
        primary.resume()
    warm(load, verdict, "writes go on after it woke")
    return {"write_gap_s": gap}


def cut(cluster, host, load, verdict, seconds, expect_writes):
    begin = time.monotonic()
    host.cut()
    try:
        if expect_writes:
            warm(load, verdict, f"writes go on without {host.name}")
        gap = load.longest_gap(begin)
        time.sleep(max(0.0, seconds - (time.monotonic() - begin)))
    finally:
        host.mend()
    cluster.wait_ready(cluster.nodes)
    warm(load, verdict, f"writes go on with {host.name} back")
    return {"write_gap_s": max(gap, load.longest_gap(begin))}


@scenario("cut-primary", clean=False)
def cut_primary(cluster, load, verdict):
    warm(load, verdict)
    return cut(cluster, cluster.primary(), load, verdict, 15, True)


@scenario("cut-replica")
def cut_replica(cluster, load, verdict):
    warm(load, verdict)
    return cut(cluster, cluster.replicas()[0], load, verdict, 15, True)


@scenario("cut-consul", clean=False)
def cut_consul(cluster, load, verdict):
    warm(load, verdict)
    return cut(cluster, cluster.consul, load, verdict, 20, False)


@scenario("kill-replica")
def kill_replica(cluster, load, verdict):
    warm(load, verdict)
    replica = cluster.replicas()[0]
    replica.kill()
    warm(load, verdict)
    replica.start()
    cluster.wait_ready([replica])
    warm(load, verdict)


@scenario("new-node")
def new_node(cluster, load, verdict):
    """A replica loses its disk and joins as an empty node."""
    warm(load, verdict)
    replica = cluster.replicas()[0]
    replica.kill()
    replica.erase()
    begin = time.monotonic()
    replica.start()
    cluster.wait_ready([replica])
    seconds = time.monotonic() - begin
    warm(load, verdict)
    return {"join_s": seconds}


@scenario("rejoin-after-retention", retention="2s")
def rejoin_after_retention(cluster, load, verdict):
    """A replica is away for longer than records are kept: it needs a snapshot."""
    warm(load, verdict)
    replica = cluster.replicas()[0]
    replica.stop()
    time.sleep(6)
    warm(load, verdict)
    replica.start()
    cluster.wait_ready([replica])
    warm(load, verdict)


def fake_clocks(cluster):
    for node in cluster.nodes:
        node.fake_clock()


@scenario("clock-jump", setup=fake_clocks)
def clock_jump(cluster, load, verdict):
    """Wall clocks jump by an hour: the primary's forth and back, a replica's back. Leases go by other clocks."""
    warm(load, verdict)
    primary, replica, begin = cluster.primary(), cluster.replicas()[0], time.monotonic()
    for node, seconds in ((primary, 3600), (replica, -3600), (primary, 0)):
        node.jump(seconds)
        time.sleep(5)
        verdict.require(cluster.primary() is primary, f"{primary.name} stays primary when {node.name} is off by {seconds} s")
        warm(load, verdict, f"writes go on when {node.name} is off by {seconds} s")
    cluster.wait_ready(cluster.nodes)
    return {"write_gap_s": load.longest_gap(begin)}


def limit_disks(cluster):
    for node in cluster.nodes:
        node.limit_disk(64)


def fill(node, load, verdict, expect_writes):
    before = load.count()
    node.fill_disk()
    if expect_writes:
        warm(load, verdict, "writes go on beside a replica with a full disk")
    else:
        time.sleep(5)
    figures = {"writes_while_full": load.count() - before}
    node.empty_disk()
    warm(load, verdict, "writes go on with room on the disk")
    return figures


@scenario("full-disk-primary", setup=limit_disks)
def full_disk_primary(cluster, load, verdict):
    warm(load, verdict)
    return fill(cluster.primary(), load, verdict, False)


@scenario("full-disk-replica", setup=limit_disks)
def full_disk_replica(cluster, load, verdict):
    warm(load, verdict)
    return fill(cluster.replicas()[0], load, verdict, True)
