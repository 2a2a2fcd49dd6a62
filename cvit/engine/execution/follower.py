"""The protocol of a follower: an object, such as a display, that is told about every pack and every report."""

from collections.abc import Iterable
from typing import Protocol

from cvit.engine.execution.queue import StagePack
from cvit.results import Report


class Follower(Protocol):
    """Follows the stages of a plan while they are trained. Packs are identified by name."""

    def started(self, name: str, pack: StagePack) -> None:
        """A worker has begun a pack."""
        ...

    def waiting(self, line: str) -> None:
        """A worker is free, and there is nothing for it but stages that another driver trains, as the line says."""
        ...

    def reported(self, name: str, key: str, report: Report) -> None:
        """A stage has reached a checkpoint or its end, and this is recorded."""
        ...

    def ended(self, name: str, lines: Iterable[str] = ()) -> None:
        """A worker has finished a pack, or given it up; `lines` then say what follows."""
        ...

    def noticed(self, line: str) -> None:
        """Something happened that the user has to know, such as a worker that hangs."""
        ...
