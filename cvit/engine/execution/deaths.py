"""Deaths of workers, counted for the stages that they trained: a stage may have killed its worker again and again."""

import math
import time
from collections import Counter
from collections.abc import Set

AT_ONCE_S = 2.0
"""Workers that die within this time of each other share a cause, which is not their stages."""
MOST_AT_ONCE = 2
"""So many such deaths of a stage do not count: it may be that several stages kill their workers at the same time."""


class Deaths:
    """The number of times that the worker of each stage has died since the stage's last checkpoint."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._not_counted: Counter[str] = Counter()
        self._died_at = -math.inf
        self._died_together, self._counted_last = set[str](), set[str]()

    def of(self, key: str) -> int:
        """The deaths that count for a stage."""
        return self._counts[key]

    def forget(self, key: str) -> None:
        """A stage has reached a checkpoint, so earlier deaths no longer count."""
        del self._counts[key], self._not_counted[key]

    def add(self, keys: Set[str]) -> None:
        """The worker of these stages has died. That counts unless another worker died at the same time; then the death
        of the other one does not count either."""
        now = time.monotonic()
        is_at_once = now - self._died_at <= AT_ONCE_S and not keys & self._died_together
        self._died_together = keys | (self._died_together if is_at_once else set[str]())
        self._counts.update(keys)
        if is_at_once:
            for key in self._counted_last | keys:
                if self._counts[key] and self._not_counted[key] < MOST_AT_ONCE:
                    self._not_counted[key] += 1
                    self._counts[key] -= 1
        self._died_at, self._counted_last = now, set[str]() if is_at_once else set(keys)
