"""The proxy's own promises, point by point (docs/proxy.md)."""

import gzip
import hashlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time

from chaos.checker import wait_until

from .checks import same, shows
from .clients import answer, curl, nghttp, start_curl, websocket
from .rows import COOKIE, ENTRY, cookie
from .sites import elapsed

LARGE_BYTES = 64 << 20


def header(txid):
    """curl's arguments for an API client that has seen this transaction."""
    return "--header", f"Litefs-Txid: {txid:016x}"


@shows("http", "2 the primary answers a cookie it has never reached at once, and corrects it")
def authority(cluster):
    primary, _ = cluster.pair()
    waits = primary.metric("litefs_proxy_wait_seconds_count")
    got = primary.curl("/entries", *cookie(0xFFFF_FFFF))
    same((got.status, got.token, got.node), (200, primary.txid(), primary.name))
    same(primary.metric("litefs_proxy_wait_seconds_count"), waits, "waits")


@shows("failover", "2 a thousand waiting reads cost no CPU")
def sleeping_reads(cluster):
    _, replica = cluster.pair()
    ahead = replica.txid() + 1
    idle = cpu_of_a_while(replica)
    request = f"GET /entries?limit=1 HTTP/1.1\r\nHost: a\r\nLitefs-Txid: {ahead:016x}\r\n\r\n".encode()
    sockets = []
    try:
        for _ in range(1000):
            sockets.append(socket.create_connection((replica.address, 8080)))
        for one in sockets:
            one.sendall(request)
        wait_until(lambda: replica.metric("litefs_proxy_waiting") == 1000, 30, "a thousand reads wait")
        busy = cpu_of_a_while(replica)
        print(f"      CPU of the node: {idle * 100:.1f} % of a core idle, {busy * 100:.1f} % with 1000 waiting reads")
    finally:
        for one in sockets:
            one.close()


def cpu_of_a_while(node):
    before, begin = node.cpu_seconds(), time.monotonic()
    time.sleep(1.5)
    return (node.cpu_seconds() - before) / (time.monotonic() - begin)


@shows("http", "3 http: a body of 64 MB is streamed to the primary and back, also in chunks")
def large_bodies(cluster):
    primary, replica = cluster.pair()
    with tempfile.NamedTemporaryFile() as file:
        data = os.urandom(1 << 20) * (LARGE_BYTES >> 20)
        file.write(data)
        file.flush()
        wanted = {"bytes": LARGE_BYTES, "sha256": hashlib.sha256(data).hexdigest()}
        for arguments in (("--data-binary", f"@{file.name}"),
                          ("--data-binary", f"@{file.name}", "--header", "Transfer-Encoding: chunked")):
            got = replica.curl("/upload", *arguments)
            same((got.status, got.node, json.loads(got.body or b"{}")), (200, primary.name, wanted))
    print(f"      peak memory of the forwarding node: {replica.peak_memory_kb() // 1024} MB")


@shows("http", "3 http: connections to the primary are used again")
def reuse(cluster):
    primary, replica = cluster.pair()
    replica.curl("/entries", *ENTRY)
    before = primary.metric("litefs_proxy_connections")
    for _ in range(20):
        same(replica.curl("/entries", *ENTRY).status, 303)
    assert primary.metric("litefs_proxy_connections") <= before + 1, "connections pile up"


@shows("http", "3 a loop is impossible")
def loops(cluster):
    primary, replica = cluster.pair()
    refused = replica.curl("/entries", *ENTRY, "--header", "Litefs-Hop: other")
    same((refused.status, refused.header("Litefs-Hop")), (503, "not-primary"))
    _, fields, _ = primary.echo("/echo")
    via = dict(fields)["via"]
    same(primary.curl("/echo", "--header", f"Via: {via}").status, 508)


