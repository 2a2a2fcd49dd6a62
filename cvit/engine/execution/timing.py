"""The time that a sweep spends on training, and on everything around it."""

import threading
import time
from dataclasses import dataclass, field

from cvit.engine.wording import duration

LEAST_LOSS_S = 0.05
"""Less than this is not worth a word in the closing line."""


@dataclass
class Timing:
    """Counters of one session. Workers report how long each of their calls took and how long they waited before it.

    Time is lost to faults if a worker died or hung before it reported, and while a worker that died has no successor
    although stages are left for it. Packs are identified by name.

    Attributes:
        capacity: the largest number of workers so far.
        begun: set once a worker has trained.
    """

    started_at: float
    start_up_s: float = 0.0
    busy_s: float = 0.0
    waited_s: float = 0.0
    lost_s: float = 0.0
    capacity: int = 1
    begun: threading.Event = field(default_factory=threading.Event)
    _is_running: bool = False
    _num_missing: int = 0
    _looked_at: float = 0.0
    _reported_at: dict[str, float] = field(default_factory=dict)
    _silent: set[str] = field(default_factory=set)

    def add(self, busy_s: float, waited_s: float) -> None:
        """Adds a call of a worker, and the worker's wait since its previous call."""
        if not self._is_running:
            self._is_running = True
            self.begun.set()
            self.start_up_s = time.monotonic() - self.started_at - busy_s
        self.busy_s += busy_s
        self.waited_s += waited_s

    def started(self, name: str) -> None:
        """A worker has begun a pack."""
        self._reported_at[name] = time.monotonic()
        self.capacity = max(self.capacity, len(self._reported_at))
        self._num_missing = min(self._num_missing, self.capacity - len(self._reported_at))

    def reported(self, name: str) -> None:
        """A call of a worker is over, and added."""
        self._reported_at[name] = time.monotonic()
        self._silent.discard(name)

    def silent(self, name: str) -> None:
        """A worker seems to hang."""
        self._silent.add(name)

    def ended(self, name: str) -> None:
        """A worker has finished a pack."""
        self._reported_at.pop(name, None)

    def failed(self, name: str) -> None:
        """A worker has given a pack up, and is gone. What it did since its last report is lost."""
        now = time.monotonic()
        self.lost_s += now - self._reported_at.pop(name, now)
        self._silent.discard(name)
        if not self._num_missing:
            self._looked_at = now
        self._num_missing = min(self._num_missing + 1, self.capacity - len(self._reported_at))

    def looked(self, num_left: int) -> None:
        """Adds the time since the last look for every worker that is missing.

        Args:
            num_left: the number of stages and packs that wait for a worker, or rest after a fault.
        """
        now = time.monotonic()
        self.lost_s += min(self._num_missing, num_left) * (now - (self._looked_at or now))
        self._looked_at = now

    def line(self, num_trials: int) -> str:
        """The closing line.

        Args:
            num_trials: trials that ended in this session.
        """
        now = time.monotonic()
        total = duration(now - self.started_at)
        lost_s = self.lost_s + sum(now - self._reported_at.get(name, now) for name in self._silent)
        lost = f"; lost to faults {duration(lost_s)} of a worker" if lost_s >= LEAST_LOSS_S else ""
        if not self._is_running:
            return f"{total}, nothing trained{lost}"
        share = self.busy_s / (self.busy_s + self.waited_s + lost_s)
        overhead = f", {self.waited_s / num_trials:.3f} s a trial" if num_trials else ""
        return (
            f"{total}: start-up {self.start_up_s:.1f} s, then workers trained {100 * share:.1f} % of the time; "
            f"overhead {self.waited_s:.2f} s in all{overhead}{lost}"
        )
