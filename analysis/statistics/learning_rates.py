"""The best learning rate of a scheme, and the range of learning rates at which it is nearly as good as there.

A rate that is chosen for the accuracies that are judged looks better than it is, on other images too: a training that
went well by chance is good on all of them. So each seed's rate is chosen on validation images by the other seeds, which
know nothing of the seed's own trainings. Its difference at that rate is as often too large as too small.

A training is within the range where its accuracy is at most TOLERANCE below the best: the mean over seeds of the test
accuracy at the rate where that is highest, with warm-up. Between the rates of the grid, accuracy is a straight line
over the logarithm of the rate. The best of a single training is that of the other seeds, so that neither the trainings
with warm-up nor those without have a part in it.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from analysis.statistics.pairs import Place, by_seed, validated_by_seed
from analysis.statistics.stats import mean_of
from analysis.statistics.studies import Study

TOLERANCE = 0.02
"""A learning rate is within the range where the accuracy is at most this much below the best."""
RANGE_MARGIN = math.log10(2)
"""The smallest difference between ranges that matters, in decades: a factor of two, the finest step that rates are
usually tried in."""


@dataclass(frozen=True)
class RateRange:
    """The learning rates within the range.

    Attributes:
        stretches: (lowest, highest) of each stretch of rates, ascending; most often there is one.
        is_cut: True if it contains the lowest or the highest rate of the grid, so that it may be wider.
    """

    stretches: tuple[tuple[float, float], ...]
    is_cut: bool

    @property
    def decades(self) -> float:
        """Its width on the logarithmic scale, all stretches together."""
        return math.fsum(math.log10(high / low) for low, high in self.stretches)


def best_by_others(study: Study, places: Sequence[Place]) -> dict[int, int]:
    """By seed, the index of the place that is best on validation images, on average over the other seeds."""
    accuracies = {i: of for i, place in enumerate(places) if (of := validated_by_seed(study, place))}
    if not accuracies:
        return {}
    everywhere = set.intersection(*map(set, accuracies.values()))
    best = {}
    for seed in sorted(set().union(*accuracies.values())):
        if others := sorted(everywhere - {seed}):
            means = {i: statistics.fmean(of[other] for other in others) for i, of in accuracies.items()}
            best[seed] = max(means, key=means.__getitem__)
    return best


def differences_at(
    study: Study, places: tuple[Sequence[Place], Mapping[int, int]], others: tuple[Sequence[Place], Mapping[int, int]]
) -> list[float]:
    """Test accuracies minus other ones, on the seeds that both have; each side has places, and by seed the index of
    that to look at."""
    one, two = (
        {seed: accuracy for seed, i in chosen.items() if (accuracy := by_seed(study, at[i]).get(seed)) is not None}
        for at, chosen in (places, others)
    )
    return [one[seed] - two[seed] for seed in sorted(one.keys() & two.keys())]


def range_of_means(study: Study, rates: Sequence[float], places: Sequence[Place], warm: Sequence[Place]) -> RateRange:
    """The range of the means over seeds.

    Args:
        places: the place at each of the rates, with or without warm-up.
        warm: those with warm-up, among which the best is.
    """
    best = max((mean for mean in _means(study, warm) if math.isfinite(mean)), default=math.nan)
    return _range(rates, _means(study, places), best - TOLERANCE)


def ranges_by_seed(
    study: Study, rates: Sequence[float], places: Sequence[Place], warm: Sequence[Place]
) -> dict[int, float]:
    """The range of each seed's trainings in decades, for the seeds that have been trained at all rates; see
    `range_of_means`."""
    warm_accuracies = [of for place in warm if (of := by_seed(study, place))]
    accuracies = [by_seed(study, place) for place in places]
    seeds = set.intersection(*map(set, accuracies)) if accuracies else set()
    ranges = {}
    for seed in sorted(seeds):
        means = [mean_of(value for other, value in of.items() if other != seed) for of in warm_accuracies]
        best = max((mean for mean in means if math.isfinite(mean)), default=math.nan)
        if math.isfinite(best):
            ranges[seed] = _range(rates, [of[seed] for of in accuracies], best - TOLERANCE).decades
    return ranges


def _means(study: Study, places: Sequence[Place]) -> list[float]:
    return [mean_of(by_seed(study, place).values()) for place in places]


def _range(rates: Sequence[float], accuracies: Sequence[float], least: float) -> RateRange:
    """The rates at which the accuracy is at least a given one; rates without an accuracy are left out."""
    points = [(math.log10(rate), y) for rate, y in zip(rates, accuracies, strict=True) if math.isfinite(y)]
    stretches: list[tuple[float, float]] = []
    for (x0, y0), (x1, y1) in pairwise(points):
        if max(y0, y1) < least:
            continue
        low = x0 if y0 >= least else x0 + (x1 - x0) * (least - y0) / (y1 - y0)
        high = x1 if y1 >= least else x0 + (x1 - x0) * (least - y0) / (y1 - y0)
        if stretches and stretches[-1][1] == low:
            low, _ = stretches.pop()
        stretches.append((low, high))
    is_cut = any(y >= least for _, y in (*points[:1], *points[-1:]))
    return RateRange(tuple((10**low, 10**high) for low, high in stretches), is_cut)