@shows("redirect", "3 redirect: 307 to the primary's URL, which a client follows")
def redirect(cluster):
    primary, replica = cluster.pair()
    got = replica.curl("/entries?x=1", *ENTRY)
    same((got.status, got.header("Location")), (307, f"{primary.proxy}/entries?x=1"))
    got = replica.curl("/echo", "--location", "--data", "kept", "--request", "POST")
    assert got.interim and got.status == 307 or json.loads(got.body)["body"] == "kept", got


@shows("fly", "3 on Fly.io a body over 1 MB or of unknown length is forwarded by http")
def fly_large(cluster):
    primary, replica = cluster.pair()
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x" * 2_000_000)
        file.flush()
        got = replica.curl("/upload", "--data-binary", f"@{file.name}")
        same((got.status, got.node, json.loads(got.body)["bytes"]), (200, primary.name, 2_000_000))
    got = replica.curl("/upload", "--data", "short", "--header", "Transfer-Encoding: chunked")
    same((got.status, got.node), (200, primary.name))


@shows("failover", "3 while there is no primary a write waits, and goes on when there is one")
def waiting_write(cluster):
    primary, replica = cluster.pair()
    with cluster.without_primary(primary):
        write = start_curl(replica.proxy + "/entries", *ENTRY)
        wait_until(lambda: replica.metric("litefs_proxy_waiting") == 1, 60, "the write waits")
        cluster.find_consul()
        got = answer(write)
        same((got.status, got.node), (303, replica.name))


@shows("http", "4 a read that is behind for longer than replica-wait is answered by the primary")
def replica_wait(cluster):
    primary, replica = cluster.pair()
    seconds, got = elapsed(lambda: replica.curl("/entries?limit=1", *cookie(0xFFFF_FFFF)))
    same((got.status, got.node, got.token), (200, primary.name, primary.txid()))
    assert seconds >= 3, f"after {seconds:.2f} s"


@shows("http", "5 a GET that writes carries the token; one that does not carries none")
def tokens_by_effect(cluster):
    primary, replica = cluster.pair()
    before = primary.txid()
    got = primary.curl("/visit")
    same((got.token, int(COOKIE.fullmatch(got.header("Set-Cookie"))[1], 16)), (before + 1, before + 1))
    got = primary.curl("/echo")
    same((got.token, got.headers("Set-Cookie")), (None, []))
    replica.curl("/echo", *header(before + 1))


@shows("http", "5 cookie or header: the larger counts; the application does not see the cookie")
def token_places(cluster):
    primary, replica = cluster.pair()
    now = primary.txid()
    for arguments in ((*cookie(1), *header(now)), (*cookie(now), *header(1))):
        same(replica.curl("/entries", *arguments).node, replica.name)
    for arguments in ((*cookie(1), *header(now + 1000)), (*cookie(now + 1000), *header(1))):
        same(replica.curl("/entries", *arguments).node, primary.name, "the larger one is ahead")
    _, fields, _ = primary.echo("/echo", "--cookie", f"a=b; __txid={now:016x}; c=d")
    same(dict(fields)["cookie"], "a=b; c=d")


@shows("http", "5 the cookie is Secure when the client came over TLS")
def secure(cluster):
    primary, _ = cluster.pair()
    for arguments in (("--header", "X-Forwarded-Proto: https"), ("--header", "Fly-Forwarded-Port: 443")):
        got = primary.curl("/entries", *ENTRY, *arguments)
        assert got.header("Set-Cookie").endswith("; HttpOnly; Secure; SameSite=Lax"), got


@shows("databases", "5 several databases: one token covers all")
def several(cluster):
    primary, replica = cluster.pair()
    primary.curl("/entries", *ENTRY)
    got = primary.curl("/job", "--data", "")
    same(got.status, 200)
    cookies = got.headers("Set-Cookie")
    assert COOKIE.fullmatch(cookies[0]) and cookies[1].startswith("__txids=jobs.db="), got
    first, _, others = got.header("Litefs-Txid").partition("&")
    assert len(first) == 16 and others.startswith("jobs.db="), got
    same(replica.curl("/entries", "--header", f"Litefs-Txid: {first}&{others}").node, replica.name)
    ahead = int(others[-16:], 16) + 1000
    same(replica.curl("/entries", "--header", f"Litefs-Txid: {first}&jobs.db={ahead:016x}").node, primary.name)


