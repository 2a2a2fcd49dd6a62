"""Test accuracies and their differences on the same seeds, at places of a study. Most claims are judged on them.

A diverged trial that was never tested counts here with the accuracy of guessing: one over the number of classes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from analysis.statistics.stats import Result
from analysis.statistics.studies import Study
from analysis.statistics.verdicts import MARGIN, Judged, judge

Place = Mapping[str, Any]
Family = list[tuple[str, Judged]]
"""Verdicts that are judged together, each with its place."""


def by_seed(study: Study, place: Place) -> dict[int, float]:
    """Test accuracies at a place, by seed."""
    at_place = [result for result in study.results if place.items() <= result.place.items()]
    counted = {result.seed: _counted(result) for result in at_place}
    return {seed: value for seed, value in counted.items() if math.isfinite(value)}


def differences(study: Study, place: Place, other: Place) -> list[float]:
    """Accuracies at a place minus those at another one, on the seeds that both have."""
    one, two = by_seed(study, place), by_seed(study, other)
    return [one[seed] - two[seed] for seed in sorted(one.keys() & two.keys())]


def judged_family(
    places: Iterable[str], family: Sequence[Sequence[float]], line: float, margin: float = MARGIN
) -> Family:
    """The verdicts on differences at several places, judged together by the rule of `verdicts`."""
    return list(zip(places, judge(family, line, margin), strict=True))


def _counted(result: Result) -> float:
    if result.diverged and math.isnan(result.value) and result.trial is not None:
        return 1 / result.trial["num_classes"]
    return result.value
