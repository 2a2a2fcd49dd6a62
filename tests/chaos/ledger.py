"""Counts the faults that sweeps under test suffered, and their outcome."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Ledger:
    """The ledger counts over all tests of a session."""

    faults: Counter[str] = field(default_factory=Counter)
    sweeps: int = 0
    sessions: int = 0
    trials: int = 0
    lost: int = 0
    doubled: int = 0
    retrained: int = 0
    failed_requests: int = 0
    time_lost_s: list[float] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Describes the outcome, for a person."""
        kinds = [f"  {count:4d}  {kind}" for kind, count in sorted(self.faults.items())]
        lines = [
            f"faults injected: {self.faults.total()}, in {self.sessions} sessions of {self.sweeps} sweeps",
            *kinds,
            f"trials: {self.trials}, lost: {self.lost}, doubled: {self.doubled}",
            f"stages trained twice: {self.retrained}",
            f"beside the faults, requests to a bucket that were cut or put off: {self.failed_requests}",
        ]
        if self.time_lost_s:
            times = sorted(self.time_lost_s)
            middle, longest = times[len(times) // 2], times[-1]
            lines.append(
                f"training time since the last checkpoint when a process was killed: median {middle:.1f} s, "
                f"longest {longest:.1f} s ({len(times)} stages)"
            )
        return lines


LEDGER = Ledger()
