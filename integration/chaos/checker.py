"""What must hold at the end of every scenario."""

import json
import os
import sqlite3
import tempfile
import time

from .web import Unanswered, request

DATABASE = "guestbook.db"


class Verdict:
    """Pass or fail, with the reasons and the figures."""

    def __init__(self):
        self.failures = []
        self.figures = {}

    def require(self, condition, text):
        if not condition:
            self.failures.append(text)

    @property
    def passed(self):
        return not self.failures


def wait_until(condition, timeout, what):
    """Waits for a condition; an error that names it when it does not come true."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {timeout:.0f} s")
        time.sleep(0.05)


def export(api):
    """The database of a node as bytes."""
    answer = request(f"{api}/export?name={DATABASE}", timeout=30)
    return answer.body if answer.status == 200 else None


def position(api):
    """Text of a node's position of the guestbook, None while it cannot say."""
    try:
        answer = request(f"{api}/info", timeout=5)
        return json.loads(answer.body).get("databases", {}).get(DATABASE, {}).get("pos")
    except (Unanswered, ValueError, AttributeError):
        return None


def equal_positions(nodes):
    """The one position of all nodes, or None."""
    positions = {position(node.api) for node in nodes}
    return positions.pop() if len(positions) == 1 and None not in positions else None


def rows(image):
    """(author, message) of every entry of an exported database, and what integrity_check says."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, DATABASE)
        with open(path, "wb") as file:
            file.write(image)
        connection = sqlite3.connect(path)
        try:
            sound = connection.execute("PRAGMA integrity_check").fetchone()[0]
            return {tuple(row) for row in connection.execute("SELECT author, message FROM entries")}, sound
        finally:
            connection.close()


def check(cluster, load, clean, heal_seconds=60):
    """Looks at everything; `clean` says that no primary was lost uncleanly, so that nothing at all may be missing."""
    verdict = Verdict()
    nodes = cluster.nodes
    try:
        wait_until(lambda: equal_positions(nodes), heal_seconds, "equal positions on all nodes")
    except TimeoutError as error:
        verdict.require(False, f"{error}: {[position(node.api) for node in nodes]}")
    present = None
    for node in nodes:
        try:
            image = export(node.api)
        except Unanswered as error:
            image = None
            verdict.require(False, str(error))
        verdict.require(image is not None, f"{node.name} exports the database")
        if image is None:
            continue
        found, sound = rows(image)
        verdict.require(sound == "ok", f"{node.name}: integrity_check says {sound}")
        verdict.require(present is None or found == present, f"{node.name} has other rows than the first node")
        present = found if present is None else present
    lost = [write for write in load.acknowledged if present is not None and (write.author, write.message) not in present]
    set_aside = sum(len(cluster.lost_and_found(node)) for node in nodes)
    verdict.require(not load.stale, f"{len(load.stale)} stale reads, e.g. {load.stale[:1]}")
    if clean:
        verdict.require(not lost, f"{len(lost)} acknowledged writes lost")
    else:
        verdict.require(not lost or set_aside, f"{len(lost)} acknowledged writes lost and nothing in lost+found")
    verdict.figures.update(
        acknowledged=len(load.acknowledged), reads=load.reads, refused=dict(load.refused), unanswered=load.unanswered,
        lost=len(lost), set_aside=set_aside,
    )
    return verdict
