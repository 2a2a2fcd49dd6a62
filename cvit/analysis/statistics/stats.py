"""Means and paired differences over seeds, with 95 % Student t-intervals.

The rule for trials that did not end well: a diverged trial is a result. It counts in `diverged`, and its last measured
value enters the mean; without a measured value, it is left out of the mean and listed. Failed, unfinished and absent
trials are not results, and neither are trials that ended ok without a measured value: they are missing. A trial that a
search stopped early (pruned) is neither a result nor missing.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from scipy.special import stdtrit

from cvit import vocabulary as names
from cvit.analysis.store.axes import SEED, axes_of

NOT_STARTED = "not started"
UNFINISHED = "unfinished"
UNMEASURED = "ended without a result"

T = TypeVar("T")

STATES_WITH_RESULT = (names.STATUS_OK, names.STATUS_DIVERGED)


@dataclass(frozen=True)
class Estimate:
    """A mean of n values with its 95 % interval. Everything is NaN for n = 0, the interval for n = 1."""

    mean: float
    ci_low: float
    ci_high: float
    n: int

    @property
    def half_width(self) -> float:
        return (self.ci_high - self.ci_low) / 2


@dataclass(frozen=True)
class Result:
    """The outcome of one expected trial, whether it ran or not.

    Attributes:
        place: its values on the study's axes.
        state: ok, diverged, failed, unfinished, not started or unmeasured.
        value: the metric's final value of an ok or diverged trial; NaN without one.
        trial: the trial's row; None if there is no such trial.
    """

    place: Mapping[str, Any]
    seed: int
    state: str
    value: float
    trial: Mapping[str, Any] | None

    @property
    def missing(self) -> bool:
        return self.state not in (*STATES_WITH_RESULT, names.STATUS_PRUNED)

    @property
    def diverged(self) -> bool:
        return self.state == names.STATUS_DIVERGED


@dataclass(frozen=True)
class Summary:
    """A cell of a table: its place on the axes, the estimate, and the numbers of trials (or pairs) behind it."""

    place: Mapping[str, Any]
    estimate: Estimate
    expected: int
    diverged: int
    missing: int


def mean_of(values: Iterable[float]) -> float:
    """The mean of the values that are not NaN; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def t_interval(values: Iterable[float]) -> Estimate:
    """The mean and 95 % t-interval of finite values: mean ± t(0.975, n-1) · s / √n."""
    array = np.fromiter(values, dtype=float)
    n = len(array)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean = float(array.mean())
    if n == 1:
        return Estimate(mean, math.nan, math.nan, 1)
    half_width = float(stdtrit(n - 1, 0.975) * array.std(ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half_width, mean + half_width, n)


def study_results(
    cells: Sequence[Mapping[str, Sequence[Any]]],
    trials: Iterable[Mapping[str, Any]],
    metric: str = names.TEST_ACCURACY,
) -> list[Result]:
    """The results of all expected trials of a study, in the order of the grids, without duplicates.

    Args:
        cells: the study's grids.
        trials: the study's rows of the trials frame.
        metric: the metric of `value`.
    """
    names_of_cell = [*axes_of(cells), SEED]
    trial_of: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for trial in trials:
        cell = tuple(trial[name] for name in names_of_cell)
        # If a cell has two trials, as after the configuration gained a parameter, the one with a result counts.
        if cell not in trial_of or trial_of[cell]["status"] not in STATES_WITH_RESULT:
            trial_of[cell] = trial
    expected = (cell for grid in cells for cell in itertools.product(*(grid[name] for name in names_of_cell)))
    return [_result(dict(zip(names_of_cell, c, strict=True)), trial_of.get(c), metric) for c in dict.fromkeys(expected)]


def summarise(results: Iterable[Result], by: Sequence[str]) -> list[Summary]:
    """A summary per group of results with equal values on the axes `by`, in the order of their first results."""
    return [
        Summary(
            place=dict(zip(by, group, strict=True)),
            estimate=t_interval(result.value for result in part if math.isfinite(result.value)),
            expected=len(part),
            diverged=sum(result.diverged for result in part),
            missing=sum(result.missing for result in part),
        )
        for group, part in _grouped(results, lambda result: tuple(result.place[axis] for axis in by)).items()
    ]


def paired_difference(results: Iterable[Result], arm: str, treatment: Any, baseline: Any) -> list[Summary]:
    """Treatment minus baseline on the same seeds, a summary per combination of the axes other than `arm`.

    Args:
        results: the results of a study.
        arm: the axis that separates treatment and baseline.
        treatment: the value of `arm` whose gain is computed.
        baseline: the value of `arm` that the treatment is compared with.

    Returns:
        Summaries that count pairs: `n` complete ones, `expected` by the grid, `diverged` with a diverged member,
        `missing` with a missing member.
    """
    cells = _grouped(
        results, lambda result: (*((k, v) for k, v in result.place.items() if k != arm), (SEED, result.seed))
    )
    pairs = []
    for cell, members in cells.items():
        by_arm = {result.place[arm]: result for result in members}
        if treatment in by_arm and baseline in by_arm:
            pairs.append((cell[:-1], by_arm[treatment], by_arm[baseline]))
    summaries = []
    for group, part in _grouped(pairs, lambda pair: pair[0]).items():
        differences = (treated.value - base.value for _, treated, base in part)
        summaries.append(
            Summary(
                place=dict(group),
                estimate=t_interval(difference for difference in differences if math.isfinite(difference)),
                expected=len(part),
                diverged=sum(treated.diverged or base.diverged for _, treated, base in part),
                missing=sum(treated.missing or base.missing for _, treated, base in part),
            )
        )
    return summaries


def _result(cell: dict[str, Any], trial: Mapping[str, Any] | None, metric: str) -> Result:
    seed = cell.pop(SEED)
    state = NOT_STARTED if trial is None else trial["status"] or UNFINISHED
    value = math.nan
    if trial is not None and state in STATES_WITH_RESULT and math.isfinite(trial.get(metric, math.nan)):
        value = float(trial[metric])
    if state == names.STATUS_OK and math.isnan(value):
        state = UNMEASURED
    return Result(cell, seed, state, value, trial)


def _grouped(items: Iterable[T], key: Callable[[T], tuple[Any, ...]]) -> dict[tuple[Any, ...], list[T]]:
    groups: dict[tuple[Any, ...], list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
