"""Tidy frames with the contents of a journal or of a tracking store; they do not depend on the kind of store.

`studies`  one row per study: study_key, sweep, task, question, start_time_ms, command, cells, params,
           preset (several joined by ", "; None if unknown), search_space (JSON: what a search varied; None if
           unknown, and for a grid)
`trials`   one row per trial: trial_key, study_key, sweep, task, status (missing while unfinished), diverged_step,
           error (why it failed; missing unless it did), with what it was trained: code_version, torch_version, device,
           cpu_capability (None if unknown; several joined by ", "), train_images (their number; missing if unknown),
           every flat parameter of its task (typed; None if it is not set, and for parameters of other tasks), the final
           value, at the largest step, of every metric (NaN if never measured)
`curves`   one row per measurement of the metrics whose history is loaded: trial_key, metric, step, value

`cells` is a list of grids, each a mapping from parameter name to values, `seed` included; the trials that a study
expects are the union of the grids' products. Accuracies are fractions in 0..1.

A parameter that is not set has the number that earlier versions used in place of None, if there is one, such as 0 for
`inner_dim`: so tables and CSV files are the same for old stores and new ones.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from cvit import vocabulary as names
from cvit.analysis.store.axes import SEED, axes_of, sort_key
from cvit.errors import counted
from cvit.parameters import Parameter, as_text, with_numbers
from cvit.records import EndRecord, PointsRecord, Record, StudyRecord, TrialRecord
from cvit.redaction import redacted, without_secrets
from cvit.storage import StorageError
from cvit.tasks import TASK_NAMES, parameters_of_task

CurvesOf = Callable[[str], Collection[str] | None]
"""Sweep → the metrics whose whole history is loaded; None for all. On an MLflow server, a history costs a query per
run."""

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
"""The metrics that always have a column in `trials`; others have one if they occur."""

STUDY_COLUMNS = (
    "study_key",
    "sweep",
    "task",
    "question",
    "start_time_ms",
    "command",
    "cells",
    "params",
    "preset",
    "search_space",
)
TRAINED_WITH = {
    "code_version": names.TAG_CODE_VERSION,
    "torch_version": names.TAG_TORCH_VERSION,
    "device": names.TAG_DEVICE,
    "cpu_capability": names.TAG_CPU_CAPABILITY,
}
"""The columns that say with what a trial was trained, and their tags."""
TRIAL_COLUMNS = (
    *("trial_key", "study_key", "sweep", "task", "status", "diverged_step", "error"),
    *TRAINED_WITH,
    "train_images",
)
CURVE_COLUMNS = ("trial_key", "metric", "step", "value")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_MLFLOW_INFINITY = 1.797e308  # MLflow stores infinities as the largest finite double


class LoadError(StorageError):
    """The store cannot be read or is empty; the message is one line that names the store."""


@dataclass(frozen=True, repr=False)
class Frames:
    """The contents of a store as tidy frames; the module's docstring lists the columns."""

    studies: pd.DataFrame
    trials: pd.DataFrame
    curves: pd.DataFrame

    def __repr__(self) -> str:
        failed = f" ({len(self.failed)} failed)" if len(self.failed) else ""
        counts = f"{counted(len(self.trials), 'trial')}{failed}, {len(self.curves)} rows of curves"
        return f"<Frames: {len(self.studies)} studies, {counts}>".replace(" 1 studies", " 1 study")

    @property
    def failed(self) -> pd.DataFrame:
        """The trials that failed; the column `error` says why."""
        return self.trials.loc[(self.trials["status"] == names.STATUS_FAILED).fillna(False)]

    def only(self, trials: Collection[tuple[str, str]]) -> "Frames":
        """The frames of some trials alone, each named by the keys of its study and its own."""
        places = zip(self.trials["study_key"], self.trials["trial_key"], strict=True)
        chosen = self.trials.loc[[place in trials for place in places]].reset_index(drop=True)
        studies = self.studies.loc[self.studies["study_key"].isin([study for study, _ in trials])]
        curves = self.curves.loc[self.curves["trial_key"].isin(chosen["trial_key"])]
        return Frames(studies.reset_index(drop=True), chosen, curves.reset_index(drop=True))


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as mappings, missing values as None."""
    return [
        {str(name): None if value is pd.NA else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def no_curves(sweep: str) -> tuple[str, ...]:
    """No metrics, for a caller that needs only final values."""
    return ()


def all_curves(sweep: str) -> None:
    """Every metric, for a caller that looks at whatever there is."""
    return


@dataclass
class Raw:
    """The contents of a store before they become frames. If anything occurs twice, the first counts, unless noted.

    Attributes:
        trials: the rows of trials, by (study key, trial key).
        ends: status, diverged step and error, by trial key.
        finals: the last step and its value, by (trial key, metric).
        curves: values by step, by (trial key, metric).
        trained_with: with what trials that have ended were trained, by trial key and column.
    """

    curves_of: CurvesOf
    studies: dict[str, dict[str, Any]] = field(default_factory=dict)
    trials: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    ends: dict[str, tuple[str, int | None, str | None]] = field(default_factory=dict)
    finals: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    curves: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)
    trained_with: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, sweep: str, record: Record) -> None:
        """Adds a record of a sweep."""
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
        """Adds a study or its extension: the cells are united, and the last command counts.

        Raises:
            LoadError: the study has grids of different axes, which no version so far writes.
        """
        task, parameters = _task_of(record.tags)
        cells = [
            {name: [_typed(parameters, name, value) for value in grid[name]] for name in sorted(grid)}
            for grid in record.cells
        ]
        study = self.studies.setdefault(
            record.study_key,
            {
                "study_key": record.study_key,
                "sweep": _in_one_line(sweep),
                "task": task,
                "question": _in_one_line(redacted(record.question)),
                "start_time_ms": int(record.start_time_ms),
                "cells": [],
                "params": _typed_params(parameters, record.params),
                "preset": None,
                "search_space": None,
            },
        )
        if any(grid.keys() != (*study["cells"], *cells)[0].keys() for grid in cells):
            raise LoadError(f"study {record.study_key} has grids of different axes")
        # The engine hides secrets too, but an earlier version of it may have missed one.
        study["command"] = redacted(record.command)
        if (preset := record.tags.get(names.TAG_PRESET)) is not None:
            presets = [*(study["preset"] or "").split(", "), *_in_one_line(preset).split(", ")]
            study["preset"] = ", ".join(dict.fromkeys(filter(None, presets)))
        if (space := record.tags.get(names.TAG_SEARCH_SPACE)) is not None:
            study["search_space"] = space
        study["cells"] += [grid for grid in cells if grid not in study["cells"]]

    def add_trial(self, sweep: str, record: TrialRecord) -> None:
        """Adds a trial. A parameter that it lacks was added later, so it has its neutral value."""
        task, parameters = _task_of(record.tags)
        row: dict[str, Any] = {"trial_key": record.trial_key, "study_key": record.study_key}
        row["sweep"] = _in_one_line(sweep)
        # Before trials said with what they were trained, the code version was that of their planning.
        row |= {"task": task, "code_version": record.tags.get(names.TAG_CODE_VERSION)}
        images = record.tags.get(names.TAG_TRAIN_IMAGES)
        row["train_images"] = int(images) if images is not None and images.isdigit() else None
        neutral = with_numbers({name: parameter.neutral for name, parameter in parameters.items()}, parameters)
        place = (record.study_key, record.trial_key)
        self.trials.setdefault(place, row | neutral | _typed_params(parameters, record.params))

    def add_points(self, sweep: str, record: PointsRecord) -> None:
        """Adds measurements of a trial."""
        wanted = self.curves_of(sweep)
        for metric, step, value, _ in record.points:
            self.add_final(record.trial_key, metric, step, value)
            if wanted is None or metric in wanted:
                self.add_to_curve(record.trial_key, metric, step, value)

    def add_final(self, trial_key: str, metric: str, step: int, value: float) -> None:
        """Adds a measurement that may be the trial's last of its metric."""
        key = (trial_key, metric)
        if key not in self.finals or step > self.finals[key][0]:
            self.finals[key] = (step, _value(value))

    def add_to_curve(self, trial_key: str, metric: str, step: int, value: float) -> None:
        """Adds a measurement of a metric whose history is loaded."""
        self.curves.setdefault((trial_key, metric), {}).setdefault(step, _value(value))

    def add_end(self, record: EndRecord) -> None:
        """Adds the end of a trial; the last one counts."""
        step = record.tags.get(names.TAG_DIVERGED_STEP)
        diverged_step = int(step) if step is not None and step.isdigit() else None
        error = _in_one_line(redacted(record.note)) if record.status == names.STATUS_FAILED else None
        self.ends[record.trial_key] = (record.status, diverged_step, error)
        known = {column: _in_one_line(record.tags[tag]) for column, tag in TRAINED_WITH.items() if tag in record.tags}
        self.trained_with.setdefault(record.trial_key, {}).update(known)

    def frames(self, source: str) -> Frames:
        """The frames, in an order that does not depend on the store.

        Raises:
            LoadError: there is no study.
        """
        if not self.studies:
            raise LoadError(f"{source} holds no study")
        return self.tidy()

    def tidy(self) -> Frames:
        """The frames, which may be empty."""
        studies = sorted(self.studies.values(), key=lambda row: (row["sweep"], row["start_time_ms"], row["study_key"]))
        return Frames(pd.DataFrame(studies, columns=list(STUDY_COLUMNS)), self._trial_frame(), self._curve_frame())

    def _trial_frame(self) -> pd.DataFrame:
        metrics = [*METRICS, *sorted({metric for _, metric in self.finals} - set(METRICS))]
        rows = []
        for (_, trial_key), trial in self.trials.items():
            status, diverged_step, error = self.ends.get(trial_key, (None, None, None))
            final = {metric: self.finals.get((trial_key, metric), (0, float("nan")))[1] for metric in metrics}
            ended = {"status": status, "diverged_step": diverged_step, "error": error}
            ended |= self.trained_with.get(trial_key, {})
            rows.append(trial | ended | final)
        rows.sort(key=self._trial_order)
        tasks = {row["task"] for row in [*self.studies.values(), *rows]}
        parameters = dict.fromkeys(name for task in TASK_NAMES if task in tasks for name in parameters_of_task(task))
        others = sorted({name for row in rows for name in row} - {*TRIAL_COLUMNS, *parameters, *metrics})
        columns = [*TRIAL_COLUMNS, *parameters, *others, *metrics]
        frame = pd.DataFrame({name: _column([row.get(name) for row in rows]) for name in columns})
        texts = dict.fromkeys(("status", "error", *TRAINED_WITH), "string")
        counts = dict.fromkeys(("diverged_step", "train_images"), "Int64")
        return frame.astype(texts | counts | dict.fromkeys(metrics, "float64"))

    def _trial_order(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        study = self.studies.get(row["study_key"])
        axes = axes_of(study["cells"]) if study else []
        return (row["study_key"], *(sort_key(row[axis]) for axis in axes), row[SEED], row["trial_key"])

    def _curve_frame(self) -> pd.DataFrame:
        rows = [(*key, step, value) for key in sorted(self.curves) for step, value in sorted(self.curves[key].items())]
        frame = pd.DataFrame(rows, columns=list(CURVE_COLUMNS))
        return frame.astype({"step": "int64", "value": "float64"})


def _task_of(tags: Mapping[str, str]) -> tuple[str, Mapping[str, Parameter]]:
    """The task of a study or trial, and its parameters; old records without a task are trainings."""
    task = tags.get(names.TAG_TASK, names.TRAINING)
    return task, parameters_of_task(task)


def _typed(parameters: Mapping[str, Parameter], name: str, value: Any) -> Any:
    """A parameter's value in its type; the values of unknown parameters stay text."""
    text = _in_one_line(without_secrets(as_text(value)))
    if name not in parameters:
        return text
    try:
        return with_numbers({name: parameters[name].parse(text)}, parameters)[name]
    except ValueError as error:
        raise LoadError(f"parameter {name} has the unreadable value {text!r}") from error


def _in_one_line(text: str) -> str:
    """A text without line breaks and other control characters, which no table, figure or name of a file can have."""
    return _CONTROL.sub(" ", text)


def _typed_params(parameters: Mapping[str, Parameter], params: Mapping[str, Any]) -> dict[str, Any]:
    ordered = [name for name in parameters if name in params] + sorted(set(params) - set(parameters))
    return {name: _typed(parameters, name, params[name]) for name in ordered}


def _column(values: Sequence[Any]) -> pd.Series:
    """The values as a column; beside missing values it has objects, because pandas would turn integers into floats."""
    return pd.Series(values, dtype=object if None in values else None)


def _value(value: float) -> float:
    return float(value) if abs(value) < _MLFLOW_INFINITY else float(value) * float("inf")
