"""The recorder passes the workers' reports to the progress, the journal, the queue and the follower, in this order."""

from collections.abc import Sequence
from typing import Any

from cvit.engine.execution.faults import Fault
from cvit.engine.execution.follower import Follower
from cvit.engine.execution.queue import StageQueue
from cvit.engine.planning.progress import Progress
from cvit.engine.recording.journal import Journal
from cvit.engine.recording.record import record_pruned, record_report
from cvit.machine import INTERVAL_S
from cvit.results import Point, Reports


class Recorder:
    """Records the reports of packs, which it identifies by name; it does not matter who trains them.

    Attributes:
        num_reports: the number of reports so far.
    """

    def __init__(self, progress: Progress, journal: Journal, queue: StageQueue, follower: Follower) -> None:
        self._progress, self._journal, self._queue, self._follower = progress, journal, queue, follower
        self.num_reports = 0
        self._measured_at: dict[str, int] = {}
        """The second of the last measurement of each machine."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks and schedulers, and this object with them, into snapshots that are never read.
        return {}

    def started(self, name: str) -> None:
        """A worker has begun the pack."""
        self._follower.started(name, self._queue.pack_named(name))

    def waiting(self, line: str) -> None:
        """A worker is free, and there is nothing for it but stages that another driver trains, as the line says."""
        self._follower.waiting(line)

    def reported(self, name: str, reports: Reports) -> None:
        """Stages of the pack have reached a checkpoint or their end.

        Raises:
            StorageError: the journal cannot be written any more.
        """
        self.num_reports += len(reports)
        for key, report in reports:
            record_report(self._progress, self._journal, key, report)
            self._queue.stage_advanced(key)
            if report.result is not None:
                self._queue.stage_done(key)
            self._follower.reported(name, key, report)

    def measured(self, load: tuple[str, Sequence[Point]] | None) -> None:
        """A worker has measured the load of its machine; of several workers there, one says enough."""
        if load is None:
            return
        node, points = load
        second = points[0][1]
        if second - self._measured_at.get(node, 0) >= INTERVAL_S:
            self._measured_at[node] = second
            self._journal.record_load(self._progress.plan.study, node, points)

    def pruned(self, key: str, validation_accuracy: float) -> None:
        """A stage was stopped because it fell behind."""
        record_pruned(self._progress, self._journal, key, validation_accuracy)

    def ended(self, name: str) -> None:
        """A worker has finished the pack."""
        self._follower.ended(name)

    def failed(self, name: str, fault: Fault) -> None:
        """A worker has given the pack up."""
        self._follower.ended(name, self._queue.pack_failed(name, fault))

    def noticed(self, line: str) -> None:
        """Something happened that the user has to know."""
        self._follower.noticed(line)