@shows("http", "6 WebSockets: on the primary, on a replica, and to the primary for always-forward")
def websockets(cluster):
    primary, replica = cluster.pair()
    messages = [b"x", os.urandom(70_000), os.urandom(1 << 20)]
    for node, path, wanted in ((primary, "/chat", primary), (replica, "/chat", replica), (replica, "/live", primary)):
        greeting, echoes = websocket(node.proxy.replace("http", "ws") + path, messages)
        same((greeting, echoes == messages), (wanted.name, True), path)


@shows("http", "6 any other upgrade, with half-close")
def other_upgrades(cluster):
    for node in cluster.pair():
        with socket.create_connection((node.address, 8080), timeout=60) as client:
            client.sendall(b"GET /shout HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: shout/1\r\n\r\n")
            received = b""
            while b"\r\n\r\n" not in received:
                received += client.recv(4096)
            assert received.startswith(b"HTTP/1.1 101"), received
            client.sendall(b"half a word")
            client.shutdown(socket.SHUT_WR)
            said = b""
            while piece := client.recv(4096):
                said += piece
            same(said, b"HALF A WORD")


@shows("http", "6 server-sent events arrive one by one")
def events(cluster):
    _, replica = cluster.pair()
    stream = start_curl(replica.proxy + "/events")
    seen = b""
    while b"first" not in seen:
        piece = os.read(stream.stdout.fileno(), 4096)
        assert piece, seen
        seen += piece
    assert b"second" not in seen
    same(replica.curl("/release").status, 200)
    rest, _ = stream.communicate(timeout=60)
    assert b"second" in rest and stream.returncode == 0, rest


@shows("http", "7 hop-by-hop fields stay on their hop; the rest, Host included, is kept")
def hop_by_hop(cluster):
    primary, replica = cluster.pair()
    sent = ("--header", "Connection: X-Secret, close", "--header", "X-Secret: 1", "--header", "TE: gzip", "--header", "Keep-Alive: 5",
            "--header", "X-Kept: yes", "--header", "Host: shop.example")
    for node, path in ((primary, "/echo"), (replica, "/always/echo")):
        _, fields, got = node.echo(path, *sent)
        seen = dict(fields)
        same((seen.get("x-secret"), seen.get("te"), seen.get("keep-alive"), seen["x-kept"], seen["host"]),
             (None, None, None, "yes", "shop.example"))
        same(seen["via"].count("litefs"), 1 if node is primary else 2, "hops in Via")
        assert got.header("Via").count("litefs") == seen["via"].count("litefs"), got


@shows("http", "7 X-Forwarded-*, Forwarded: set, and believed only from trusted-proxies")
def forwarded(cluster):
    primary, _ = cluster.pair()
    claim = ("--header", "X-Forwarded-For: 192.0.2.1", "--header", "X-Forwarded-Proto: https", "--header", "Host: shop.example")
    _, fields, _ = primary.echo("/echo", *claim)
    seen, client = dict(fields), f"{cluster.subnet}.254"
    same((seen["x-forwarded-for"], seen["x-forwarded-proto"], seen["x-forwarded-host"]),
         (f"192.0.2.1, {client}", "https", "shop.example"), "from a trusted peer")
    assert f"for={client}" in seen["forwarded"], seen
    # The node itself is not in trusted-proxies of this run.
    got = curl("http://127.0.0.1:8080/echo", *claim, space=primary.space)
    seen = dict((name, value) for name, value in json.loads(got.body)["headers"])
    same((seen["x-forwarded-for"], seen["x-forwarded-proto"]), ("127.0.0.1", "http"), "from another")


