"""The nodes on which workers die before they have done anything: they are avoided."""

from collections import Counter
from collections.abc import Set

MOST_DEATHS = 5
"""After so many such deaths in a row, no further worker is started on a node."""


class Nodes:
    """Counts the workers that die on each node, by its id, before their first report.

    The death of a worker that has begun a pack may be the pack's own doing. It is held against its node only if no
    worker on this node has ever reported while workers on another one have.
    """

    def __init__(self) -> None:
        self._starts_failed: Counter[str] = Counter()
        self._packs_failed: Counter[str] = Counter()
        self._proven: set[str] = set()
        self._avoided: dict[str, None] = {}

    @property
    def avoided(self) -> tuple[str, ...]:
        """The nodes on which no worker is started any more, in the order of their discovery."""
        return tuple(self._avoided)

    def reported(self, node: str) -> None:
        """A worker on the node has reported."""
        self._proven.add(node)
        for counts in (self._starts_failed, self._packs_failed):
            del counts[node]

    def start_failed(self, node: str) -> bool:
        """A worker on the node has died while it started. Returns True if the node is avoided from now on."""
        self._starts_failed[node] += 1
        return self._judge(node)

    def first_pack_failed(self, node: str) -> bool:
        """A worker on the node has died in its first pack, before its first report. Returns True if the node is avoided
        from now on."""
        self._packs_failed[node] += 1
        return self._judge(node)

    def _judge(self, node: str) -> bool:
        deaths = self._starts_failed[node]
        if node not in self._proven and self._proven:
            deaths += self._packs_failed[node]
        if deaths < MOST_DEATHS or node in self._avoided:
            return False
        self._avoided[node] = None
        return True

    def are_all_avoided(self, nodes: Set[str]) -> bool:
        """True if no worker can be started on any of these nodes."""
        return bool(nodes) and nodes <= self._avoided.keys()
