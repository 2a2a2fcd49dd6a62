"""Studies, ready for tables and figures: their axes, the results of their trials, and their statistics."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from cvit import vocabulary as names
from cvit.analysis.statistics.shares import Shares, one_per_subset, shares_of
from cvit.analysis.statistics.stats import Result, Summary, paired_difference, study_results, summarise
from cvit.analysis.store.axes import INNER_DIM, SCHEME, axes_of, sort_key
from cvit.analysis.store.frames import CURVE_COLUMNS, Frames, rows_of
from cvit.tasks import TASK_NAMES, Task, task_named

TREATMENT = "two_phase"
BASELINE = "random"
GAIN = f"{TREATMENT} - {BASELINE}"
"""The name of the paired gain, for the column of init schemes."""


class TableError(ValueError):
    """A study that a table cannot show; the message is one line."""


@dataclass(frozen=True)
class Study:
    """A study of any sweep.

    Attributes:
        label: the data set, or the sweep if there is none, and the start of the study's key.
        metric: the metric of its task that answers the question.
        axes: the axes without the init scheme, which the rows of a table vary.
        schemes: the init schemes, in the order of the grid; `-` for a task that has none.
        trials: its rows of the trials frame.
        results: one per expected trial, ascending by `axes`, then by scheme and seed.
        cells: the grids, in the order in which they were requested.
        preset: the presets that asked for them, joined by ", "; empty in journals that do not say.
        curves: (trial key, metric) → values by step, for the metrics whose history was loaded.
        search_space: the parameters that a search varied and their ranges, as JSON; empty for a grid, and in journals
            that do not say.
    """

    label: str
    sweep: str
    task: str
    metric: str
    dataset: str
    question: str
    command: str
    start_time_ms: int
    params: Mapping[str, Any]
    axes: list[str]
    schemes: list[str]
    trials: list[dict[str, Any]]
    results: list[Result]
    cells: list[dict[str, list[Any]]]
    curves: Mapping[tuple[str, str], Mapping[int, float]]
    preset: str = ""
    search_space: str = ""

    def with_axes_like(self, order: Sequence[str]) -> "Study":
        """The study with its axes, and so the rows of its tables, in another order; those that are not in it last."""
        axes = sorted(self.axes, key=lambda axis: order.index(axis) if axis in order else len(order))
        study = replace(self, axes=axes)
        return replace(study, results=sorted(self.results, key=lambda result: (*study.order_of(result), result.seed)))

    @property
    def missing(self) -> list[Result]:
        return [result for result in self.results if result.missing]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The distinct combinations of values on `axes`, ascending."""
        return [dict(zip(self.axes, row, strict=True)) for row in dict.fromkeys(map(self.row_of, self.results))]

    @cached_property
    def means(self) -> list[Summary]:
        """The means of the metric, a summary per row and scheme."""
        return summarise(self.results, [*self.axes, SCHEME])

    @cached_property
    def gain(self) -> list[Summary]:
        """Two phases minus random initialisation on the same seeds, a summary per row that has both."""
        gains = paired_difference(self.results, SCHEME, TREATMENT, BASELINE)
        return [replace(gain, place={**gain.place, SCHEME: GAIN}) for gain in gains]

    @cached_property
    def shares(self) -> Shares:
        """The shares of the images in its trials."""
        return shares_of(self.trials)

    @cached_property
    def head_dim(self) -> int | None:
        """The width of a head in trials whose `inner_dim` is not set (0); None if these trials differ in it."""
        widths = {trial.get("head_dim") for trial in self.trials if not trial.get(INNER_DIM)}
        widths = widths or {self.params.get("head_dim")}
        return next(iter(widths)) if len(widths) == 1 else None

    @property
    def needed_heads(self) -> int:
        """The heads that a convolution of width 3 needs: 9 on images, 3 on sequences."""
        return 3 ** int(self.params.get("dimensions", 2))

    def values(self, axis: str) -> list[Any]:
        """The distinct values of one of the `axes`, ascending."""
        return sorted({result.place[axis] for result in self.results}, key=sort_key)

    def row_of(self, item: Result | Summary) -> tuple[Any, ...]:
        """The place of a result or summary on `axes`."""
        return tuple(item.place[axis] for axis in self.axes)

    def order_of(self, item: Result | Summary) -> tuple[Any, ...]:
        """A key that sorts results and summaries: ascending by `axes`, then by scheme."""
        return (*map(sort_key, self.row_of(item)), self.schemes.index(item.place[SCHEME]))

    def trials_at(self, place: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The expected trials at a place on some of the axes, without those that have not started."""
        return [
            result.trial
            for result in self.results
            if result.trial is not None and all(result.place[axis] == value for axis, value in place.items())
        ]

    def steps_to(self, trial: Mapping[str, Any], accuracy: float, after: float = -1) -> float:
        """The step of the first evaluation on validation images, later than `after`, that reaches an accuracy; infinite
        if none does, NaN without evaluations. Steps of both phases are counted."""
        curve = self.curves.get((trial["trial_key"], names.VAL_ACCURACY))
        if not curve or math.isnan(accuracy):
            return math.nan
        return min((step for step, value in curve.items() if step > after and value >= accuracy), default=math.inf)


def gains_over(study: Study, baseline: str = BASELINE) -> list[Summary]:
    """Every scheme minus the baseline on the same seeds, a summary per row and scheme that has both."""
    gains = [
        replace(gain, place={**gain.place, SCHEME: scheme})
        for scheme in study.schemes
        if scheme != baseline
        for gain in paired_difference(study.results, SCHEME, scheme, baseline)
    ]
    return sorted(gains, key=study.order_of)


def read_studies(frames: Frames, sweep: str, axes: Collection[str] = ()) -> list[Study]:
    """The studies of a sweep, most recent first.

    Args:
        axes: the axes, init scheme included, that every study must have; empty for any axes.

    Raises:
        TableError: a study has other axes.
    """
    studies = all_studies(frames, sweep)
    require_axes(studies, axes)
    return studies


def require_axes(studies: Iterable[Study], axes: Collection[str], further_axes: Collection[str] = ()) -> None:
    """Raises TableError if a study has other axes, init scheme included, than those and any of the further ones; none
    stand for any axes."""
    for study in studies:
        varied = [axis for axis in axes_of(study.cells) if axis in (*study.axes, SCHEME)]
        if axes and set(varied) - set(further_axes) != set(axes):
            raise TableError(f"study {study.label} varies {', '.join(varied)}; this table shows {', '.join(axes)}")


def all_studies(frames: Frames, sweep: str | None = None) -> list[Study]:
    """The studies of all sweeps or of one, with any axes, most recent first."""
    by_study: dict[str, list[dict[str, Any]]] = {}
    for trial in rows_of(frames.trials):
        by_study.setdefault(trial["study_key"], []).append(trial)
    rows = [row for row in rows_of(frames.studies) if sweep in (None, row["sweep"])]
    rows.sort(key=lambda row: row["start_time_ms"], reverse=True)
    curves = _curves(frames)
    return [_read_study(row, by_study.get(row["study_key"], []), curves) for row in rows]


def read_study(frames: Frames, study_key: str) -> Study:
    """One study, with any axes.

    Raises:
        KeyError: there is no such study.
    """
    for row in rows_of(frames.studies):
        if row["study_key"] == study_key:
            trials = [trial for trial in rows_of(frames.trials) if trial["study_key"] == study_key]
            return _read_study(row, trials, _curves(frames))
    raise KeyError(study_key)


def _curves(frames: Frames) -> dict[tuple[str, str], dict[int, float]]:
    curves: dict[tuple[str, str], dict[int, float]] = {}
    for trial_key, metric, step, value in frames.curves[list(CURVE_COLUMNS)].itertuples(index=False, name=None):
        if math.isfinite(value):
            curves.setdefault((trial_key, metric), {})[step] = value
    return curves


def _read_study(
    study: Mapping[str, Any],
    trials: list[dict[str, Any]],
    curves: Mapping[tuple[str, str], Mapping[int, float]],
) -> Study:
    dataset = study["params"].get("dataset") or next((trial.get("dataset") for trial in trials), None)
    task = _task(study["task"])
    axes = axes_of(study["cells"])
    results = one_per_subset(study_results(study["cells"], trials, task.metric), shares_of(trials))
    if SCHEME not in axes:  # all trials share it, or have none
        scheme = study["params"].get(SCHEME, "-")
        results = [replace(result, place={**result.place, SCHEME: scheme}) for result in results]
    schemes = list(dict.fromkeys(result.place[SCHEME] for result in results))
    rows = [axis for axis in axes if axis != SCHEME]
    results.sort(key=lambda r: (*(sort_key(r.place[axis]) for axis in rows), schemes.index(r.place[SCHEME]), r.seed))
    dataset = dataset or ("unknown" if task.needs_data else "")
    return Study(
        label=f"{dataset or study['sweep']}-{study['study_key'][:8]}",
        sweep=study["sweep"],
        task=study["task"],
        metric=task.metric,
        dataset=dataset,
        question=study["question"],
        command=study["command"],
        start_time_ms=study["start_time_ms"],
        params=study["params"],
        axes=rows,
        schemes=schemes,
        trials=trials,
        results=results,
        cells=study["cells"],
        curves=curves,
        preset=study["preset"] or "",
        search_space=study["search_space"] or "",
    )


def _task(name: str) -> Task:
    """The task of the given name; `training` for a task that this version does not know."""
    return task_named(name if name in TASK_NAMES else names.TRAINING)
