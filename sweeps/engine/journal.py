"""The journal: every result of a sweep, appended to files in the storage before it goes anywhere else.

    STORAGE/journal/<sweep>/<segment>.jsonl    one segment per driver and, on object stores, per 256 KiB

A record is one line (see cvit.storage). Four types, each a flat JSON object:

    study   study_key, sweep, question, command, start_time_ms, params, cells (a list of grids), tags
    trial   trial_key, study_key, params, tags
    points  trial_key, points: [metric, optimiser step, value, time in ms] each
    end     trial_key, status, tags, note, time_ms
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from cvit.redaction import redacted
from cvit.storage import Storage, decode_records, encode_record
from cvit.training.results import Point
from cvit.vocabulary import JOURNAL_FOLDER, RECORD_END, RECORD_POINTS, RECORD_STUDY, RECORD_TRIAL
from sweeps.engine.grids import as_grids
from sweeps.engine.trials import Study, Trial

Record = dict[str, Any]

_SEGMENT_BYTES = 256 * 1024
"""Object stores cannot append: the open segment is written anew each time, so it is kept small."""


class Journal:
    """Appends what is new and leaves out what is known, so that recording a result twice changes nothing."""

    def __init__(self, storage: Storage, sweep: str) -> None:
        """Reads the sweep's journal; torn and altered lines are left out, and what they held is recorded again."""
        self._storage, self._folder = storage, f"{JOURNAL_FOLDER}/{sweep}"
        self._listeners: list[Callable[[list[Record]], None]] = []
        self._segment, self._segment_name = b"", self._new_segment_name()
        self._cells: dict[str, list[dict[str, list[Any]]]] = {}
        self._trials: set[str] = set()
        self._last_step: dict[str, dict[str, int]] = {}
        self._status: dict[str, str] = {}
        self.records: list[Record] = []
        for name in storage.names(self._folder):
            for record in decode_records(storage.read(f"{self._folder}/{name}")):
                self._remember(record)

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
        """Records the measurements of a stage for every trial that it belongs to."""
        new = []
        for trial in trials:
            last = self._last_step.get(trial.key, {})
            fresh = [point for point in points if point[1] > last.get(point[0], -1)]
            if fresh:
                new.append({"type": RECORD_POINTS, "trial_key": trial.key, "points": [list(p) for p in fresh]})
        self._append(new)

    def record_end(self, trial: Trial, status: str, tags: dict[str, str], note: str) -> None:
        """Records a trial's outcome."""
        if self._status.get(trial.key) == status:
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
        return self._status.get(trial_key)

    def last_value(self, trial_key: str, metric: str) -> float:
        """The last measurement of a trial's metric; 0 where there is none."""
        points = (r["points"] for r in self.records if r["type"] == RECORD_POINTS and r["trial_key"] == trial_key)
        return max(((step, value) for p in points for name, step, value, _ in p if name == metric), default=(0, 0.0))[1]

    def _append(self, records: list[Record]) -> None:
        if not records:
            return
        records = [record if record["type"] == RECORD_POINTS else _without_secrets(record) for record in records]
        data = b"".join(map(encode_record, records))
        if self._storage.is_local:
            self._storage.append_local(f"{self._folder}/{self._segment_name}", data)
        else:
            if len(self._segment) + len(data) > _SEGMENT_BYTES:
                self._segment, self._segment_name = b"", self._new_segment_name()
            self._segment += data
            self._storage.write(f"{self._folder}/{self._segment_name}", self._segment)
        for record in records:
            self._remember(record)
        for listener in self._listeners:
            listener(records)

    def _remember(self, record: Record) -> None:
        self.records.append(record)
        kind = record["type"]
        if kind == RECORD_STUDY:
            self._cells.setdefault(record["study_key"], []).extend(record["cells"])
        elif kind == RECORD_TRIAL:
            self._trials.add(record["trial_key"])
        elif kind == RECORD_POINTS:
            last = self._last_step.setdefault(record["trial_key"], {})
            for metric, step, _, _ in record["points"]:
                last[metric] = max(step, last.get(metric, -1))
        elif kind == RECORD_END:
            self._status[record["trial_key"]] = record["status"]

    @staticmethod
    def _new_segment_name() -> str:
        return f"{time.time_ns():020d}-{os.getpid()}.jsonl"


def _without_secrets(record: Record) -> Record:
    """A copy without the passwords and keys of URLs. What goes to storage and MLflow comes through here."""
    return json.loads(redacted(json.dumps(record)))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
