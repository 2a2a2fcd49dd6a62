"""From a tracking store to tidy frames: the same frames from the journal alone and from MLflow alone.

`studies`  one row per study: study_key, sweep, task, question, start_time_ms, command, cells, params
`trials`   one row per trial: trial_key, study_key, sweep, task, status (missing while unfinished), diverged_step, every
           flat parameter of its task (typed; None for those of other tasks), the final value, at the largest step, of
           every metric (NaN where never measured)
`curves`   one row per measurement of CURVE_METRICS: trial_key, metric, step, value

`cells` is a list of grids, each a mapping from parameter name to values, `seed` included; the trials that a study
expects are the union of the grids' products. Accuracies are fractions in 0..1.
"""

import contextlib
import itertools
import json
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pandas as pd

from cvit import vocabulary as names
from cvit.config import PARAMETERS_OF, Parameter
from cvit.storage import Storage, StorageError, decode_records

CURVE_METRICS = (names.VAL_ACCURACY,)
"""The metrics whose whole history is loaded. Each costs a query per run of MLflow, and SQLite answers one only after
going through every value of that metric in the store."""

METRICS = (
    names.TRAIN_LOSS,
    names.TRAIN_ACCURACY,
    names.VAL_LOSS,
    names.VAL_ACCURACY,
    names.TEST_ACCURACY,
    names.LEARNING_RATE,
    names.GRAD_NORM,
    names.IMAGES_PER_SECOND,
    names.TRANSFER_WEIGHT_ERROR,
    names.TRANSFER_LOGIT_ERROR,
    names.CONVOLUTION_TEST_ACCURACY,
    names.EXPRESSIVITY_ERROR,
    names.EXPRESSIVITY_BOUND,
)
"""The metrics that always have a column in `trials`; others get one when they occur."""

RUNS_PER_PAGE = 1000
"""Runs asked of MLflow at once."""

HISTORIES_AT_ONCE = 8
"""Metric histories asked of MLflow at the same time: a server is waited for, not worked for."""

SEED = "seed"
STUDY_COLUMNS = ("study_key", "sweep", "task", "question", "start_time_ms", "command", "cells", "params")
TRIAL_COLUMNS = ("trial_key", "study_key", "sweep", "task", "status", "diverged_step")
CURVE_COLUMNS = ("trial_key", "metric", "step", "value")

_MLFLOW_INFINITY = 1.797e308  # MLflow stores infinities as the largest finite double


class LoadError(Exception):
    """The store cannot be read or holds nothing; the message is one line that names it."""


@dataclass(frozen=True)
class Frames:
    """What a tracking store holds, tidy; the columns are those of the module's docstring."""

    studies: pd.DataFrame
    trials: pd.DataFrame
    curves: pd.DataFrame


def load_journal(storage: Storage, sweep: str | None = None) -> Frames:
    """Reads the journals of a storage, or that of one sweep.

    Raises:
        LoadError: the storage cannot be read, has no journal, or no study in it.
    """
    raw = _Raw()
    try:
        sweeps = [sweep] if sweep is not None else storage.names(names.JOURNAL_FOLDER)
        for name in sweeps:
            folder = f"{names.JOURNAL_FOLDER}/{name}"
            for segment in storage.names(folder):
                if segment.endswith(".jsonl"):
                    raw.add_records(name, decode_records(storage.read(f"{folder}/{segment}")))
    except (OSError, StorageError) as error:
        raise LoadError(f"storage {storage.url!r} cannot be read: {_one_line(error)}") from error
    if not sweeps:
        raise LoadError(f"storage {storage.url!r} has no journal: no folder {names.JOURNAL_FOLDER!r} with sweeps in it")
    return raw.frames(f"storage {storage.url!r}")


def load_mlflow(uri: str) -> Frames:
    """Reads all studies of an MLflow store; a local store that does not exist is not created.

    Raises:
        LoadError: the store does not exist, cannot be read, or has no study in it.
    """
    _require_existing_store(uri)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    logging.getLogger("alembic").setLevel(logging.ERROR)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return _read_mlflow(MlflowClient(uri)).frames(f"MLflow store {_shown(uri)}")
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        raise LoadError(f"MLflow store {_shown(uri)} cannot be read: {_shown(_one_line(error))}") from error


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as mappings, missing values as None."""
    return [
        {str(name): None if value is pd.NA else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def axes_of(cells: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of the axes of a study's grids, `seed` left out."""
    return [name for name in next(iter(cells), {}) if name != SEED]


