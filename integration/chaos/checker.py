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


def unproved(cluster, lost):
    """The lost writes that are in no record that a node has set aside."""
    pages = cluster.pages_kept + b"".join(cluster.set_aside_pages(node) for node in cluster.nodes) if lost else b""
    # As a row of the table has it: author, message, time, one after another.
    return [write for write in lost if f"{write.author}{write.message}{time.gmtime().tm_year}-".encode() not in pages]


def accepted_beside(lost, survived):
    """Lost writes that were begun after a write of another node, in the history that prevailed, had been acknowledged: two nodes
    accepted writes at once. (A node that had become primary again in between would have a write of its own in that history.)"""
    def is_beside(write):
        own = max((other.begun for other in survived if other.node == write.node and other.at < write.begun), default=0)
        return any(other.node != write.node and own < other.begun and other.at < write.begun for other in survived)
    return [write for write in lost if is_beside(write)]


def check(cluster, load, clean, one_fault=True, heal_seconds=60):
    """Looks at everything; `clean` says that no primary was lost uncleanly, so that nothing at all may be missing, `one_fault` that
    at most one primary was lost."""
    verdict = Verdict()
    nodes = cluster.nodes
    try:
        wait_until(lambda: equal_positions(nodes), heal_seconds, "equal positions on all nodes")
    except TimeoutError as error:
        verdict.require(False, f"{error}: {[position(node.api) for node in nodes]}")
    present = same_rows(nodes, verdict)
    is_present = lambda write: present is None or (write.author, write.message) in present  # noqa: E731
    lost = [write for write in load.acknowledged if not is_present(write)]
    set_aside = sum(len(cluster.lost_and_found(node)) for node in nodes)
    verdict.require(not load.stale, f"{len(load.stale)} stale reads, e.g. {load.stale[:1]}")
    if clean:
        verdict.require(not lost, f"{len(lost)} acknowledged writes lost: {lost[:5]}")
    else:
        without = unproved(cluster, lost)
        verdict.require(not without, f"{len(without)} of {len(lost)} lost writes are not in lost+found: {without[:5]}")
    if one_fault:
        beside = accepted_beside(lost, [write for write in load.acknowledged if is_present(write)])
        verdict.require(not beside, f"{len(beside)} writes were accepted while another node was the primary: {beside[:5]}")
    verdict.figures.update(
        acknowledged=len(load.acknowledged), reads=load.reads, refused=dict(load.refused), unanswered=load.unanswered,
        lost=len(lost), set_aside=set_aside,
    )
    return verdict


def same_rows(nodes, verdict):
    """The rows of the nodes, which must be the same, in sound databases; `None` when no node gives its database."""
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
    return present
