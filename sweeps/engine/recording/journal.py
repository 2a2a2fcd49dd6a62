"""The journal: every result of a sweep, appended to files in the storage before it goes anywhere else.

    STORAGE/journal/<sweep>/<segment>.jsonl    one segment per driver and, on object stores, per 256 KiB

A record is one line (see cvit.storage). Four types, each a flat JSON object:

    study   study_key, sweep, question, command, start_time_ms, params, cells (a list of grids), tags
    trial   trial_key, study_key, params, tags
    points  trial_key, points: [metric, optimiser step, value, time in ms] each
    end     trial_key, status, tags, note, time_ms
"""

import functools
import itertools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from cvit.errors import one_line
from cvit.redaction import redacted
from cvit.results import Point
from cvit.storage import Storage, StorageError, decode_records, encode_record
from cvit.vocabulary import JOURNAL_FOLDER, RECORD_END, RECORD_POINTS, RECORD_STUDY, RECORD_TRIAL, STATUS_FAILED
from sweeps.engine.planning.grids import as_grids
from sweeps.engine.planning.trials import Study, Trial
from sweeps.engine.recording.backoff import is_refused, pause_s

Record = dict[str, Any]

_log = logging.getLogger(__name__)

_OBJECT_INTERVAL_S = 1.0
"""Least time between two writes to an object store, where each takes a tenth of a second. What a killed driver has not
written by then is recorded again from the stages' results."""
_SEGMENT_BYTES = 256 * 1024
"""Object stores cannot append: the open segment is written anew each time, so it is kept small."""


class _Known:
    """What a journal says, as far as it must be known to leave out what it says already."""

    def __init__(self) -> None:
        self.cells: dict[str, list[dict[str, list[Any]]]] = {}
        self.trials: set[str] = set()
        self.steps: dict[str, dict[str, set[int]]] = {}
        self.ends: dict[str, tuple[str, str]] = {}

    def take(self, record: Record) -> bool:
        """Takes up a record, less the points that are known; False where all of it is. An append that failed halfway
        and was tried again may stand there twice."""
        kind = record["type"]
        if kind == RECORD_STUDY:
            self.cells.setdefault(record["study_key"], []).extend(record["cells"])
        elif kind == RECORD_TRIAL:
            if record["trial_key"] in self.trials:
                return False
            self.trials.add(record["trial_key"])
        elif kind == RECORD_POINTS:
            known = self.steps.setdefault(record["trial_key"], {})
            record["points"] = [point for point in record["points"] if point[1] not in known.get(point[0], ())]
            for metric, step, _, _ in record["points"]:
                known.setdefault(metric, set()).add(step)
            return bool(record["points"])
        elif kind == RECORD_END:
            end = record["status"], record["note"]
            if self.ends.get(record["trial_key"]) == end:
                return False
            self.ends[record["trial_key"]] = end
        return True


