"""The journal: every result of a sweep, appended to files in the storage before it goes anywhere else.

    STORAGE/journal/<sweep>/<segment>.jsonl    one segment per driver and, on object stores, per 256 KiB

A record is one line (see cvit.storage). Four types, each a flat JSON object:

    study   study_key, sweep, question, command, start_time_ms, params, cells (a list of grids), tags
    trial   trial_key, study_key, params, tags
    points  trial_key, points: [metric, optimiser step, value, time in ms] each
    end     trial_key, status, tags, note, time_ms
"""

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from cvit.storage import Storage, StorageError, decode_records, encode_record
from cvit.training.results import Point
from cvit.vocabulary import JOURNAL_FOLDER, RECORD_END, RECORD_POINTS, RECORD_STUDY, RECORD_TRIAL, STATUS_FAILED
from sweeps.engine.backoff import is_refused, pause_s
from sweeps.engine.grids import as_grids
from sweeps.engine.trials import Study, Trial

Record = dict[str, Any]

_log = logging.getLogger(__name__)

_SEGMENT_BYTES = 256 * 1024
"""Object stores cannot append: the open segment is written anew each time, so it is kept small."""


class Journal:
    """Appends what is new and leaves out what is known, so that recording a result twice changes nothing."""

    def __init__(self, storage: Storage, sweep: str) -> None:
        """Reads the sweep's journal; torn and altered lines are left out, and what they held is recorded again."""
        self._storage, self._folder = storage, f"{JOURNAL_FOLDER}/{sweep}"
        self._listeners: list[Callable[[list[Record]], None]] = []
        self._cells: dict[str, list[dict[str, list[Any]]]] = {}
        self._trials: set[str] = set()
        self._steps: dict[str, dict[str, set[int]]] = {}
        self._ends: dict[str, tuple[str, str]] = {}
        self.records: list[Record] = []
        self._number = 0
        for name in storage.names(self._folder):
            self._number = max(self._number, _number_of(name))
            for record in decode_records(storage.read(f"{self._folder}/{name}")):
                self._remember(record)
        self._start_segment()

    def listen(self, listener: Callable[[list[Record]], None]) -> None:
        """Calls the listener with every batch of new records once it is written."""
        self._listeners.append(listener)

    def record_plan(self, study: Study, trials: Iterable[Trial], tags: dict[str, str]) -> None:
        """Records a study, or that it has grown, and its trials."""
        trials = list(trials)
        known = self._cells.get(study.key, [])
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
                "params": trial.config.flat(),
                "tags": tags,
            }
            for trial in trials
            if trial.key not in self._trials
        ]
        self._append(new)

    def record_points(self, trials: Iterable[Trial], points: list[Point]) -> None:
        """Records the measurements of a stage for every trial that it belongs to.

        Raises:
            StorageError: the storage cannot be written; so do the other methods that record.
        """
        new = []
        for trial in trials:
            known = self._steps.get(trial.key, {})
            fresh = [point for point in points if point[1] not in known.get(point[0], ())]
            if fresh:
                new.append({"type": RECORD_POINTS, "trial_key": trial.key, "points": [list(p) for p in fresh]})
        self._append(new)

    def record_end(self, trial: Trial, status: str, tags: dict[str, str], note: str) -> None:
        """Records a trial's outcome; one that failed may fail otherwise the next time."""
        if self.status(trial.key) == status and (status != STATUS_FAILED or self._ends[trial.key][1] == note):
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
        return self._ends.get(trial_key, (None, ""))[0]

    def last_value(self, trial_key: str, metric: str) -> float:
        """The last measurement of a trial's metric; 0 where there is none."""
        points = (r["points"] for r in self.records if r["type"] == RECORD_POINTS and r["trial_key"] == trial_key)
        return max(((step, value) for p in points for name, step, value, _ in p if name == metric), default=(0, 0.0))[1]

    def _append(self, records: list[Record]) -> None:
        if not records:
            return
        self._write_at_last(b"".join(map(encode_record, records)))
        for record in records:
            self._remember(record)
        for listener in self._listeners:
            listener(records)

    def _write_at_last(self, data: bytes) -> None:
        """Waits for a storage that cannot be reached; one that refuses to be written ends the sweep."""
        for failures in itertools.count(1):
            try:
                return self._write(data)
            except OSError as error:
                self._start_segment()  # the open one may end in half a line now
                reason = f"storage {self._storage.url!r} cannot be written: {' '.join(str(error).split())}"
                if is_refused(error):
                    raise StorageError(reason) from error
                _log.warning("%s; trying again in %.0f s", reason, pause_s(failures))
                time.sleep(pause_s(failures))

    def _write(self, data: bytes) -> None:
        if self._storage.is_local:
            self._storage.append_local(f"{self._folder}/{self._segment_name}", data)
            return
        if len(self._segment) + len(data) > _SEGMENT_BYTES:
            self._start_segment()
        self._segment += data
        self._storage.write(f"{self._folder}/{self._segment_name}", self._segment)

    def _start_segment(self) -> None:
        """Segments are read in the order in which they were begun, so a clock that was put back must not matter."""
        self._number = max(self._number + 1, time.time_ns())
        self._segment, self._segment_name = b"", f"{self._number:020d}-{os.getpid()}.jsonl"

    def _remember(self, record: Record) -> None:
        """Takes up a record, less what is known: an append that failed halfway and was tried again may stand twice."""
        kind = record["type"]
        if kind == RECORD_STUDY:
            self._cells.setdefault(record["study_key"], []).extend(record["cells"])
        elif kind == RECORD_TRIAL:
            if record["trial_key"] in self._trials:
                return
            self._trials.add(record["trial_key"])
        elif kind == RECORD_POINTS:
            known = self._steps.setdefault(record["trial_key"], {})
            record["points"] = [point for point in record["points"] if point[1] not in known.get(point[0], ())]
            if not record["points"]:
                return
            for metric, step, _, _ in record["points"]:
                known.setdefault(metric, set()).add(step)
        elif kind == RECORD_END:
            if self._ends.get(record["trial_key"]) == (record["status"], record["note"]):
                return
            self._ends[record["trial_key"]] = record["status"], record["note"]
        self.records.append(record)


def _number_of(segment: str) -> int:
    number = segment.partition("-")[0]
    return int(number) if number.isdigit() else 0


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
