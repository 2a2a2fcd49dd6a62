"""The follower of an execution: it is told about every pack and every report, such as a display is."""

from collections.abc import Iterable
from typing import Protocol

from cvit.results import Report
from sweeps.engine.execution.queue import StagePack


class Follower(Protocol):
    """Follows the stages of a plan while they are trained. A pack is known by its name."""

    def started(self, name: str, pack: StagePack) -> None:
        """A worker has begun a pack."""
        ...

    def reported(self, name: str, key: str, report: Report) -> None:
        """A stage has come to a checkpoint or to its end; it is recorded."""
        ...

    def ended(self, name: str, lines: Iterable[str] = ()) -> None:
        """A worker is done with a pack, or has given it up; `lines` say what became of it then."""
        ...