@dataclass
class _Raw:
    """What a store says, before it is put into frames; the first mention of anything wins, except where noted."""

    studies: dict[str, dict[str, Any]] = field(default_factory=dict)
    trials: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)  # by (study_key, trial_key)
    ends: dict[str, tuple[str, int | None]] = field(default_factory=dict)  # trial_key -> status, diverged step
    finals: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)  # (trial_key, metric) -> step, value
    curves: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)  # the same -> values by step

    def add_records(self, sweep: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Takes up records of a sweep's journal; the last end of a trial wins."""
        for record in records:
            match record["type"]:
                case names.RECORD_STUDY:
                    self.add_study(sweep, record)
                case names.RECORD_TRIAL:
                    self.add_trial(sweep, record)
                case names.RECORD_POINTS:
                    self.add_points(record["trial_key"], ((m, step, value) for m, step, value, _ in record["points"]))
                case names.RECORD_END:
                    self.ends[record["trial_key"]] = _end(record["status"], record.get("tags", {}))

    def add_study(self, sweep: str, record: Mapping[str, Any]) -> None:
        """Takes up a study or its extension: cells are united, and the last command wins."""
        task, of_task = _task_of(record)
        cells = [
            {name: [_typed(of_task, name, value) for value in grid[name]] for name in sorted(grid)}
            for grid in record["cells"]
        ]
        study = self.studies.setdefault(
            record["study_key"],
            {
                "study_key": record["study_key"],
                "sweep": sweep,
                "task": task,
                "question": record["question"],
                "start_time_ms": int(record["start_time_ms"]),
                "cells": [],
                "params": _typed_params(of_task, record["params"]),
            },
        )
        study["command"] = record["command"]
        study["cells"] += [grid for grid in cells if grid not in study["cells"]]

    def add_trial(self, sweep: str, record: Mapping[str, Any]) -> None:
        task, of_task = _task_of(record)
        study_key, trial_key = record["study_key"], record["trial_key"]
        row = {"trial_key": trial_key, "study_key": study_key, "sweep": sweep, "task": task}
        defaults = {name: parameter.default for name, parameter in of_task.items()}
        self.trials.setdefault((study_key, trial_key), row | defaults | _typed_params(of_task, record["params"]))

    def add_points(self, trial_key: str, points: Iterable[tuple[str, int, float]]) -> None:
        for metric, step, value in points:
            key = (trial_key, metric)
            if key not in self.finals or step > self.finals[key][0]:
                self.finals[key] = (step, _value(value))
            if metric in CURVE_METRICS:
                self.curves.setdefault(key, {}).setdefault(step, _value(value))

    def frames(self, source: str) -> Frames:
        """The frames, in an order that does not depend on the store.

        Raises:
            LoadError: there is no study.
        """
        if not self.studies:
            raise LoadError(f"{source} holds no study")
        studies = sorted(self.studies.values(), key=lambda row: (row["sweep"], row["start_time_ms"], row["study_key"]))
        return Frames(pd.DataFrame(studies, columns=list(STUDY_COLUMNS)), self._trial_frame(), self._curve_frame())

    def _trial_frame(self) -> pd.DataFrame:
        metrics = [*METRICS, *sorted({metric for _, metric in self.finals} - set(METRICS))]
        rows = []
        for (_, trial_key), trial in self.trials.items():
            status, diverged_step = self.ends.get(trial_key, (None, None))
            final = {metric: self.finals.get((trial_key, metric), (0, float("nan")))[1] for metric in metrics}
            rows.append(trial | {"status": status, "diverged_step": diverged_step} | final)
        rows.sort(key=self._trial_order)
        tasks = {row["task"] for row in [*self.studies.values(), *rows]}
        parameters = dict.fromkeys(name for task in PARAMETERS_OF if task in tasks for name in PARAMETERS_OF[task])
        others = sorted({name for row in rows for name in row} - {*TRIAL_COLUMNS, *parameters, *metrics})
        columns = [*TRIAL_COLUMNS, *parameters, *others, *metrics]
        frame = pd.DataFrame({name: _column([row.get(name) for row in rows]) for name in columns})
        return frame.astype({"status": "string", "diverged_step": "Int64"} | dict.fromkeys(metrics, "float64"))

    def _trial_order(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        study = self.studies.get(row["study_key"])
        axes = axes_of(study["cells"]) if study else []
        return (row["study_key"], *(row[axis] for axis in axes), row[SEED], row["trial_key"])

    def _curve_frame(self) -> pd.DataFrame:
        rows = [(*key, step, value) for key in sorted(self.curves) for step, value in sorted(self.curves[key].items())]
        frame = pd.DataFrame(rows, columns=list(CURVE_COLUMNS))
        return frame.astype({"step": "int64", "value": "float64"})


def _read_mlflow(client: Any) -> _Raw:
    raw = _Raw()
    experiments = {
        experiment.experiment_id: experiment.name
        for experiment in _paged(lambda token: client.search_experiments(max_results=RUNS_PER_PAGE, page_token=token))
    }

    def runs(role: str) -> Iterator[Any]:
        if not experiments:
            return iter(())
        filter_string = f"tags.`{names.TAG_ROLE}` = '{role}'"
        return _paged(
            lambda token: client.search_runs(
                list(experiments),
                filter_string,
                max_results=RUNS_PER_PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
        )

    for run in runs(names.ROLE_STUDY):
        tags = run.data.tags
        raw.add_study(
            experiments[run.info.experiment_id],
            {
                "study_key": tags[names.TAG_STUDY_KEY],
                "question": tags.get(names.TAG_QUESTION, ""),
                "start_time_ms": run.info.start_time,
                "command": tags.get(names.TAG_COMMAND, ""),
                "cells": json.loads(tags[names.TAG_GRID]),
                "params": run.data.params,
                "tags": tags,
            },
        )
    # Should a trial have two runs, the first that has ended counts.
    ended_first = sorted(runs(names.ROLE_TRIAL), key=lambda run: names.TAG_STATUS not in run.data.tags)
    run_of: dict[str, Any] = {}
    for run in ended_first:
        tags = run.data.tags
        trial_key = tags[names.TAG_TRIAL_KEY]
        run_of.setdefault(trial_key, run)
        record = {"study_key": tags[names.TAG_STUDY_KEY], "trial_key": trial_key, "tags": tags}
        raw.add_trial(experiments[run.info.experiment_id], record | {"params": run.data.params})

    def history(run: Any, metric: str) -> list[tuple[str, int, float]]:
        points = client.get_metric_history(run.info.run_id, metric) if metric in run.data.metrics else []
        points.sort(key=lambda point: (point.step, point.timestamp))
        return [(metric, point.step, point.value) for point in points]

    with ThreadPoolExecutor(HISTORIES_AT_ONCE) as pool:
        for metric in CURVE_METRICS:
            histories = pool.map(history, run_of.values(), itertools.repeat(metric))
            for trial_key, points in zip(run_of, histories, strict=True):
                raw.add_points(trial_key, points)
    for trial_key, run in run_of.items():
        if names.TAG_STATUS in run.data.tags:
            raw.ends[trial_key] = _end(run.data.tags[names.TAG_STATUS], run.data.tags)
        finals = run.data.metrics.items()
        raw.add_points(trial_key, ((name, 0, value) for name, value in finals if name not in CURVE_METRICS))
    return raw


def _paged(search: Callable[[str | None], Any]) -> Iterator[Any]:
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def _require_existing_store(uri: str) -> None:
    """MLflow creates the local store that it is asked to read, and fills a database that is not its own."""
    shown = f"MLflow store {_shown(uri)}"
    if match := re.match(r"sqlite(?:\+\w+)?:///([^?]*)", uri):
        path = Path(unquote(match[1]))
        if not path.is_file():
            raise LoadError(f"{shown} does not exist: no file {str(path)!r}")
        try:
            with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
                tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except sqlite3.Error as error:
            raise LoadError(f"{shown} cannot be read: {_one_line(error)}") from error
        if not {"experiments", "runs", "metrics"} <= tables:
            raise LoadError(f"{shown} is not an MLflow store: {str(path)!r} has none of its tables")
    elif uri.startswith("file:") or "://" not in uri:
        path = Path(unquote(re.sub(r"^file:(//)?", "", uri)))
        if not any(path.glob("*/meta.yaml")):
            raise LoadError(f"{shown} does not exist: no experiment in the folder {str(path)!r}")


def _end(status: str, tags: Mapping[str, str]) -> tuple[str, int | None]:
    step = tags.get(names.TAG_DIVERGED_STEP)
    return status, None if step is None else int(step)


def _task_of(record: Mapping[str, Any]) -> tuple[str, Mapping[str, Parameter]]:
    """The task of a study or trial and its parameters; records from before there were several tasks are trainings."""
    task = record.get("tags", {}).get(names.TAG_TASK, names.TRAINING)
    return task, PARAMETERS_OF.get(task, {})


def _typed(of_task: Mapping[str, Parameter], name: str, value: Any) -> Any:
    """A parameter's value in its own type; parameters that this version does not know stay text."""
    text = str(value)
    try:
        return of_task[name].parse(text) if name in of_task else text
    except ValueError as error:
        raise LoadError(f"parameter {name} has the unreadable value {text!r}") from error


def _typed_params(of_task: Mapping[str, Parameter], params: Mapping[str, Any]) -> dict[str, Any]:
    ordered = [name for name in of_task if name in params] + sorted(set(params) - set(of_task))
    return {name: _typed(of_task, name, params[name]) for name in ordered}


def _column(values: Sequence[Any]) -> pd.Series:
    """The values as a column; beside missing ones each keeps its own type, where pandas would make integers floats."""
    return pd.Series(values, dtype=object if None in values else None)


def _value(value: float) -> float:
    return float(value) if abs(value) < _MLFLOW_INFINITY else float(value) * float("inf")


def _shown(text: str) -> str:
    """The text without the passwords of the URLs in it."""
    return re.sub(r"://([^:/@\s]*):[^@/\s]+@", r"://\1:***@", text)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
