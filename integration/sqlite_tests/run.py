#!/usr/bin/env python3
"""SQLite's own tests on a mounted primary and on the bare disk: nothing may fail only on the mount.

    run.py [--litefs PATH] [--dir FOLDER] [short | full | NAME.test …]

Builds the test programs from Debian's source package (build.sh), starts a node, runs every selected file of the TCL suite
in both places, and mptest. Tests that may differ are listed with their reason in allowed.txt. Needs root.
"""

import argparse
import fnmatch
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
# Without the files in which how a wal_checkpoint ends is most of what is tested.
SHORT = ["select1", "insert", "update", "delete", "trans", "trans2", "savepoint", "wal2", "journal1", "jrnlmode", "lock",
         "vacuum", "autovacuum", "incrvacuum", "attach", "backup", "rollback"]
FULL = SHORT + [
    "pager1", "wal", "wal3", "wal4", "wal5", "wal6", "wal7", "wal8", "wal9", "walbak", "walblock", "walcksum", "walcrash2", "walfault2",
    "walhook", "walmode", "walnoshm", "waloverwrite", "walpersist", "walprotocol", "walro", "walro2", "walrofault", "walsetlk", "walshared", "walthread",
    "jrnlmode2", "jrnlmode3", "journal2", "journal3", "lock2", "lock3", "lock4", "lock5", "lock6", "lock7", "exclusive", "exclusive2",
    "vacuum2", "vacuum3", "vacuum4", "vacuum5", "vacuum6", "autovacuum2", "incrvacuum2", "incrvacuum3", "attach2", "attach3",
    "attach4", "backup2", "backup4", "backup5", "pager2", "pager3", "pager4", "pagesize", "trans3", "savepoint2",
    "savepoint4", "savepoint5", "savepoint6", "savepoint7", "memsubsys1", "mmap1", "mmap2", "mmap3", "mmap4", "superlock",
    "tempdb", "tkt2854", "corrupt", "corrupt2", "corrupt3", "crash", "io", "sync", "sync2", "stmt", "temptable", "misc1", "misc2",
    "index", "index2", "fts3aa", "fts4aa", "json101", "alter", "alter2", "trigger1", "trigger2", "view", "where", "join",
    "in", "like", "types", "blob", "bigrow", "capi2", "capi3", "busy", "busy2", "delete2", "delete3", "fkey1", "fkey2", "shared",
    "shared2", "thread1", "thread2", "nolock", "oserror", "pragma", "pragma2", "cache", "dbstatus", "rdonly", "8_3_names",
]
FILE_SECONDS_MAX = 600