@shows("http", "7 no re-encoding; HEAD, 204 and 304 as the application gave them; 103 passed on")
def bodies_kept(cluster):
    for node in cluster.pair():
        got = node.curl("/gzip")
        same((got.header("Content-Encoding"), gzip.decompress(got.body)), ("gzip", b"packed by the application"))
        head = node.curl("/entries?limit=0", "--head")
        same((head.status, head.header("Content-Length"), head.body), (200, "2", b""))
        same((node.curl("/nothing").status, node.curl("/unchanged").status), (204, 304))
        hinted = node.curl("/hints")
        same((hinted.status, len(hinted.interim)), (200, 1))
        assert "103" in hinted.interim[0] and "</style.css>" in hinted.interim[0], hinted


@shows("http", "7 Expect: 100-continue is met when the body is wanted")
def expect(cluster):
    for node in cluster.pair():
        got = node.curl("/echo", "--header", "Expect: 100-continue", "--data", "wanted")
        same((got.status, json.loads(got.body)["body"]), (200, "wanted"))
        assert any("100" in head.split("\r\n")[0] for head in got.interim), got


@shows("http", "7 smuggling, too many or too long fields, too long targets are refused")
def refused(cluster):
    primary, _ = cluster.pair()
    both = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    with socket.create_connection((primary.address, 8080), timeout=60) as client:
        client.sendall(both)
        assert client.recv(4096).startswith(b"HTTP/1.1 400"), "both framings"
    many = [part for index in range(200) for part in ("--header", f"X-{index}: 1")]
    same(primary.curl("/echo", *many).status, 431)
    same(primary.curl("/echo", "--http2-prior-knowledge", *many).status, 431)
    same(primary.curl("/echo", *(part for i in range(10) for part in ("--header", f"X-{i}: {'v' * 8000}"))).status, 431)
    same(primary.curl("/" + "a" * 20_000).status, 414)


@shows("http", "7 a client that hangs up cancels the request; a broken answer is not passed off as complete")
def hang_up(cluster):
    _, replica = cluster.pair()
    leaving = start_curl(replica.proxy + "/until-gone?mark=leaving")
    replica.marked("leaving")
    leaving.send_signal(signal.SIGKILL)
    leaving.wait()
    same(json.loads(replica.curl("/gone").body), True, "the application has noticed")
    for path in ("/die",):
        got = replica.curl(path)
        assert got.code != 0, got
    same(replica.curl("/entries").status, 200)


@shows("http", "8 an application's own fly-replay is performed, body included")
def app_replays(cluster):
    primary, replica = cluster.pair()
    for how in ("region=primary", f"instance={primary.name}", "elsewhere=true"):
        for path, arguments, body in (("/replay", (), ""), ("/raw/replay", ("--data", "the body"), "the body")):
            got = replica.curl(f"{path}?how={how}", *arguments)
            same((got.status, got.node), (200, primary.name), how)
            seen = json.loads(got.body)
            same((seen["body"], seen["source"]), (body, f"instance={replica.name};state=captured"))
    other = replica.curl("/replay?how=app=other")
    same((other.status, other.header("fly-replay")), (200, "app=other;state=captured"), "not for this cluster")


@shows("http", "9 a write that was captured beyond the lease is answered as unconfirmed")
def output_gate(cluster):
    primary, _ = cluster.pair()
    write = start_curl(primary.proxy + "/until-fenced", "--data", "")
    wait_until(lambda: primary.metric("litefs_proxy_in_flight") == 1, 60, "the write is under way")
    cluster.lose_consul()
    try:
        got = answer(write)
    finally:
        cluster.find_consul()
    same((got.status, got.header("Litefs-Outcome"), got.header("Retry-After")), (503, "unconfirmed", "1"))
    cluster.pair()


@shows("http", "10 every decision is counted, and said in one line")
def observability(cluster):
    _, replica = cluster.pair()
    replica.curl("/entries?marked", *ENTRY)
    for decision in ("local", "waited", "forwarded", "passthrough", "health", "timeout", "no_primary", "app_replayed", "bad_request"):
        counted = sum(node.metric(f'litefs_proxy_requests_total{{decision="{decision}"}}') for node in cluster.nodes)
        assert counted > 0, f"{decision} is not counted"
    for name in ("wait_seconds_count", "upstream_seconds_count"):
        assert replica.metric(f"litefs_proxy_{name}") > 0, name
    line = [line for line in replica.lines() if "method=POST" in line and "decision=" in line][-1]
    for part in ("path=", "client=", 'decision="forwarded"', "reason=", "status=303", "elapsed_us="):
        assert part in line, line


