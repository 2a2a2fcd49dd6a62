"""A watch over workers: it notices those that have shown no sign of life for many times as long as usual."""

import time
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

SAID_AFTER, ENDED_AFTER = 10, 30
"""A worker is named after ten times the usual time between two signs of life, and ended after thirty times."""
LEAST_SAID_S, LEAST_ENDED_S = 60.0, 600.0
"""The least limits. They are generous, since to end a worker that does train costs what it did since its checkpoint."""
OTHER_KIND = 10
"""As long as nothing is known about one kind of work, ten times the limits of the slowest other kind hold for it."""
UNKNOWN_SAID_S, UNKNOWN_ENDED_S = 600.0, 6 * 3600.0
"""The limits as long as nothing at all is known: the first evaluation of a large model can take hours."""
LONGEST_STEP_S = 5.0
"""If this process itself slept between two looks, no more than this counts as silence of the workers."""


@dataclass(frozen=True)
class Silence:
    """A worker that has been silent for too long.

    Attributes:
        name: the name of its work.
        worker: the worker, as `Watch.started` was told it.
        seconds: how long it has been silent.
        most_s: how long it may be.
        is_over: True if it has to be ended, False if it has to be named.
    """

    name: str
    worker: Any
    seconds: float
    most_s: float
    is_over: bool


@dataclass
class _Work:
    kind: Hashable
    worker: Any
    silent_s: float = 0.0
    is_said: bool = False
    is_over: bool = False


class Watch:
    """Follows the work of all workers, identified by name. The usual time of a kind of work, such as packs of one
    shape, is the longest that was seen between two signs of life."""

    def __init__(self) -> None:
        self._works: dict[str, _Work] = {}
        self._longest_s: dict[Hashable, float] = {}
        self._looked_at = time.monotonic()

    def started(self, name: str, kind: Hashable, worker: Any = None) -> None:
        """A worker has begun some work."""
        self._works[name] = _Work(kind, worker)

    def moved(self, name: str) -> None:
        """The work has shown a sign of life."""
        work = self._works.get(name)
        if work is not None:
            self._longest_s[work.kind] = max(self._longest_s.get(work.kind, 0.0), work.silent_s)
            self._works[name] = _Work(work.kind, work.worker)

    def ended(self, name: str) -> None:
        """The work is over, or nobody does it any more."""
        self._works.pop(name, None)

    def silent_s(self, name: str) -> float:
        """The time since the last sign of life of some work."""
        return self._works[name].silent_s if name in self._works else 0.0

    @property
    def num_works(self) -> int:
        """The number of works that are being done."""
        return len(self._works)

    def look(self) -> list[Silence]:
        """The workers that have to be named or ended now, each once."""
        now = time.monotonic()
        step_s, self._looked_at = min(now - self._looked_at, LONGEST_STEP_S), now
        silences = []
        for name, work in self._works.items():
            work.silent_s += step_s
            said_s, ended_s = self._limits_s(work.kind)
            if work.silent_s >= ended_s and not work.is_over:
                work.is_over = work.is_said = True
                silences.append(Silence(name, work.worker, work.silent_s, ended_s, is_over=True))
            elif work.silent_s >= said_s and not work.is_said:
                work.is_said = True
                silences.append(Silence(name, work.worker, work.silent_s, ended_s, is_over=False))
        return silences

    def _limits_s(self, kind: Hashable) -> tuple[float, float]:
        """The times of silence after which work of this kind is named, and ended."""
        if not self._longest_s:
            return UNKNOWN_SAID_S, UNKNOWN_ENDED_S
        factor = 1 if kind in self._longest_s else OTHER_KIND
        usual_s = self._longest_s.get(kind, max(self._longest_s.values()))
        return (
            factor * max(LEAST_SAID_S, SAID_AFTER * usual_s),
            factor * max(LEAST_ENDED_S, ENDED_AFTER * usual_s),
        )
