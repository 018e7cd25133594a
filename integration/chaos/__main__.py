"""Runs scenarios and prints a table; the exit code is 0 when every one passed."""

import argparse
import sys
import time
import traceback

from . import docker, local
from .checker import Verdict, check
from .load import Load
from .scenarios import SCENARIOS

SHORT = ("cold-start", "stop-primary", "kill-primary")


def run(scenario, backend, seed, logs):
    """One scenario on a fresh cluster."""
    begin = time.monotonic()
    with backend.Cluster(retention=scenario.options.get("retention", "10m")) as cluster:
        verdict = Verdict()
        try:
            if scenario.setup:
                scenario.setup(cluster)
            cluster.start()
            load = Load([node.proxy for node in cluster.nodes], seed).start()
            try:
                figures = scenario.action(cluster, load, verdict) or {}
            finally:
                load.stop()
            checked = check(cluster, load, scenario.clean)
            verdict.failures += checked.failures
            verdict.figures = {**figures, **checked.figures}
        except Exception:
            verdict.require(False, traceback.format_exc())
        if logs or not verdict.passed:
            print(cluster.logs(), file=sys.stderr)
    verdict.figures["seconds"] = time.monotonic() - begin
    return verdict


def main():
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--backend", choices=["local", "docker"], default="local")
    parser.add_argument("--only", action="append", choices=[s.name for s in SCENARIOS], help="may be given again")
    parser.add_argument("--short", action="store_true", help="only " + ", ".join(SHORT))
    parser.add_argument("--logs", action="store_true", help="the nodes' logs of passed scenarios, too")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    names = arguments.only or (SHORT if arguments.short else [s.name for s in SCENARIOS])
    backend = {"local": local, "docker": docker}[arguments.backend]
    results = []
    for scenario in SCENARIOS:
        if scenario.name in names:
            verdict = run(scenario, backend, arguments.seed, arguments.logs)
            results.append((scenario, verdict))
            figures = " ".join(
                f"{key}={value:.2f}" if isinstance(value, float) else f"{key}={value}"
                for key, value in verdict.figures.items()
            )
            print(f"| {scenario.name:<22} | {'pass' if verdict.passed else 'FAIL'} | {figures} |", flush=True)
            for failure in verdict.failures:
                print(f"    {failure}", flush=True)
    failed = sum(not verdict.passed for _, verdict in results)
    print(f"{len(results) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
