"""The time that a sweep spends on training, and on everything around it."""

import time
from dataclasses import dataclass

from sweeps.engine.wording import duration


@dataclass
class Timing:
    """Counters of one session. Workers report how long each of their calls took and how long they waited before it."""

    started_at: float
    start_up_s: float = 0.0
    busy_s: float = 0.0
    waited_s: float = 0.0
    _is_running: bool = False

    def add(self, busy_s: float, waited_s: float) -> None:
        """Adds a call of a worker, and the worker's wait since its previous call."""
        if not self._is_running:
            self._is_running = True
            self.start_up_s = time.monotonic() - self.started_at - busy_s
        self.busy_s += busy_s
        self.waited_s += waited_s

    def line(self, num_trials: int) -> str:
        """The closing line.

        Args:
            num_trials: trials that ended in this session.
        """
        total = duration(time.monotonic() - self.started_at)
        if not self._is_running:
            return f"{total}, nothing trained"
        share = self.busy_s / (self.busy_s + self.waited_s)
        overhead = f", {self.waited_s / num_trials:.3f} s a trial" if num_trials else ""
        return (
            f"{total}: start-up {self.start_up_s:.1f} s, then workers trained {100 * share:.1f} % of the time; "
            f"overhead {self.waited_s:.2f} s in all{overhead}"
        )
