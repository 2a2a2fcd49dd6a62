"""The attachments of a run: a study's environment, its answer and its best model, as files, tags and metrics."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from cvit import vocabulary as v
from cvit.engine.planning.progress import Progress
from cvit.engine.recording.lease import LeaseLost
from cvit.engine.tracking.backend import Archive, Backend
from cvit.errors import short_line
from cvit.records import SessionRecord
from cvit.results import Point, last_value
from cvit.storage import Storage
from cvit.tasks import task_named

if TYPE_CHECKING:
    import torch

TAGS = (v.TAG_ANSWER, v.TAG_ENVIRONMENT, v.TAG_MODEL)
MOST_TRIES = 3
"""The number of times that a store is offered an attachment: a folder for files that cannot be written, as one on
another machine, must not hold up the sweep's end."""
_LONGEST_ERROR = 200


def _no_model() -> None:
    """Stands for a model where there is none; unlike a lambda, it can be sent to another process."""


@dataclass(frozen=True)
class Attachment:
    """Files, tags and measurements about a study that a run gets once, and again when they have changed.

    Attributes:
        tag: the tag that holds the checksum of the attachment that a run has.
        checksum: differs between attachments with other contents.
        files: makes the files, by name.
        model: gives a model and an example of its input.
    """

    tag: str
    checksum: str
    files: Callable[[], Mapping[str, bytes]] = dict
    tags: Mapping[str, str] = field(default_factory=dict)
    points: Sequence[Point] = ()
    model: "Callable[[], tuple[torch.nn.Module, torch.Tensor] | None]" = _no_model


class Attachments:
    """The attachments that the store does not have yet.

    Attributes:
        error: why one was given up.
    """

    def __init__(self) -> None:
        self._pending: dict[tuple[str, str], Attachment] = {}
        self._there: dict[tuple[str, str], str | None] = {}
        """The checksums of what runs had already."""
        self._tries: dict[tuple[str, str], int] = {}
        self.error: str | None = None

    def take(self, key: str, attachment: Attachment) -> None:
        """Takes an attachment; a later one with the same tag replaces it."""
        self._pending.pop((key, attachment.tag), None)
        if self._there.get((key, attachment.tag)) != attachment.checksum:
            self._pending[key, attachment.tag] = attachment

    def leave_out(self, key: str, tags: Mapping[str, str]) -> None:
        """Forgets the attachments that a run has already, by its tags, and those that come later."""
        for tag in TAGS:
            self._there[key, tag] = tags.get(tag)
            if (key, tag) in self._pending and self._pending[key, tag].checksum == tags.get(tag):
                del self._pending[key, tag]

    def forget(self, key: str) -> None:
        """Forgets the attachments of a study that is another driver's."""
        for tag in TAGS:
            self._pending.pop((key, tag), None)

    def write(self, store: Callable[[], Backend], run_ids: Mapping[str, str]) -> None:
        """Writes the attachments to runs.

        Args:
            store: gives the backend for one call.
            run_ids: the ids of the studies' runs, by key.

        Raises:
            Exception: the store cannot be reached.
        """
        for (key, tag), attachment in list(self._pending.items()):
            if key not in run_ids:
                continue
            try:
                _write(store, run_ids[key], attachment)
            except LeaseLost:
                raise
            except Exception as error:
                self._tries[key, tag] = self._tries.get((key, tag), 0) + 1
                if self._tries[key, tag] < MOST_TRIES:
                    raise
                self.error = f"{tag} of {key}: {short_line(error, _LONGEST_ERROR)}"
            else:
                self._there[key, tag] = attachment.checksum
            del self._pending[key, tag]


def _write(store: Callable[[], Backend], run_id: str, attachment: Attachment) -> None:
    backend = store()
    if isinstance(backend, Archive):
        if files := attachment.files():
            backend.attach(run_id, files)
        if (model := attachment.model()) is not None:
            backend.log_model(run_id, *model)
    # The checksum comes last: without it, the next session does all of it again.
    store().write(run_id, {}, {**attachment.tags, attachment.tag: attachment.checksum}, attachment.points)


def best_model(progress: Progress, storage: Storage) -> tuple[str, Attachment | None]:
    """The key of a study's best trial, and its final model. The best trial is that of the largest accuracy on
    validation images; without one, or in a task that has no models, there is no attachment."""
    task = task_named(progress.plan.study.task)
    metric = task.selection_metric or task.metric
    accuracies = [
        (last_value(progress.results[trial.stages[-1].key].points, metric), trial)
        for trial in progress.plan.trials
        if progress.status(trial) == v.STATUS_OK
    ]
    known = [(accuracy, trial) for accuracy, trial in accuracies if accuracy is not None]
    if not known or task.trained_model is None:
        return "", None
    _, trial = max(known, key=lambda each: each[0])
    stage = trial.stages[-1]
    return trial.key, Attachment(v.TAG_MODEL, stage.key, model=partial(task.trained_model, stage, storage))


def environment_of(record: SessionRecord) -> Attachment:
    """The packages and the hardware of a driver, as files."""
    packages = "".join(f"{package}\n" for package in record.packages)
    hardware = json.dumps(record.hardware, indent=2, sort_keys=True) + "\n"
    files = {"environment/requirements.txt": packages.encode(), "environment/hardware.json": hardware.encode()}
    return Attachment(v.TAG_ENVIRONMENT, checksum_of(packages, hardware), lambda: files)


def checksum_of(*parts: str) -> str:
    """A checksum of texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