class Journal:
    """Appends what is new and leaves out what is known, so that recording a result twice changes nothing."""

    def __init__(self, storage: Storage, sweep: str) -> None:
        """Reads the sweep's journal; torn and altered lines are left out, and what they held is recorded again."""
        self._storage, self._folder = storage, f"{JOURNAL_FOLDER}/{sweep}"
        self._listeners: list[Callable[[list[Record]], None]] = []
        self._known = _Known()
        self._number, self._is_behind, self._written_at = 0, False, -math.inf
        for record in self._read():
            self._known.take(record)
        self._start_segment()

    @property
    def records(self) -> list[Record]:
        """All of it, read anew: of a large sweep too much to be kept."""
        self.flush()
        known = _Known()
        return [record for record in self._read() if known.take(record)]

    def _read(self) -> Iterator[Record]:
        for name in self._storage.names(self._folder):
            self._number = max(self._number, _number_of(name))
            yield from decode_records(self._storage.read(f"{self._folder}/{name}"))

    def listen(self, listener: Callable[[list[Record]], None]) -> None:
        """Calls the listener with every batch of new records once it is written."""
        self._listeners.append(listener)

    def record_plan(self, study: Study, trials: Iterable[Trial], tags: dict[str, str]) -> None:
        """Records a study, or that it has grown, and its trials."""
        trials = list(trials)
        known = self._known.cells.get(study.key, [])
        grids = [{a: list(values) for a, values in grid.items()} for grid in as_grids(trial.cell for trial in trials)]
        cells = [grid for grid in grids if grid not in known]
        new: list[Record] = []
        if cells:
            new.append(
                {
                    "type": RECORD_STUDY,
                    "study_key": study.key,
                    "sweep": study.sweep,
                    "question": study.question,
                    "command": study.command,
                    "start_time_ms": _now_ms(),
                    "params": dict(study.params),
                    "cells": cells,
                    "tags": tags,
                }
            )
        new += [
            {
                "type": RECORD_TRIAL,
                "trial_key": trial.key,
                "study_key": study.key,
                "params": dict(trial.params),
                "tags": tags,
            }
            for trial in trials
            if trial.key not in self._known.trials
        ]
        self._append(new)

    def record_points(self, trials: Iterable[Trial], points: list[Point]) -> None:
        """Records the measurements of a stage for every trial that it belongs to.

        Raises:
            StorageError: the storage cannot be written; so do the other methods that record.
        """
        new = []
        for trial in trials:
            known = self._known.steps.get(trial.key, {})
            fresh = [point for point in points if point[1] not in known.get(point[0], ())]
            if fresh:
                new.append({"type": RECORD_POINTS, "trial_key": trial.key, "points": [list(p) for p in fresh]})
        self._append(new)

    def record_end(self, trial: Trial, status: str, tags: dict[str, str], note: str) -> None:
        """Records a trial's outcome; one that failed may fail otherwise the next time."""
        if self.status(trial.key) == status and (status != STATUS_FAILED or self._known.ends[trial.key][1] == note):
            return
        self._append(
            [
                {
                    "type": RECORD_END,
                    "trial_key": trial.key,
                    "status": status,
                    "tags": tags,
                    "note": note,
                    "time_ms": _now_ms(),
                }
            ]
        )

    def status(self, trial_key: str) -> str | None:
        """How a trial ended, as last recorded."""
        return self._known.ends.get(trial_key, (None, ""))[0]

    def last_values(self, metric: str) -> dict[str, float]:
        """The last measurement of a metric, by trial key."""
        last: dict[str, tuple[int, float]] = {}
        for record in self.records:
            if record["type"] == RECORD_POINTS:
                own = [(step, value) for name, step, value, _ in record["points"] if name == metric]
                key = record["trial_key"]
                last[key] = max([*own, last.get(key, (-1, 0.0))])
        return {key: value for key, (_, value) in last.items()}

    def _append(self, records: list[Record]) -> None:
        if not records:
            return
        records = [record if record["type"] == RECORD_POINTS else _without_secrets(record) for record in records]
        data = b"".join(map(encode_record, records))
        if self._storage.is_local:
            self._until_done(functools.partial(self._append_locally, data))
        else:
            self._segment += data
            self._is_behind = True
            if time.monotonic() >= self._written_at + _OBJECT_INTERVAL_S:
                self.flush()
        for record in records:
            self._known.take(record)
        for listener in self._listeners:
            listener(records)

    def flush(self) -> None:
        """Writes what an object store has not got yet.

        Raises:
            StorageError: it refuses to be written.
        """
        if self._is_behind:
            self._until_done(self._put)

    def _until_done(self, write: Callable[[], None]) -> None:
        """Waits for a storage that cannot be reached; one that refuses to be written ends the sweep."""
        for failures in itertools.count(1):
            try:
                return write()
            except OSError as error:
                reason = f"storage {self._storage.url!r} cannot be written: {one_line(error)}"
                if is_refused(error):
                    raise StorageError(reason) from error
                _log.warning("%s; trying again in %.0f s", reason, pause_s(failures))
                time.sleep(pause_s(failures))

    def _append_locally(self, data: bytes) -> None:
        try:
            self._storage.append_local(f"{self._folder}/{self._segment_name}", data)
        except OSError:
            self._start_segment()  # the open one may end in half a line now
            raise

    def _put(self) -> None:
        """The open segment as a whole."""
        self._storage.write(f"{self._folder}/{self._segment_name}", self._segment)
        self._is_behind, self._written_at = False, time.monotonic()
        if len(self._segment) > _SEGMENT_BYTES:
            self._start_segment()

    def _start_segment(self) -> None:
        """Segments are read in the order in which they were begun, so a clock that was put back must not matter."""
        self._number = max(self._number + 1, time.time_ns())
        self._segment, self._segment_name = b"", f"{self._number:020d}-{os.getpid()}.jsonl"


def _number_of(segment: str) -> int:
    number = segment.partition("-")[0]
    return int(number) if number.isdigit() else 0


def _without_secrets(record: Record) -> Record:
    """A copy without the passwords and keys of URLs. What goes to storage and MLflow comes through here."""
    return json.loads(redacted(json.dumps(record)))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
