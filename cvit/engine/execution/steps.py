"""The steps of a worker: each trains a pack up to its next checkpoint. All workers take them, Ray's and others."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from cvit.data.datasets import Dataset
from cvit.engine.execution.queue import StagePack
from cvit.machine import Load
from cvit.results import Point, Reports
from cvit.storage import Storage
from cvit.tasks import task_named
from cvit.vocabulary import VAL_ACCURACY


@dataclass(frozen=True)
class Bench:
    """The data, storage and device with which a worker trains packs.

    Attributes:
        storage: an open storage, or the URL of one, which is opened for each pack.
        may_be_stopped: True if packs may be stopped early; then there is a report at every evaluation.
    """

    dataset: Dataset | None
    storage: Storage | str
    device: str
    may_be_stopped: bool

    def train(self, pack: StagePack) -> Iterator[Reports]:
        """The training of a pack. It is a generator, so that its first step raises every exception."""
        import torch  # by a worker alone: the driver of forked ones gives it packs without

        storage = Storage.open(self.storage) if isinstance(self.storage, str) else self.storage
        train = task_named(pack[0].task).train
        yield from train(pack, self.dataset, storage, torch.device(self.device), self.may_be_stopped)


@dataclass(frozen=True)
class Step:
    """A step of a worker.

    Attributes:
        reports: the reports of the pack's stages; None if the pack had ended before.
        busy_s: the time that the step took.
        waited_s: the time since the worker's step before.
        load: the load of the worker's machine, once an interval is over.
    """

    reports: Reports | None
    busy_s: float
    waited_s: float
    load: tuple[str, list[Point]] | None


class Steps:
    """Trains one pack after another, a step at a time, and measures how long steps and the pauses between them take."""

    def __init__(self) -> None:
        self._training: Iterator[Reports] = iter(())
        self._idle_since: float | None = None
        self._load = Load()

    def take(self, training: Iterator[Reports]) -> None:
        """Takes the next pack, whether the one before has ended or not."""
        self._training = training

    def next(self) -> Step:
        """Trains up to the next checkpoint. Raises whatever the training raises."""
        started = time.monotonic()
        waited_s = started - self._idle_since if self._idle_since is not None else 0.0
        reports = next(self._training, None)
        self._idle_since = time.monotonic()
        return Step(reports, self._idle_since - started, waited_s, self._load.measure())

    def forget_pause(self) -> None:
        """The time since the last step was not a wait for work: all stages rested after a fault."""
        self._idle_since = None


def last_evaluation(reports: Reports) -> tuple[int, float] | None:
    """Step and validation accuracy of the last evaluation of a pack of one stage, by which it may be stopped. None if
    there is none, or if the stage is done: it cannot be stopped any more."""
    _, report = reports[0]
    accuracies = [(step, value) for metric, step, value, _ in report.points if metric == VAL_ACCURACY]
    return accuracies[-1] if accuracies and not report.result else None
