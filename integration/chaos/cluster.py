"""What both kinds of cluster share: starting, waiting, asking who is primary."""

import json

from .checker import wait_until
from .web import Unanswered, request


# Prints the pages of every LTX file below $1, by way of the scratch file $2; $3 is litefs. A record alone does not make a whole
# database, so the checksum that `apply` compares at the end is of no interest.
PAGES_SCRIPT = '''
find "$1" -name "*.ltx" | while read -r file; do
  rm -f "$2"
  "$3" ltx apply --db "$2" "$file" >/dev/null 2>&1
  cat "$2"
done
rm -f "$2"
'''


class ClusterBase:
    """Nodes with `start`, `api` and `proxy`; how they are made is up to the backend."""

    nodes = ()
    # Of records that nodes had set aside which are no more.
    pages_kept = b""

    def start(self, *nodes):
        """Starts nodes (all by default) and waits until each of them is ready to serve."""
        for node in nodes or self.nodes:
            node.start()
        self.wait_ready(nodes or self.nodes)

    def wait_ready(self, nodes, timeout=90):
        """Waits until the nodes are healthy and their guestbooks answer."""
        for node in nodes:
            wait_until(lambda node=node: answers(node.proxy + "/litefs/health"), timeout, f"health of {node.name}")
            wait_until(lambda node=node: answers(node.proxy + "/entries?limit=1"), timeout, f"guestbook on {node.name}")

    def primary(self, timeout=60):
        """The node that is primary now."""
        def find():
            return next((node for node in self.nodes if info(node).get("isPrimary")), None)
        return wait_until(find, timeout, "a primary")

    def replicas(self):
        """The others."""
        primary = self.primary()
        return [node for node in self.nodes if node is not primary]


def answers(url, part=b""):
    """Whether a GET gives 200 with `part` in it."""
    try:
        answer = request(url, timeout=5)
    except Unanswered:
        return False
    return answer.status == 200 and part in answer.body


def info(node):
    """`GET /info` of a node; empty while it does not answer."""
    try:
        return json.loads(request(node.api + "/info", timeout=3).body)
    except (Unanswered, ValueError):
        return {}


def requests_in_flight(node):
    """How many requests a node's proxy is serving."""
    for line in request(node.api + "/metrics", timeout=5).body.decode().splitlines():
        if line.startswith("litefs_proxy_in_flight "):
            return int(float(line.split()[1]))
    return 0
