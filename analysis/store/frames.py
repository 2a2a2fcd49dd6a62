"""Tidy frames of what a tracking store holds, whichever kind of store it is.

`studies`  one row per study: study_key, sweep, task, question, start_time_ms, command, cells, params
`trials`   one row per trial: trial_key, study_key, sweep, task, status (missing while unfinished), diverged_step,
           code_version, device (None where unknown), every flat parameter of its task (typed; None where it is not
           set, and for those of other tasks), the final value, at the largest step, of every metric (NaN where never
           measured)
`curves`   one row per measurement of the metrics that the loader was asked for: trial_key, metric, step, value

`cells` is a list of grids, each a mapping from parameter name to values, `seed` included; the trials that a study
expects are the union of the grids' products. Accuracies are fractions in 0..1.

Where a parameter is not set and a number stood for that before there was None, such as 0 for `inner_dim`, it is that
number: so tables and CSV files are the same for old stores and new ones.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis.store.axes import SEED, axes_of, sort_key
from cvit import vocabulary as names
from cvit.config import Parameter, as_text, with_numbers
from cvit.records import EndRecord, PointsRecord, Record, StudyRecord, TrialRecord
from cvit.tasks import TASK_NAMES, parameters_of_task

CurvesOf = Callable[[str], Collection[str]]
"""From a sweep to the metrics whose whole history is loaded. A history costs a query per run on an MLflow server."""

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
    names.EARLY_LOSS,
    names.GRAD_NORM_MAX,
    names.GRAD_NORM_MAX_STEP,
    names.LOSS_SPIKES,
    names.EXPRESSIVITY_ERROR,
    names.EXPRESSIVITY_BOUND,
)
"""The metrics that always have a column in `trials`; others get one when they occur."""

STUDY_COLUMNS = ("study_key", "sweep", "task", "question", "start_time_ms", "command", "cells", "params")
TRIAL_COLUMNS = ("trial_key", "study_key", "sweep", "task", "status", "diverged_step", "code_version", "device")
CURVE_COLUMNS = ("trial_key", "metric", "step", "value")

_MLFLOW_INFINITY = 1.797e308  # MLflow stores infinities as the largest finite double


class LoadError(Exception):
    """The store cannot be read or holds nothing; the message is one line that names it."""


@dataclass(frozen=True)
class Frames:
    """The content of a tracking store, tidy; the columns are those of the module's docstring."""

    studies: pd.DataFrame
    trials: pd.DataFrame
    curves: pd.DataFrame


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as mappings, missing values as None."""
    return [
        {str(name): None if value is pd.NA else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def no_curves(sweep: str) -> tuple[str, ...]:
    """Asks for no history at all: tables rest on final values."""
    return ()


@dataclass
class Raw:
    """The content of a store on its way into frames; the first mention of anything wins, except where noted.

    Attributes:
        trials: by (study key, trial key).
        ends: status and diverged step, by trial key.
        finals: the last step and its value, by (trial key, metric).
        curves: values by step, by (trial key, metric).
        devices: where a trial was trained, by trial key.
    """

    curves_of: CurvesOf
    studies: dict[str, dict[str, Any]] = field(default_factory=dict)
    trials: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    ends: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    finals: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    curves: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)

    def add(self, sweep: str, record: Record) -> None:
        """Takes up a record of a sweep."""
        match record:
            case StudyRecord():
                self.add_study(sweep, record)
            case TrialRecord():
                self.add_trial(sweep, record)
            case PointsRecord():
                self.add_points(sweep, record)
            case EndRecord():
                self.add_end(record)

    def add_study(self, sweep: str, record: StudyRecord) -> None:
        """Takes up a study or its extension: cells are united, and the last command wins."""
        task, parameters = _task_of(record.tags)
        cells = [
            {name: [_typed(parameters, name, value) for value in grid[name]] for name in sorted(grid)}
            for grid in record.cells
        ]
        study = self.studies.setdefault(
            record.study_key,
            {
                "study_key": record.study_key,
                "sweep": sweep,
                "task": task,
                "question": record.question,
                "start_time_ms": int(record.start_time_ms),
                "cells": [],
                "params": _typed_params(parameters, record.params),
            },
        )
        study["command"] = record.command
        study["cells"] += [grid for grid in cells if grid not in study["cells"]]

    def add_trial(self, sweep: str, record: TrialRecord) -> None:
        """Takes up a trial; a parameter that it does not state is younger than the trial, and neutral."""
        task, parameters = _task_of(record.tags)
        row: dict[str, Any] = {"trial_key": record.trial_key, "study_key": record.study_key, "sweep": sweep}
        row |= {"task": task, "code_version": record.tags.get(names.TAG_CODE_VERSION)}
        neutral = with_numbers({name: parameter.neutral for name, parameter in parameters.items()}, parameters)
        place = (record.study_key, record.trial_key)
        self.trials.setdefault(place, row | neutral | _typed_params(parameters, record.params))

    def add_points(self, sweep: str, record: PointsRecord) -> None:
        """Takes up measurements of a trial."""
        for metric, step, value, _ in record.points:
            self.add_final(record.trial_key, metric, step, value)
            if metric in self.curves_of(sweep):
                self.add_to_curve(record.trial_key, metric, step, value)

    def add_final(self, trial_key: str, metric: str, step: int, value: float) -> None:
        """Takes up a measurement that may be the trial's last of this metric."""
        key = (trial_key, metric)
        if key not in self.finals or step > self.finals[key][0]:
            self.finals[key] = (step, _value(value))

    def add_to_curve(self, trial_key: str, metric: str, step: int, value: float) -> None:
        """Takes up a measurement of a metric whose history is asked for."""
        self.curves.setdefault((trial_key, metric), {}).setdefault(step, _value(value))

    def add_end(self, record: EndRecord) -> None:
        """Takes up the end of a trial; the last one wins."""
        step = record.tags.get(names.TAG_DIVERGED_STEP)
        self.ends[record.trial_key] = (record.status, None if step is None else int(step))
        if names.TAG_DEVICE in record.tags:
            self.devices[record.trial_key] = record.tags[names.TAG_DEVICE]

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
            ended = {"status": status, "diverged_step": diverged_step, "device": self.devices.get(trial_key)}
            rows.append(trial | ended | final)
        rows.sort(key=self._trial_order)
        tasks = {row["task"] for row in [*self.studies.values(), *rows]}
        parameters = dict.fromkeys(name for task in TASK_NAMES if task in tasks for name in parameters_of_task(task))
        others = sorted({name for row in rows for name in row} - {*TRIAL_COLUMNS, *parameters, *metrics})
        columns = [*TRIAL_COLUMNS, *parameters, *others, *metrics]
        frame = pd.DataFrame({name: _column([row.get(name) for row in rows]) for name in columns})
        texts = dict.fromkeys(("status", "code_version", "device"), "string")
        return frame.astype(texts | {"diverged_step": "Int64"} | dict.fromkeys(metrics, "float64"))

    def _trial_order(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        study = self.studies.get(row["study_key"])
        axes = axes_of(study["cells"]) if study else []
        return (row["study_key"], *(sort_key(row[axis]) for axis in axes), row[SEED], row["trial_key"])

    def _curve_frame(self) -> pd.DataFrame:
        rows = [(*key, step, value) for key in sorted(self.curves) for step, value in sorted(self.curves[key].items())]
        frame = pd.DataFrame(rows, columns=list(CURVE_COLUMNS))
        return frame.astype({"step": "int64", "value": "float64"})


def _task_of(tags: Mapping[str, str]) -> tuple[str, Mapping[str, Parameter]]:
    """The task of a study or trial and its parameters; records from before there were several tasks are trainings."""
    task = tags.get(names.TAG_TASK, names.TRAINING)
    return task, parameters_of_task(task)


def _typed(parameters: Mapping[str, Parameter], name: str, value: Any) -> Any:
    """A parameter's value in its own type; parameters that this version does not know stay text."""
    text = as_text(value)
    if name not in parameters:
        return text
    try:
        return with_numbers({name: parameters[name].parse(text)}, parameters)[name]
    except ValueError as error:
        raise LoadError(f"parameter {name} has the unreadable value {text!r}") from error


def _typed_params(parameters: Mapping[str, Parameter], params: Mapping[str, Any]) -> dict[str, Any]:
    ordered = [name for name in parameters if name in params] + sorted(set(params) - set(parameters))
    return {name: _typed(parameters, name, params[name]) for name in ordered}


def _column(values: Sequence[Any]) -> pd.Series:
    """The values as a column; beside missing ones each keeps its own type, where pandas would make integers floats."""
    return pd.Series(values, dtype=object if None in values else None)


def _value(value: float) -> float:
    return float(value) if abs(value) < _MLFLOW_INFINITY else float(value) * float("inf")
