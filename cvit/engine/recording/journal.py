"""The journal keeps every result of a sweep in files of the storage, before it goes anywhere else.

    STORAGE/journal/<sweep>/<segment>.jsonl    one segment per driver and, on object stores, per 256 KiB

A line is a record of `cvit/records.py`, encoded by `cvit/storage.py`.
"""

import dataclasses
import functools
import itertools
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

from cvit.engine.planning.grids import as_grids
from cvit.engine.planning.trials import Study, Trial
from cvit.engine.recording.backoff import is_refused, pause_s
from cvit.errors import NoAnswer, Refused, one_line
from cvit.parameters import Parameter, with_numbers
from cvit.records import (
    EndRecord,
    Grid,
    PointsRecord,
    Record,
    SessionRecord,
    StudyRecord,
    SystemRecord,
    TrialRecord,
    from_json,
    read_segment,
    to_json,
)
from cvit.redaction import without_secrets
from cvit.results import Point, stage_folder
from cvit.storage import Storage, StorageError, encode_record, with_format
from cvit.tasks import parameters_of_task
from cvit.vocabulary import (
    JOURNAL_FOLDER,
    STATUS_FAILED,
    TAG_CODE_VERSION,
    TAG_SEARCH_SPACE,
    TAG_STAGES,
    TAG_TRAIN_IMAGES,
)

_log = logging.getLogger(__name__)

_OBJECT_INTERVAL_S = 1.0
"""Least time between two writes to an object store, where each takes a tenth of a second. The results that a killed
driver has not written by then are recorded again from the stages' own files."""
_SEGMENT_BYTES = 256 * 1024
"""Object stores cannot append: the open segment is written anew each time, so it is kept small."""


class _Contents:
    """The contents of the journal, remembered so that nothing is written twice."""

    def __init__(self) -> None:
        self.cells: dict[str, list[Grid]] = {}
        self.trials: set[str] = set()
        self.ends: dict[str, EndRecord] = {}
        self.sessions: dict[str, SessionRecord] = {}
        self._steps: dict[str, dict[str, set[int]]] = {}
        """The steps of the measurements of each trial that has not ended, by metric."""
        self._of_ended: dict[str, Mapping[str, Set[int]]] = {}
        """Those of trials that have ended."""
        self._shared: dict[frozenset[int], frozenset[int]] = {}
        self._equal: dict[tuple[tuple[str, frozenset[int]], ...], Mapping[str, Set[int]]] = {}

    def add(self, record: Record) -> Record | None:
        """Adds a record and returns what of it is new, if anything: an append that failed halfway and was tried again
        may stand in the journal twice."""
        match record:
            case StudyRecord():
                self.cells.setdefault(record.study_key, []).extend(record.cells)
            case TrialRecord():
                if record.trial_key in self.trials:
                    return None
                self.trials.add(record.trial_key)
            case PointsRecord():
                points = self.new_points(record.trial_key, record.points)
                if not points:
                    return None
                self._add_steps(record.trial_key, points)
                return record if len(points) == len(record.points) else dataclasses.replace(record, points=points)
            case EndRecord():
                last = self.ends.get(record.trial_key)
                if last is not None and (last.status, last.note) == (record.status, record.note):
                    return None
                self.ends[record.trial_key] = record
                self._end(record.trial_key)
            case SessionRecord():
                if self.sessions.get(record.study_key) == record:
                    return None
                self.sessions[record.study_key] = record
            case SystemRecord():
                pass  # the tracker leaves out what it has
        return record

    def _add_steps(self, trial_key: str, points: Iterable[Point]) -> None:
        ended = self._of_ended.pop(trial_key, {})
        steps = self._steps.setdefault(trial_key, {metric: set(of) for metric, of in ended.items()})
        for metric, step, _, _ in points:
            steps.setdefault(metric, set()).add(step)

    def _end(self, trial_key: str) -> None:
        """Lets the trials that have ended share equal sets of steps: a large sweep has few of them."""
        steps = self._steps.pop(trial_key, {})
        shared = {metric: self._shared.setdefault(each := frozenset(of), each) for metric, of in steps.items()}
        if shared:
            self._of_ended[trial_key] = self._equal.setdefault(tuple(shared.items()), shared)

    def new_points(self, trial_key: str, points: Iterable[Point]) -> list[Point]:
        """The measurements of a trial whose metric and step the journal does not contain."""
        steps: Mapping[str, Set[int]] = self._steps.get(trial_key) or self._of_ended.get(trial_key, {})
        return [point for point in points if point[1] not in steps.get(point[0], ())]