@shows("http", "11 HTTP/2 without TLS, several requests on one connection, on primary and replica")
def http2(cluster):
    for node in cluster.pair():
        statuses, output = nghttp(f"{node.proxy}/entries?limit=1", "-m", "20")
        same(statuses, [200] * 20, output[-2000:])
        got = node.curl("/entries", "--http2-prior-knowledge", *ENTRY)
        same((got.protocol, got.status), ("HTTP/2", 303))
        assert got.token, got


@shows("http", "6 slow and idle clients are closed, and harm nobody")
def slow_clients(cluster):
    primary, _ = cluster.pair()
    for begin in (b"", b"GET / HTTP/1.1\r\nHost: a\r\nX-", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x00\xff garbage \r\n\r\n"):
        with socket.create_connection((primary.address, 8080), timeout=60) as client:
            client.sendall(begin)
            try:
                while client.recv(4096):
                    pass
            except ConnectionResetError:
                pass
    same(primary.curl("/entries").status, 200)


@shows("http", "11 a stopping node ends what it began, and takes no more")
def graceful(cluster):
    _, replica = cluster.pair()
    begun = start_curl(replica.proxy + "/slow?mark=begun")
    replica.marked("begun")
    os.kill(replica.process.pid, signal.SIGTERM)
    wait_until(lambda: replica.curl("/entries").code == 7, 60, "no more connections")
    # Only the application itself can be reached now.
    curl("http://127.0.0.1:8081/release", space=replica.space)
    got = answer(begun)
    same((got.status, got.body), (200, b"at last\n"))
    same(replica.process.wait(60), 0, "the node's exit code")
    replica.process = None
    cluster.start(replica)


@shows("config", "bad values: exit code 2 and one line with the key, before anything is mounted")
def bad_values(cluster):
    node = cluster.nodes[0]
    for key, line in (("proxy.addr", 'addr: "8080"'), ("proxy.db", 'db: ""'), ("proxy.forward-mode", 'forward-mode: "ftp"'),
                      ("proxy.passthrough", 'passthrough: ["static/*"]'), ("proxy.advertise-url", 'advertise-url: "x"'),
                      ("proxy.trusted-proxies", 'trusted-proxies: ["10.0.0.0/40"]'), ("proxy.max-lag", 'max-lag: "soon"')):
        settings = {"addr": 'addr: ":8080"', "target": 'target: "a:1"', "db": 'db: "d"'}
        settings[key.partition(".")[2]] = line
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
            file.write(f"fuse: {{dir: {node.mount}}}\ndata: {{dir: {node.data}}}\nlease: {{type: static}}\nproxy:\n  "
                       + "\n  ".join(settings.values()) + "\n")
            file.flush()
            done = subprocess.run([cluster.binary, "mount", "-config", file.name], capture_output=True, text=True, timeout=60,
                                  stdin=subprocess.DEVNULL)
        said = done.stderr.strip().splitlines()
        same((done.returncode, len(said)), (2, 1), f"{key}: {done.stderr}")
        assert key in said[0], said
        assert not os.path.ismount(node.mount)


@shows("config", "an address that is taken: exit code 1, and a line that names proxy.addr")
def address_taken(cluster):
    node = cluster.nodes[0]
    with node.run("python3", "-m", "http.server", "8080", "--bind", "0.0.0.0"):
        wait_until(lambda: node.curl("/").code == 0, 60, "something else listens")
        node.start()
        same(node.process.wait(60), 1, "exit code")
        node.process = None
    assert any("proxy.addr" in line and ":8080" in line for line in node.lines()[-20:]), node.lines()[-20:]
    assert not os.path.ismount(node.mount)
