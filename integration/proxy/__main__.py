"""Shows every promise of the proxy on real nodes: prints one line per promise; the exit code is 0 when all hold.

    LITEFS=target/release/litefs PYTHONPATH=integration /usr/bin/python3 -m proxy [--pairs 10000] [--only WORD]

Needs root, curl, nghttp2-client and python3-websockets; fetches Consul from Debian (tests/consul.sh).
"""

import argparse
import sys
import time
import traceback

from . import pairs, points, rows  # noqa: F401: they add their checks
from .checks import CHECKS
from .sites import Sites

COMMON = """\
  db: "guestbook.db"
  passthrough: ["/raw/*"]
  always-forward: ["/always/*", "/live"]
  trusted-proxies: ["10.0.0.0/8"]
  debug: true
"""
SHORT = """\
  max-lag: "2s"
  replica-wait: "3s"
  primary-redirect-timeout: "3s"
  target-timeout: "3s"
  read-header-timeout: "3s"
  idle-timeout: "6s"
"""
LONG = '  primary-redirect-timeout: "60s"\n  replica-wait: "60s"\n'
# Keys and environment of every phase.
PHASES = {
    "http": (COMMON + SHORT, {}),
    "fly": (COMMON + SHORT, {"FLY_APP_NAME": "demo"}),
    "redirect": (COMMON + SHORT + '  forward-mode: "redirect"\n', {}),
    "databases": (COMMON.replace('"guestbook.db"', '["guestbook.db", "jobs.db"]') + SHORT, {}),
    "failover": (COMMON + LONG, {}),
    "down": (COMMON + SHORT, {"PORT": "8082"}),
    "config": (None, None),
}


def show(cluster, promise, check):
    """One check; whether it holds."""
    begin = time.monotonic()
    try:
        check(cluster)
    except Exception:
        print(f"FAIL  {promise} ({time.monotonic() - begin:.1f} s)\n{traceback.format_exc()}", flush=True)
        return False
    print(f"ok    {promise} ({time.monotonic() - begin:.1f} s)", flush=True)
    return True


def run_checks(word):
    """Phase by phase; the names of the promises that do not hold."""
    failed = []
    with Sites(2) as cluster:
        for phase, (keys, environment) in PHASES.items():
            checks = [check for check in CHECKS if check[0] == phase and word in check[1]]
            if not checks:
                continue
            print(f"--- {phase}", flush=True)
            if keys is not None:
                cluster.restart(keys, environment)
            else:
                cluster.stop()
            before = len(failed)
            failed += [promise for _, promise, check in checks if not show(cluster, promise, check)]
            if len(failed) > before:
                print(cluster.logs(), file=sys.stderr)
    return failed


def run_pairs(count, stops):
    """Whether no read was stale."""
    with Sites(3) as cluster:
        cluster.restart(COMMON.replace("debug: true", "debug: false"))
        if show(cluster, f"{count} write-then-read pairs on three nodes, primaries stopped",
                lambda cluster: pairs.run(cluster, count, stops=stops)):
            return True
        print(cluster.logs(), file=sys.stderr)
        return False


def main():
    parser = argparse.ArgumentParser(prog="proxy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000, help="write-then-read pairs; 0: none")
    parser.add_argument("--stops", type=int, help="how often a primary is stopped meanwhile (default: again and again)")
    parser.add_argument("--only", default="", metavar="WORD", help="only promises with this word; no pairs unless --pairs")
    arguments = parser.parse_args()
    failed = run_checks(arguments.only)
    if arguments.pairs and not arguments.only and not run_pairs(arguments.pairs, arguments.stops):
        failed.append("pairs")
    print(f"proxy: {len(failed)} failed" if failed else "proxy: all hold")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
