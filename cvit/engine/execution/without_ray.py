"""Training without Ray (`--address local`): packs go from the queue to a crew of workers on this machine.

The crew is this process (`in_process.py`) or several that are forked (`forked.py`). The results equal those of a sweep
with Ray, on a CPU bit for bit; the journal, the handling of faults and resuming are the same.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from cvit.engine.execution.faults import Fault
from cvit.engine.execution.follower import Follower
from cvit.engine.execution.pruning import Asha, may_prune
from cvit.engine.execution.queue import StagePack, StageQueue
from cvit.engine.execution.recorder import Recorder
from cvit.engine.execution.site import Site
from cvit.engine.execution.steps import Step, last_evaluation
from cvit.engine.execution.timing import Timing
from cvit.engine.planning.progress import Outcome, Progress
from cvit.engine.recording.journal import Journal
from cvit.storage import StorageError

POLL_S = 0.05
"""Time between two looks at the queue while a worker is free, since stages that rest or are trained elsewhere may be
ready then."""
LOOK_S = 1.0
"""Time between two looks at the workers while each of them has a pack."""


@dataclass(frozen=True)
class Hang:
    """A worker does not move, as the line says."""

    line: str


class Crew(Protocol):
    """The workers, who train packs. Packs are identified by name."""

    @property
    def has_room(self) -> bool:
        """True if a worker is free."""
        ...

    def give(self, name: str, pack: StagePack) -> None:
        """Gives a pack to a free worker."""
        ...

    def news(self, most_s: float) -> Iterable[tuple[str, Step | Fault | Hang]]:
        """Waits for news of workers, at most so long. After a step with reports, a worker waits for an answer; after a
        step without, or a fault, it is free."""
        ...

    def answer(self, name: str, goes_on: bool) -> None:
        """Has the worker of a pack take the next step, or give the pack up."""
        ...


def train_stages(
    progress: Progress, journal: Journal, follower: Follower, site: Site, crew: Crew
) -> dict[str, Outcome]:
    """Trains the stages that the plan still needs, and records every result as it comes in.

    Returns:
        The outcome of each of these stages, by key.

    Raises:
        StorageError: the storage cannot be written any more; nothing that was reported is lost.
        TrainingError: there are no workers; the same.
    """
    prunes = may_prune(progress)
    # A member of a pack cannot be stopped on its own.
    queue = StageQueue(progress, {} if prunes else site.limits, site.workers.count, site.claims)
    recorder = Recorder(progress, journal, queue, follower)
    desk = _Desk(queue, recorder, site.timing, Asha(progress.plan, recorder.pruned) if prunes else None)
    numbers = itertools.count()
    while not queue.is_finished:
        while crew.has_room and (pack := queue.next_pack(name := f"pack-{next(numbers)}")) is not None:
            crew.give(name, pack)
            desk.started(name)
        if crew.has_room and queue.waiting_line is not None:
            recorder.waiting(queue.waiting_line)
        site.timing.looked(queue.num_resting)
        for name, news in crew.news(POLL_S if crew.has_room else LOOK_S):
            match news:
                case Step():
                    goes_on = desk.stepped(name, news)
                    if news.reports is not None:
                        crew.answer(name, goes_on)
                case Fault():
                    desk.failed(name, news)
                case Hang():
                    site.timing.silent(name)
                    recorder.noticed(news.line)
    if queue.storage_fault is not None:
        raise StorageError(f"storage {site.storage.url!r} cannot be used: {queue.storage_fault}")
    return queue.outcomes()


class _Desk:
    """Passes what happens to packs to those who have to know it, as `TuneCallback` does with Ray."""

    def __init__(self, queue: StageQueue, recorder: Recorder, timing: Timing, asha: Asha | None) -> None:
        self._queue, self._recorder, self._timing, self._asha = queue, recorder, timing, asha

    def started(self, name: str) -> None:
        self._timing.started(name)
        self._recorder.started(name)

    def stepped(self, name: str, step: Step) -> bool:
        """Takes a step; returns True if the pack goes on."""
        self._timing.add(step.busy_s, step.waited_s)
        self._timing.reported(name)
        if step.reports is not None:
            self._recorder.reported(name, step.reports)
        self._recorder.measured(step.load)
        if step.reports is not None and not self._is_stopped(name, step):
            return True
        self._queue.pack_ended(name)
        self._timing.ended(name)
        self._recorder.ended(name)
        return False

    def _is_stopped(self, name: str, step: Step) -> bool:
        evaluation = last_evaluation(step.reports) if self._asha is not None and step.reports else None
        if self._asha is None or evaluation is None:
            return False
        return self._asha.stops(name, self._queue.pack_named(name), *evaluation)

    def failed(self, name: str, fault: Fault) -> None:
        self._queue.pack_ended(name)
        self._timing.failed(name)
        self._recorder.failed(name, fault)