class Journal:
    """Appends what is new and leaves out what it contains, so that recording a result twice changes nothing."""

    def __init__(self, storage: Storage, sweep: str, check: Callable[[], None] = lambda: None) -> None:
        """Reads the sweep's journal. Torn and altered lines are left out; their results are recorded again.

        Args:
            check: called before everything that is written; it raises LeaseLost if this driver may not write any more.

        Raises:
            StorageError: the storage cannot be read, or a later version wrote the journal.
        """
        self._storage, self._sweep, self._folder, self._check = storage, sweep, _folder_of(sweep), check
        self._listeners: list[Callable[[list[Record]], None]] = []
        self._unheard: list[Record] = []
        """Records that listeners do not know yet."""
        self._contents = _Contents()
        names = _segments(storage, sweep)
        self._number, self._is_behind, self._written_at = max(map(_number_of, names), default=0), False, -math.inf
        for record in _all_records(storage, sweep, names):
            self._contents.add(record)
        self._start_segment()

    @property
    def records(self) -> list[Record]:
        """All records, read anew: those of a large sweep are too many to be kept."""
        self.flush()
        return list(read_records(self._storage, self._sweep))

    def listen(self, listener: Callable[[list[Record]], None]) -> None:
        """Calls the listener with every batch of new records once it is written."""
        self._listeners.append(listener)

    def record_plan(self, study: Study, trials: Iterable[Trial], tags: Mapping[str, str]) -> None:
        """Records a study, or that it has grown, and its trials."""
        trials = list(trials)
        parameters = parameters_of_task(study.task)
        known = [_in_numbers(grid, parameters) for grid in self._contents.cells.get(study.key, [])]
        grids = [{a: list(values) for a, values in grid.items()} for grid in as_grids(trial.cell for trial in trials)]
        cells = [grid for grid in grids if _in_numbers(grid, parameters) not in known]
        new: list[Record] = []
        if cells:
            new.append(
                StudyRecord(
                    study_key=study.key,
                    sweep=study.sweep,
                    question=study.question,
                    command=study.command,
                    start_time_ms=_now_ms(),
                    params=dict(study.params),
                    cells=cells,
                    tags=tags,
                )
            )
        new += [
            TrialRecord(
                trial_key=trial.key, study_key=study.key, params=dict(trial.params), tags=_tags_of_trial(trial, tags)
            )
            for trial in trials
            if trial.key not in self._contents.trials
        ]
        self._append(new)

    def record_points(self, trials: Iterable[Trial], points: Sequence[Point]) -> None:
        """Records the measurements of a stage for every trial that it belongs to.

        Raises:
            StorageError: the storage cannot be written; so do the other methods that record.
        """
        new_points = {trial.key: self._contents.new_points(trial.key, points) for trial in trials}
        self._append([PointsRecord(trial_key=key, points=new) for key, new in new_points.items() if new])

    def record_end(self, trial: Trial, status: str, tags: Mapping[str, str], note: str) -> None:
        """Records a trial's outcome; one that failed may fail otherwise the next time."""
        last = self._contents.ends.get(trial.key)
        if last is not None and last.status == status and (status != STATUS_FAILED or last.note == note):
            return
        self._append([EndRecord(trial_key=trial.key, status=status, note=note, time_ms=_now_ms(), tags=tags)])

    def record_session(self, session: SessionRecord) -> None:
        """Records the environment of this driver, unless it is that of the last one."""
        if self._contents.sessions.get(session.study_key) != session:
            self._append([session])

    def record_load(self, study: Study, node: str, points: Sequence[Point]) -> None:
        """Records the load of a machine that trains a study."""
        self._append([SystemRecord(study_key=study.key, node=node, points=points)])

    def status(self, trial_key: str) -> str | None:
        """The status of a trial that has ended, as last recorded."""
        end = self._contents.ends.get(trial_key)
        return end.status if end is not None else None

    def last_values(self, metric: str) -> dict[str, float]:
        """The last measurement of a metric, by trial key."""
        last: dict[str, tuple[int, float]] = {}
        for record in self.records:
            if isinstance(record, PointsRecord):
                measured = [(step, value) for name, step, value, _ in record.points if name == metric]
                last[record.trial_key] = max([*measured, last.get(record.trial_key, (-1, 0.0))])
        return {key: value for key, (_, value) in last.items()}

    def _append(self, records: list[Record]) -> None:
        if not records:
            return
        records = [_without_secrets(record) for record in records]
        data = b"".join(encode_record(with_format(to_json(record))) for record in records)
        if self._storage.is_local:
            self._until_done(functools.partial(self._append_locally, data))
        else:
            self._segment += data
            self._is_behind = True
            if time.monotonic() >= self._written_at + _OBJECT_INTERVAL_S:
                self.flush()
        for record in records:
            self._contents.add(record)
        self._unheard += records
        if not self._is_behind:
            self._tell()

    def _tell(self) -> None:
        """Tells the listeners what is written and not known to them yet."""
        records, self._unheard = self._unheard, []
        for listener in self._listeners:
            listener(records)

    def flush(self) -> None:
        """Writes the records that an object store does not have yet.

        Raises:
            StorageError: it refuses to be written.
        """
        if self._is_behind:
            self._until_done(self._put)
            if self._unheard:
                self._tell()

    def _until_done(self, write: Callable[[], None]) -> None:
        """Repeats a write while the storage cannot be reached; a storage that refuses to be written ends the sweep."""
        for failures in itertools.count(1):
            try:
                self._check()
                return write()
            except OSError as error:
                reason = f"storage {self._storage.url!r} cannot be written: {one_line(error)}"
                if is_refused(error):
                    raise StorageError(reason) from error
                _log.warning("%s; trying again in %.0f s", reason, pause_s(failures))
                time.sleep(pause_s(failures))

    def _append_locally(self, data: bytes) -> None:
        try:
            self._storage.append_local(
                f"{self._folder}/{self._segment_name}", data, must_exist=self._segment_is_written
            )
        except Refused:
            raise  # the storage is gone; a new segment would hide that
        except OSError:
            self._start_segment()  # the open one may end in half a line now
            raise
        self._segment_is_written = True

    def _put(self) -> None:
        """Writes the open segment as a whole."""
        try:
            self._storage.write(f"{self._folder}/{self._segment_name}", self._segment)
        except NoAnswer:
            self._name_segment()  # the request may replace what is written after it
            raise
        self._is_behind, self._written_at = False, time.monotonic()
        if len(self._segment) > _SEGMENT_BYTES:
            self._start_segment()

    def _start_segment(self) -> None:
        self._segment, self._segment_is_written = b"", False
        self._name_segment()

    def _name_segment(self) -> None:
        """Segments are read in the order in which they were begun, so a clock that was put back must not matter."""
        self._number = max(self._number + 1, time.time_ns())
        self._segment_name = f"{self._number:020d}-{os.getpid()}.jsonl"


