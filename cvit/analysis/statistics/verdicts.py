"""The rule that decides whether a claim about accuracies or steps holds.

A claim is about the mean of a difference between trials on the same seeds. It has two lines, one MARGIN apart, where
MARGIN is the smallest difference that matters: for a claim of a gain they are 0 and +MARGIN, for a claim of no loss
-MARGIN and 0. The claim *holds* if the whole interval lies above the lower line. Otherwise it *does not hold* if the
whole interval lies below the upper line: any gain is too small to matter, or there is a loss. Otherwise there is *not
enough data*.

Fewer than LEAST_PAIRS pairs are not enough, and neither are pairs that all differ by the same amount, however large it
is: without spread, nothing tells how far chance moves them. Nearly all accuracies are shares of a few hundred images,
so this happens, and a zero standard error would decide anything.

The ends of the interval are Student's t limits. Claims of one family (the same question of one study at several places)
are judged together by Holm's step-down procedure, once for holding and once for not holding, each at ERROR_RATE: so the
chance that any verdict of a family is wrong in either direction is at most 2 · ERROR_RATE. A family contains every
claim that could have been judged: its verdicts may be selected by the results afterwards, its members may not. Families
are not corrected for each other.

The interval beside a verdict is that of the tables, 95 % for this difference alone, so that a number has one interval
wherever it is shown. The correction is in the p-value: Holm's adjusted one decides where it is at most ERROR_RATE.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from cvit.analysis.statistics.stats import mean_of

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "not enough data"

MARGIN = 0.01
"""The smallest difference that matters: one point of accuracy, or one percent of the steps."""
LEAST_PAIRS = 3
ERROR_RATE = 0.025
ROUNDING = 1e-6
"""Differences that vary by less than this are the same: accuracies on fewer than a million images are further apart."""


@dataclass(frozen=True)
class Judged:
    """A verdict and its basis: the mean, its 95 % interval and Holm's adjusted p-value (NaN without one), the number of
    pairs. The p-value is that of the verdict; of an undecided claim it is the smaller of the two, for and against it.
    """

    verdict: str
    estimate: float = math.nan
    ci_low: float = math.nan
    ci_high: float = math.nan
    n: int = 0
    p_holm: float = math.nan


def judge(family: Sequence[Sequence[float]], line: float, margin: float = MARGIN) -> list[Judged]:
    """The verdicts on a family of claims that mean differences lie above a line.

    Args:
        family: the differences of each claim, one per pair.
        line: the lower line: 0 for a gain, -margin for no loss.
        margin: the distance of the upper line from the lower one, in the unit of the differences.
    """
    members = [i for i, differences in enumerate(family) if len(differences) >= LEAST_PAIRS]
    p_for = holm_adjusted([_p_above(family[i], line) for i in members])
    p_against = holm_adjusted([_p_above([-d for d in family[i]], -(line + margin)) for i in members])
    judged = [Judged(UNDECIDED, estimate=mean_of(differences), n=len(differences)) for differences in family]
    for i, for_it, against in zip(members, p_for, p_against, strict=True):
        if not _varies(family[i]):
            continue
        low = _limit(family[i], ERROR_RATE)
        high = -_limit([-difference for difference in family[i]], ERROR_RATE)
        verdict = HOLDS if for_it <= ERROR_RATE else FAILS if against <= ERROR_RATE else UNDECIDED
        p = for_it if verdict == HOLDS else against if verdict == FAILS else min(for_it, against)
        judged[i] = Judged(verdict, mean_of(family[i]), low, high, len(family[i]), p)
    return judged


def judge_best(
    differences: Sequence[Sequence[Sequence[float]]], line: float, margin: float = MARGIN
) -> tuple[str, float, float]:
    """The verdict on a claim that the best place of one side lies above the best place of another by more than a line,
    with the interval; NaN where it has no end.

    Which places are best need not be known, so nothing is chosen by the results. The best of the one side lies above
    the other side where any of its places lies above all of the other's: the limit is the largest, over its places, of
    the smallest over the other's, each at ERROR_RATE over the number of its places. The upper end is the same with the
    sides exchanged.

    Args:
        differences: of each place of the one side from each place of the other, one per pair.
        line, margin: see `judge`.
    """
    by_other = list(zip(*differences, strict=True))
    low = max((min(_end(d, len(differences)) for d in row) for row in differences), default=-math.inf)
    high = -max((min(_end([-x for x in d], len(by_other)) for d in column) for column in by_other), default=-math.inf)
    verdict = HOLDS if low > line else FAILS if high < line + margin else UNDECIDED
    return verdict, low if math.isfinite(low) else math.nan, high if math.isfinite(high) else math.nan


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: those at most a level are the ones that his step-down procedure rejects at it."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for step, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _p_above(values: Sequence[float], line: float) -> float:
    """The one-sided p-value of the hypothesis that the mean is at most the line; 1 for values without spread."""
    if not _varies(values):
        return 1.0
    return float(stdtr(len(values) - 1, -(mean_of(values) - line) / _standard_error(values)))


def _limit(values: Sequence[float], level: float) -> float:
    """The lower confidence limit of the mean, with an error rate of `level`."""
    return mean_of(values) - float(stdtrit(len(values) - 1, 1 - level)) * _standard_error(values)


def _end(values: Sequence[float], num_places: int) -> float:
    """The lower limit with an error rate of ERROR_RATE over a number of places; without enough pairs, there is none."""
    if len(values) < LEAST_PAIRS or not _varies(values):
        return -math.inf
    return _limit(values, ERROR_RATE / num_places)


def _varies(values: Sequence[float]) -> bool:
    return max(values) - min(values) >= ROUNDING


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))
