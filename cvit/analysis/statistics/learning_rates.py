"""The best learning rate of a scheme, and the range of learning rates at which it is nearly as good as there.

The best rate is the one with the highest mean accuracy on validation images. Accuracies that are judged later show it
too good, those on test images as well: a training that went well by chance is good on all images. So verdicts at the
best rate come from rules that hold at every rate at once, whichever is chosen: the family of all rates, and
`verdicts.judge_best`.

A training is within the range where its accuracy is at most TOLERANCE below the best: the mean over seeds of the test
accuracy at the rate where that is highest, with warm-up. Between the rates of the grid, accuracy is a straight line
over the logarithm of the rate. The best of a single training is that of the other seeds, so that neither the trainings
with warm-up nor those without have a part in it.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from cvit.analysis.statistics.pairs import Place, by_seed, validated_by_seed
from cvit.analysis.statistics.stats import Estimate, mean_of, t_interval
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import LEARNING_RATE, SCHEME, WARMUP

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
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest rate; NaN without any."""
        return (self.stretches[0][0], self.stretches[-1][1]) if self.stretches else (math.nan, math.nan)

    @property
    def decades(self) -> float:
        """Its width on the logarithmic scale, all stretches together."""
        return math.fsum(math.log10(high / low) for low, high in self.stretches)


@dataclass(frozen=True)
class RateSummary:
    """The learning rates of a scheme with one warm-up.

    Attributes:
        best_rate: the rate with the highest mean accuracy on validation images; NaN without results.
        accuracy: the mean test accuracy there.
        of_means: the range of the means over seeds.
        of_training: the range of a single training in decades, its mean over seeds.
    """

    scheme: str
    warmup: float
    best_rate: float
    accuracy: float
    of_means: RateRange
    of_training: Estimate


def warmups(study: Study) -> tuple[float, float] | None:
    """No warm-up and the longest one, as numbers; None if the grid lacks either."""
    values = study.values(WARMUP)
    return (values[0], values[-1]) if values[0] == 0 < values[-1] else None


def places_at(study: Study, scheme: str, warmup: float) -> list[Place]:
    """A scheme's places with a warm-up, one per learning rate, ascending."""
    return [{LEARNING_RATE: rate, SCHEME: scheme, WARMUP: warmup} for rate in study.values(LEARNING_RATE)]


def rate_summaries(study: Study) -> list[RateSummary]:
    """The learning rates of each scheme without warm-up and with the longest one; empty if the grid lacks either."""
    summaries = []
    ends, rates = warmups(study), study.values(LEARNING_RATE)
    for scheme, warmup in itertools.product(study.schemes, ends or ()):
        places = places_at(study, scheme, warmup)
        warm = places_at(study, scheme, max(ends or ()))
        validated = [mean_of(validated_by_seed(study, place).values()) for place in places]
        best = max(
            (i for i, mean in enumerate(validated) if math.isfinite(mean)), key=validated.__getitem__, default=-1
        )
        summaries.append(
            RateSummary(
                scheme,
                warmup,
                math.nan if best is None else rates[best],
                math.nan if best is None else mean_of(by_seed(study, places[best]).values()),
                range_of_means(study, places, warm),
                t_interval(ranges_by_seed(study, places, warm).values()),
            )
        )
    return summaries


def best_of(study: Study, places: Sequence[Place]) -> int | None:
    """The index of the place with the highest mean accuracy on validation images; None without results."""
    means = {i: mean_of(validated_by_seed(study, place).values()) for i, place in enumerate(places)}
    return max((i for i, mean in means.items() if math.isfinite(mean)), key=means.__getitem__, default=None)


def range_of_means(study: Study, places: Sequence[Place], warm: Sequence[Place]) -> RateRange:
    """The range of the means over seeds.

    Args:
        places: the scheme's places by learning rate, with or without warm-up.
        warm: those with warm-up, among which the best is.
    """
    best = max((mean for mean in _means(study, warm) if math.isfinite(mean)), default=math.nan)
    return _range(places, _means(study, places), best - TOLERANCE)


def ranges_by_seed(study: Study, places: Sequence[Place], warm: Sequence[Place]) -> dict[int, float]:
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
            ranges[seed] = _range(places, [of[seed] for of in accuracies], best - TOLERANCE).decades
    return ranges


def _means(study: Study, places: Sequence[Place]) -> list[float]:
    return [mean_of(by_seed(study, place).values()) for place in places]


def _range(places: Sequence[Place], accuracies: Sequence[float], least: float) -> RateRange:
    """The rates at which the accuracy is at least a given one; rates without an accuracy are left out."""
    rates = [math.log10(place[LEARNING_RATE]) for place in places]
    points = [(rate, y) for rate, y in zip(rates, accuracies, strict=True) if math.isfinite(y)]
    stretches: list[tuple[float, float]] = []
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if max(y0, y1) < least:
            continue
        low = x0 if y0 >= least else x0 + (x1 - x0) * (least - y0) / (y1 - y0)
        high = x1 if y1 >= least else x0 + (x1 - x0) * (least - y0) / (y1 - y0)
        if stretches and stretches[-1][1] == low:
            low, _ = stretches.pop()
        stretches.append((low, high))
    is_cut = any(y >= least for _, y in (*points[:1], *points[-1:]))
    return RateRange(tuple((10**low, 10**high) for low, high in stretches), is_cut)