def read_records(storage: Storage, sweep: str) -> Iterator[Record]:
    """The records of a sweep's journal, each once; those of a large sweep are too many to be kept.

    Raises:
        StorageError: the storage cannot be read, or a later version wrote the journal.
    """
    contents = _Contents()
    for record in _all_records(storage, sweep, _segments(storage, sweep)):
        if (new := contents.add(record)) is not None:
            yield new


def _folder_of(sweep: str) -> str:
    return f"{JOURNAL_FOLDER}/{sweep}"


def _segments(storage: Storage, sweep: str) -> list[str]:
    try:
        return storage.names(_folder_of(sweep))
    except OSError as error:
        raise _unreadable(storage, error) from error


def _all_records(storage: Storage, sweep: str, segments: Iterable[str]) -> Iterator[Record]:
    """All whole records of segments, some perhaps twice."""
    try:
        for name in segments:
            for record in read_segment(storage, f"{_folder_of(sweep)}/{name}"):
                yield _without_secrets(record)  # those that an earlier version missed go no further
    except OSError as error:
        raise _unreadable(storage, error) from error


def _unreadable(storage: Storage, error: OSError) -> StorageError:
    return StorageError(f"storage {storage.url!r} cannot be read: {one_line(error)}")


def _tags_of_trial(trial: Trial, tags: Mapping[str, str]) -> dict[str, str]:
    """The tags of a planned trial, without the study's own. The code that plans it need not be the one that trains it,
    so its end says that."""
    of_trial = {name: text for name, text in tags.items() if name not in (TAG_CODE_VERSION, TAG_SEARCH_SPACE)}
    of_trial[TAG_STAGES] = ", ".join(stage_folder(stage.key) for stage in trial.stages)
    return of_trial if trial.images is None else of_trial | {TAG_TRAIN_IMAGES: str(trial.images.train)}


def _in_numbers(grid: Grid, parameters: Mapping[str, Parameter]) -> dict[str, list[Any]]:
    """A grid with the numbers that versions before wrote for values that are not set: 0 for None, say."""
    return {axis: [with_numbers({axis: value}, parameters)[axis] for value in grid[axis]] for axis in grid}


def _number_of(segment: str) -> int:
    number = segment.partition("-")[0]
    return int(number) if number.isdigit() else 0


def _without_secrets(record: Record) -> Record:
    """The record without the passwords and keys of URLs: all that reaches the storage and the tracker passes here."""
    if isinstance(record, PointsRecord | SystemRecord):
        return record
    copy = from_json(without_secrets(to_json(record)))
    assert copy is not None
    return copy


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
