"""COMPAT §8, row by row: the proxy as LiteFS answers."""

import re

from chaos.checker import wait_until

from .checks import same, shows
from .clients import answer, curl, start_curl
from .sites import elapsed

ENTRY = ("--data", "author=a&message=m")
COOKIE = re.compile(r"__txid=([0-9a-f]{16}); Path=/; Expires=[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} [\d:]{8} GMT; HttpOnly; SameSite=Lax")


def cookie(txid):
    """curl's arguments for a client that has seen this transaction."""
    return "--cookie", f"__txid={txid:016x}"


@shows("http", "§8 a path that matches passthrough goes straight to the target, without a cookie")
def passthrough(cluster):
    _, replica = cluster.pair()
    got = replica.curl("/raw/echo", "--data", "x")
    same((got.status, got.node, got.headers("Set-Cookie")), (200, replica.name, []))


@shows("http", "§8 GET /litefs/health: 200 OK")
def healthy(cluster):
    for node in cluster.pair():
        got = node.curl("/litefs/health")
        same((got.status, got.body), (200, b"OK"), node.name)


@shows("http", "§8 /litefs/health: 503 when the lag exceeds max-lag")
def lagging(cluster):
    _, replica = cluster.pair()
    replica.cut()
    try:
        inside = "http://127.0.0.1:8080/litefs/health"
        wait_until(lambda: replica_health(replica, inside) == 503, 60, "a lagging replica is unhealthy")
    finally:
        replica.mend()
    wait_until(lambda: replica_health(replica, inside) == 200, 60, "it recovers")


def replica_health(replica, url):
    return curl(url, space=replica.space).status


@shows("http", "§8 GET and HEAD without a cookie: to the target")
def plain_reads(cluster):
    for node in cluster.pair():
        for arguments in ((), ("--head",)):
            got = node.curl("/entries", *arguments)
            same((got.status, got.node, got.headers("Set-Cookie")), (200, node.name, []))


@shows("http", "§8 GET with a cookie: as soon as the local TXID is there, from the target")
def waiting_read(cluster):
    primary, replica = cluster.pair()
    wanted = replica.txid() + 1
    read = start_curl(replica.proxy + "/entries?limit=1", *cookie(wanted))
    wait_until(lambda: replica.metric("litefs_proxy_waiting") >= 1 or read.poll() is not None, 60, "the read waits")
    wrote = primary.curl("/entries", *ENTRY)
    got = answer(read)
    same((wrote.status, got.status), (303, 200))
    # Here when it was written within replica-wait, else from the primary: never older.
    assert b'"message": "m"' in got.body, got
    same(wrote.token, wanted)
    same(replica.curl("/entries", *cookie(wanted)).node, replica.name)


@shows("http", "§8 other methods on the primary: to the target, with the cookie in LiteFS's form")
def write_on_primary(cluster):
    primary, _ = cluster.pair()
    before = primary.txid()
    got = primary.curl("/entries", *ENTRY)
    form = COOKIE.fullmatch(got.header("Set-Cookie"))
    assert form, got
    same((got.status, got.node, int(form[1], 16), primary.txid()), (303, primary.name, before + 1, before + 1))
    # Every other method, also where it wrote nothing.
    same(int(COOKIE.fullmatch(primary.curl("/echo", "--data", "x").header("Set-Cookie"))[1], 16), before + 1)


@shows("http", "§8 the same on a replica, off Fly.io: answered by the primary")
def write_on_replica(cluster):
    primary, replica = cluster.pair()
    got = replica.curl("/entries", *ENTRY)
    same((got.status, got.node), (303, primary.name))
    assert COOKIE.fullmatch(got.header("Set-Cookie")), got
    same(replica.curl("/always/echo").node, primary.name, "a GET that matches always-forward")


@shows("fly", "§8 the same on a replica, on Fly.io: 200, empty, fly-replay: instance=<primary hostname>")
def fly_replay(cluster):
    primary, replica = cluster.pair()
    for path, arguments in (("/entries", ENTRY), ("/always/echo", ())):
        got = replica.curl(path, *arguments)
        same((got.status, got.body, got.header("fly-replay"), got.node), (200, b"", f"instance={primary.name}", None))


@shows("http", "§8 no primary: 503 after primary-redirect-timeout; a late read then is a 504")
def no_primary(cluster):
    primary, replica = cluster.pair()
    ahead = replica.txid() + 1000
    with cluster.without_primary(primary):
        seconds, got = elapsed(lambda: replica.curl("/entries", *ENTRY))
        same((got.status, got.header("Retry-After")), (503, "1"))
        assert seconds >= 3, f"it waited {seconds:.1f} s"
        same(replica.curl("/entries", *cookie(ahead)).status, 504)
        same(replica.curl("/entries").status, 200, "a read that needs nobody")


@shows("down", "§8 a target that refuses connections is retried, then 502")
def target_down(cluster):
    node = cluster.nodes[0]
    seconds, got = elapsed(lambda: node.curl("/"))
    same(got.status, 502)
    assert seconds >= 3, f"it gave up after {seconds:.1f} s"
    same(node.curl("/litefs/health").status, 200, "others are not held up")
    waiting = start_curl(node.proxy + "/")
    wait_until(lambda: node.metric("litefs_proxy_in_flight") == 1 or waiting.poll() is not None, 60, "it is retried")
    with node.run("python3", "-m", "http.server", "8081", "--bind", "127.0.0.1"):
        # 502 if starting it took longer than target-timeout; the next request finds it.
        assert answer(waiting).status in (200, 502)
        wait_until(lambda: node.curl("/").status == 200, 60, "the target has started")
