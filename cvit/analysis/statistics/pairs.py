"""Test accuracies and their differences on the same seeds, at places of a study. Most claims are judged on them.

A diverged trial that was never tested counts here with the accuracy of guessing: one over the number of classes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cvit import vocabulary as names
from cvit.analysis.statistics.stats import STATES_WITH_RESULT, Result
from cvit.analysis.statistics.studies import Study
from cvit.analysis.statistics.verdicts import MARGIN, Judged, judge

Place = Mapping[str, Any]
Family = list[tuple[str, Judged]]
"""Verdicts that are judged together, each with its place."""


def by_seed(study: Study, place: Place) -> dict[int, float]:
    """Test accuracies at a place, by seed."""
    return _finite({result.seed: _counted(result, result.value) for result in _results_at(study, place)})


def validated_by_seed(study: Study, place: Place) -> dict[int, float]:
    """The last accuracies on validation images at a place, by seed."""
    ended = [result for result in _results_at(study, place) if result.state in STATES_WITH_RESULT]
    return _finite({r.seed: _counted(r, (r.trial or {}).get(names.VAL_ACCURACY, math.nan)) for r in ended})


def differences(study: Study, place: Place, other: Place) -> list[float]:
    """Accuracies at a place minus those at another one, on the seeds that both have."""
    one, two = by_seed(study, place), by_seed(study, other)
    return [one[seed] - two[seed] for seed in sorted(one.keys() & two.keys())]


def judged_family(
    places: Iterable[str], family: Sequence[Sequence[float]], line: float, margin: float = MARGIN
) -> Family:
    """The verdicts on differences at several places, judged together by the rule of `verdicts`."""
    return list(zip(places, judge(family, line, margin), strict=True))


def _results_at(study: Study, place: Place) -> list[Result]:
    return [result for result in study.results if place.items() <= result.place.items()]


def _finite(values: Mapping[int, float]) -> dict[int, float]:
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


def _counted(result: Result, accuracy: float) -> float:
    if result.diverged and math.isnan(accuracy) and result.trial is not None:
        return 1 / result.trial["num_classes"]
    return accuracy