class Node:
    """A primary in a scratch folder."""

    def __init__(self, binary, folder):
        self.folder, self.mount = folder, os.path.join(folder, "mount")
        os.mkdir(self.mount)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        config = os.path.join(folder, "litefs.yml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(
                f"data: {{dir: {folder}/data}}\nfuse: {{dir: {self.mount}}}\nhttp: {{addr: '127.0.0.1:{self.port}'}}\n"
                f"lease: {{type: static, candidate: true, advertise-url: 'http://127.0.0.1:{self.port}'}}\n"
                "tracing: {enabled: false}\n"
            )
        self.log = os.path.join(folder, "log")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [binary, "mount", "-config", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        end = time.monotonic() + 60
        while not self.is_primary():
            if time.monotonic() > end or self.process.poll() is not None:
                with open(self.log, encoding="utf-8", errors="replace") as log:
                    sys.exit(f"the node did not start:\n{log.read()}")
            time.sleep(0.1)

    def is_primary(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/info", timeout=5) as answer:
                return b'"isPrimary":true' in answer.read().replace(b" ", b"")
        except OSError:
            return False

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def clear(folder):
    """Removes what a test file left."""
    ours = (".lag", ".primary")
    for name in sorted(os.listdir(folder), reverse=True):  # a database after its journal and WAL
        if name in ours or name.endswith("-pos"):
            continue
        path = os.path.join(folder, name)
        try:
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.remove(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            print(f"    {path} stays: {error}")


# What `wal_checkpoint` answers on the mount, where the node checkpoints: busy.
CHECKPOINT_RESULT, CHECKPOINT_REFUSED = re.compile(r"\b[01] -?\d+ -?\d+"), "1 -1 -1"


class Outcome:
    """What one test file did."""

    def __init__(self, output):
        self.failed = {}
        self.ended = re.search(r"^\d+ errors out of \d+ tests", output, re.M)
        expected = dict(re.findall(r"^! (\S+) expected: (.*)$", output, re.M))
        got = dict(re.findall(r"^! (\S+) got: +(.*)$", output, re.M))
        failures = re.search(r"^!Failures on these tests: (.*)$", output, re.M)
        for name in {*expected, *(failures.group(1).split() if failures else [])}:
            refused = CHECKPOINT_RESULT.sub(CHECKPOINT_REFUSED, expected.get(name, ""))
            if name not in expected or got.get(name) != refused:
                self.failed[name] = f"expected {expected.get(name)}, got {got.get(name)}"
        passed = len(re.findall(r"\.\.\. Ok$", output, re.M))
        self.text = self.ended.group(0) if self.ended else f"ends early, after {passed} tests"
        self.last_words = output[-2000:]


def run_file(source, name, folder):
    """Runs one file of tests in a folder."""
    command = [os.path.join(source, "testfixture"), os.path.join(source, "test", name + ".test"), f"--testdir={folder}"]
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=FILE_SECONDS_MAX,
            cwd=tempfile.gettempdir(),
        )
    except subprocess.TimeoutExpired as error:
        return Outcome((error.stdout or b"").decode("utf-8", "replace") + "\ntimed out")
    return Outcome(result.stdout + result.stderr)


def compare(name, disk, mount, patterns):
    """Prints one line; whether the mount is as good as the disk."""
    def allowed(test):
        return any(fnmatch.fnmatch(test, pattern) for pattern in patterns)
    if disk.ended and not mount.ended and not allowed(name):
        print(f"{name}: FAIL, did not end on the mount:\n{mount.last_words}", flush=True)
        return False
    only = sorted(test for test in mount.failed if test not in disk.failed and not allowed(test))
    print(f"{name}: {'FAIL only on the mount: ' + ' '.join(only) if only else 'ok'} ({mount.text}; disk: {disk.text})", flush=True)
    for test in only:
        print(f"    {test}: {mount.failed[test]}", flush=True)
    return not only


def run_mptest(source, folder):
    """SQLite's multi-process test; True when it says 0 errors."""
    script = os.path.join(source, "mptest", "multiwrite01.test")
    result = subprocess.run(
        [os.path.join(source, "mptester"), "mp.db", script], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=FILE_SECONDS_MAX,
    )
    return result.returncode == 0 and "0 errors" in result.stdout + result.stderr, (result.stdout + result.stderr)[-1000:]


def allowed():
    """Patterns of tests that may fail on the mount only; each line: pattern, then its reason."""
    with open(os.path.join(HERE, "allowed.txt"), encoding="utf-8") as file:
        return [line.split()[0] for line in file if line.strip() and not line.startswith("#")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--litefs", default=os.path.join(ROOT, "target", "release", "litefs"))
    parser.add_argument("--dir", default=None, help="where the scratch folder is made")
    parser.add_argument("selection", nargs="*", default=["short"])
    arguments = parser.parse_args()
    names = []
    for item in arguments.selection:
        names += {"short": SHORT, "full": FULL}.get(item, [item.removesuffix(".test")])
    source = subprocess.run([os.path.join(HERE, "build.sh")], check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]
    missing = [name for name in names if not os.path.exists(os.path.join(source, "test", name + ".test"))]
    if missing:
        sys.exit(f"SQLite's source has no {' '.join(missing)}")
    patterns, wrong, ran = allowed(), 0, 0
    with tempfile.TemporaryDirectory(prefix="litefs-sqlite-", dir=arguments.dir) as scratch:
        bare = os.path.join(scratch, "bare")
        os.mkdir(bare)
        node = Node(arguments.litefs, scratch)
        try:
            for name in names:
                outcomes = []
                for folder in (bare, node.mount):
                    outcomes.append(run_file(source, name, folder))
                    clear(folder)
                ran += 1
                wrong += not compare(name, *outcomes, patterns)
            good, text = run_mptest(source, node.mount)
            ran, wrong = ran + 1, wrong + (not good)
            print(f"mptest: {'ok' if good else 'FAIL ' + text}")
        finally:
            status = node.stop()
        if status:
            print(f"the node ended with {status}")
            wrong += 1
    print(f"{ran - wrong} passed, {wrong} failed")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
