"""Faults on a three-node cluster with Consul, under load, with a checker.

    python3 -m chaos --backend local            (network namespaces; from the folder integration/)
    python3 -m chaos --backend docker --only kill-primary

Each scenario starts a fresh cluster, puts load on it through the proxies of random nodes, does its harm, waits until the
cluster has healed, and lets the checker look: no acknowledged write lost outside the documented window, no stale read for
the one who wrote, equal positions and sound databases everywhere.
"""
