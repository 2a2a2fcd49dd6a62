"""The sweep no_warmup: accuracy with and without warm-up, and the stability of the trainings.

Steps are counted up to a target accuracy: TARGET_SHARE of the best accuracy that a cell of the study reaches on
validation images, so that one number serves all learning rates.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from cvit import vocabulary as names
from cvit.analysis.display.accuracy_tables import Column, Comparison, Layout, Section
from cvit.analysis.display.text import number_text, percent
from cvit.analysis.display.wording import plain_text, scheme_text
from cvit.analysis.questions import DECADES, POINTS, Claim, Question
from cvit.analysis.statistics.learning_rates import (
    RANGE_MARGIN,
    TOLERANCE,
    RateRange,
    best_of,
    places_at,
    ranges_by_seed,
    rate_summaries,
    warmups,
)
from cvit.analysis.statistics.pairs import Family, Place, by_seed, differences, judged_family
from cvit.analysis.statistics.stats import STATES_WITH_RESULT, Summary, mean_of, paired_difference
from cvit.analysis.statistics.studies import BASELINE, TREATMENT, Study
from cvit.analysis.statistics.variants import base_scheme
from cvit.analysis.statistics.verdicts import ERROR_RATE, MARGIN, Judged, judge_best
from cvit.analysis.store.axes import LEARNING_RATE, SCHEDULE, SCHEME, TRANSFERRED_FACTOR, WARMUP

TARGET_SHARE = 0.9
_TOLERANCE = f"{100 * TOLERANCE:g}"
TRAINS_SHARE = 0.5
"""A learning rate counts if, with the longest warm-up, a scheme reaches this share of its best accuracy there."""


def divergence_rate(study: Study, place: Mapping[str, Any]) -> float:
    """The share of diverged trials among those with a result at a place; NaN without any."""
    states = [trial["status"] for trial in study.trials_at(place) if trial["status"] in STATES_WITH_RESULT]
    return states.count(names.STATUS_DIVERGED) / len(states) if states else math.nan


def target_accuracy(study: Study) -> float:
    """TARGET_SHARE of the highest mean over seeds of the last validation accuracy; NaN without any."""
    means = [
        mean_of(trial[names.VAL_ACCURACY] for trial in study.trials_at({**place, SCHEME: scheme}))
        for place in study.rows
        for scheme in study.schemes
    ]
    return TARGET_SHARE * max((mean for mean in means if math.isfinite(mean)), default=math.nan)


def early_gradients(study: Study, trial: Mapping[str, Any]) -> dict[int, float]:
    """Gradient norms of the attention phase's first steps, counted from that phase's start."""
    norms = study.curves.get((trial["trial_key"], names.EARLY_GRAD_NORM), {})
    start = attention_start(study, trial)
    return {round(step - start): norm for step, norm in sorted(norms.items()) if step >= start}


def attention_start(study: Study, trial: Mapping[str, Any]) -> float:
    """The first step of a trial's attention phase, at which the transfer is measured; infinite if a trial of two phases
    did not reach its second one."""
    if trial[SCHEME] != TREATMENT:
        return 0
    return min(study.curves.get((trial["trial_key"], names.TRANSFER_VAL_ACCURACY), {}), default=math.inf)


def without_less_with(study: Study) -> list[Summary]:
    """Accuracy without warm-up minus that with the longest one, on the same seeds, per learning rate and scheme."""
    ends = warmups(study)
    if ends is None:
        return []
    none, longest = ends
    return [
        replace(difference, place={**difference.place, WARMUP: none})
        for difference in paired_difference(study.results, WARMUP, none, longest)
    ]


def _steps_to_target(study: Study, place: Mapping[str, Any]) -> tuple[float, float]:
    target = target_accuracy(study)
    steps = _median(study.steps_to(t, target, after=attention_start(study, t)) for t in study.trials_at(place))
    return (steps if math.isfinite(steps) else math.nan, target)


def _medians(study: Study, place: Mapping[str, Any], metrics: Sequence[str]) -> tuple[float, ...]:
    trials = study.trials_at(place)
    return tuple(_median(trial[metric] for trial in trials) for metric in metrics)


def _diverged_step(study: Study, place: Mapping[str, Any]) -> float:
    return _median(t["diverged_step"] for t in study.trials_at(place) if t["diverged_step"] is not None)


def _median(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(statistics.median(known)) if known else math.nan


def _no_loss_without_warmup(study: Study) -> Iterator[Family]:
    yield from _without_warmup(study, TREATMENT, sign=1, line=-MARGIN)


def _loss_without_warmup(study: Study) -> Iterator[Family]:
    yield from _without_warmup(study, BASELINE, sign=-1, line=0.0)


def _without_warmup(study: Study, scheme: str, sign: int, line: float) -> Iterator[Family]:
    """Judges accuracy without warm-up minus that with the longest, times `sign`, of a scheme and each of its variants:
    a family at the learning rates, and a verdict between the best rates."""
    if (ends := warmups(study)) is None:
        return
    for variant, named in _variants(study, scheme):
        none, longest = (places_at(study, variant, warmup) for warmup in ends)
        yield named(_at_rates(study, none, longest, sign, line))
        yield named(_at_own_best(study, *((none, longest) if sign > 0 else (longest, none)), line))


def _at_rates(study: Study, none: Sequence[Place], longest: Sequence[Place], sign: int, line: float) -> Family:
    """The verdicts at the learning rates that count, and once more that at the rate that is best with warm-up.

    Whether a rate counts, and which is best, is seen from the very trainings that are judged. So the family consists of
    all rates, and verdicts are selected from it: fewer of them are wrong then, never more.
    """
    family = [[sign * d for d in differences(study, *pair)] for pair in zip(none, longest, strict=True)]
    means = [mean_of(by_seed(study, place).values()) for place in longest]
    highest = max((mean for mean in means if math.isfinite(mean)), default=math.nan)
    judged = judged_family((plain_text(place[LEARNING_RATE]) for place in none), family, line)
    counted = [verdict for verdict, mean in zip(judged, means, strict=True) if mean >= TRAINS_SHARE * highest]
    best = best_of(study, longest)
    return counted if best is None else [*counted, ("best", judged[best][1])]


def _at_own_best(study: Study, places: Sequence[Place], others: Sequence[Place], line: float) -> Family:
    """The verdict on accuracy at the best of some places minus that at the best of others."""
    best, best_other = best_of(study, places), best_of(study, others)
    if best is None or best_other is None:
        return []
    all_pairs = [[differences(study, place, other) for other in others] for place in places]
    verdict, low, high = judge_best(all_pairs, line)
    at_best = all_pairs[best][best_other]
    return [("own_best", Judged(verdict, mean_of(at_best), low, high, len(at_best)))]


def _range_not_narrower(study: Study) -> Iterator[Family]:
    """Judges the range of learning rates without warm-up minus that with the longest, in decades."""
    if (ends := warmups(study)) is None:
        return
    for variant, named in _variants(study, TREATMENT):
        none, longest = (places_at(study, variant, warmup) for warmup in ends)
        without, warm = (ranges_by_seed(study, places, longest) for places in (none, longest))
        both = sorted(without.keys() & warm.keys())
        family = [[without[seed] - warm[seed] for seed in both]]
        yield named(judged_family(["range"], family, -RANGE_MARGIN, RANGE_MARGIN))


def _variants(study: Study, scheme: str) -> Iterator[tuple[str, Callable[[Family], Family]]]:
    """A scheme and its variants in a study, each with a function that adds the variant to the places of verdicts."""

    def named(family: Family, variant: str) -> Family:
        return [(f"{place}, {variant}" if variant else place, judged) for place, judged in family]

    for name in study.schemes:
        if base_scheme(name) == scheme:
            yield name, partial(named, variant=name.removeprefix(scheme).removeprefix(", "))


def _range_table(study: Study) -> tuple[list[str], list[list[str]]]:
    head = ["scheme", "warm-up", "best rate", "accuracy there, %", "decades", "from", "to"]
    head += ["decades, one training", "95 % interval", "n"]
    rows = []
    for row in rate_summaries(study):
        estimate, (low, high) = row.of_training, row.of_means.ends
        limits = "-" if math.isnan(estimate.ci_low) else f"[{estimate.ci_low:.2f}, {estimate.ci_high:.2f}]"
        rows.append(
            [
                *(scheme_text(row.scheme), plain_text(row.warmup), number_text(row.best_rate), percent(row.accuracy)),
                *(range_text(row.of_means), number_text(low), number_text(high)),
                *("-" if math.isnan(estimate.mean) else f"{estimate.mean:.2f}", limits, str(estimate.n)),
            ]
        )
    return head, rows


def range_text(of_means: RateRange) -> str:
    """A range in decades; at the edge of the grid it is a lower limit."""
    return f"{'at least ' if of_means.is_cut else ''}{of_means.decades:.2f}"


def _range_rows(study: Study) -> list[dict[str, Any]]:
    return [
        {
            "kind": "learning_rate_range_decades",
            WARMUP: row.warmup,
            SCHEME: row.scheme,
            **vars(row.of_training),
            "best_learning_rate": row.best_rate,
            "range_decades": row.of_means.decades,
            **dict(zip(("range_low", "range_high"), row.of_means.ends, strict=True)),
            "range_is_cut": row.of_means.is_cut,
        }
        for row in rate_summaries(study)
    ]


def _place_text(place: str) -> str:
    """The place of a claim in words, such as `learning rate 0.001, factor 0.1`."""
    rate, comma, variant = place.partition(", ")
    words = {"best": "best learning rate", "own_best": "best rate of either", "range": "range"}
    return words.get(rate, f"learning rate {rate}") + comma + variant


QUESTION = Question(
    order=20,
    axes=(LEARNING_RATE, WARMUP, SCHEME),
    variants=(TRANSFERRED_FACTOR, SCHEDULE),
    layout=Layout(
        columns=(
            Column(
                "divergence rate, at step",
                ("divergence_rate", "diverged_step"),
                lambda study, at: (divergence_rate(study, at), _diverged_step(study, at)),
                is_measured=True,
                in_overview=False,
            ),
            Column(
                "largest gradient, at step",
                ("grad_norm_max", "grad_norm_max_step"),
                lambda study, at: _medians(study, at, (names.GRAD_NORM_MAX, names.GRAD_NORM_MAX_STEP)),
                is_measured=True,
                in_overview=False,
            ),
            Column(
                "loss spikes",
                ("loss_spikes",),
                lambda study, at: (mean_of(trial[names.LOSS_SPIKES] for trial in study.trials_at(at)),),
                is_measured=True,
                in_overview=False,
            ),
            Column(
                "loss after 1 % of steps",
                ("early_loss",),
                lambda study, at: _medians(study, at, (names.EARLY_LOSS,)),
                is_measured=True,
                in_overview=False,
            ),
            Column(
                "steps to accuracy",
                ("steps_to_accuracy", "accuracy_aimed_at"),
                _steps_to_target,
                is_measured=True,
                in_overview=False,
            ),
        ),
        comparisons=(
            Comparison(
                kind="no_warmup_minus_longest",
                heading="without less with, for",
                summaries=without_less_with,
                title="Without warm-up less with the longest one, on the same seeds",
            ),
        ),
        sections=(
            Section(
                title="Learning rates: the best, and the range around it",
                notes="The best rate is that with the highest mean accuracy on validation images. Decades: the width, "
                "on a logarithmic scale, of the range of rates whose mean test accuracy is within "
                f"{_TOLERANCE} points of the scheme's best one with the longest warm-up, with straight lines between "
                "the rates of the grid; `at least` where it reaches the grid's edge. One training: the same for the "
                "trainings of each seed by themselves, measured against the best mean of the other seeds, then the "
                "mean over seeds; chance makes it narrower.",
                table=_range_table,
                csv_rows=_range_rows,
                csv_names=("best_learning_rate", "range_decades", "range_low", "range_high", "range_is_cut"),
            ),
        ),
        notes=(
            "`factor` beside a scheme is its `transferred_learning_rate_factor`. "
            "A trial that was never tested, since its loss or gradient stopped being finite, is left out of the mean; "
            "the divergence rate counts it. Of trials' norm of the gradient before clipping, its step, early loss and "
            "steps the median is shown, of loss spikes the mean; gradient, spikes and early loss are those of the "
            "attention phase. Steps, those of both phases, are counted to the attention phase's first evaluation that "
            f"reaches {100 * TARGET_SHARE:.0f} % of the best cell's accuracy on validation images (second number); a "
            "dash where most trials do not."
        ),
    ),
    caption="Above: test accuracy against learning rate, left without warm-up, right with the longest: means over "
    "seeds with 95 % intervals, without trials that were never tested. Below it, if trials diverged: their share. "
    f"Then the range of learning rates at which a scheme is within {_TOLERANCE} points of its best with warm-up, solid "
    "without warm-up, broken with the longest, and its width in decades. Last: norm of the gradient in the first steps "
    "of the attention phase, the median over seeds that have got so far, and a band from the least to the most.",
    # The measurement of the transfer tells where the attention phase begins.
    curves=(names.VAL_ACCURACY, names.EARLY_GRAD_NORM, names.TRANSFER_VAL_ACCURACY),
    claims=(
        Claim(
            order=80,
            name="no_loss_without_warmup",
            statement=f"Without warm-up, at this learning rate, {TREATMENT} loses no accuracy",
            unit=POINTS,
            place_text=_place_text,
            judge=_no_loss_without_warmup,
            rule="Without warm-up less with the longest, judged together at all learning rates, and shown at those "
            f"where the scheme, with warm-up, reaches {TRAINS_SHARE:g} times its best accuracy. `best` repeats the "
            "verdict at the learning rate that is best on validation images with warm-up. `own_best` compares the best "
            "rate without warm-up with the best one with it. Its interval holds whichever rates are best: the lower "
            "end is the largest, over the rates without warm-up, of the smallest lower limit of their differences from "
            f"all rates with it, each at {100 * ERROR_RATE:g} % over the number of rates; the upper end likewise. The "
            "estimate is that at the rates that are best on validation images. Variants are judged for themselves.",
        ),
        Claim(
            order=90,
            name="random_loses_without_warmup",
            statement=f"Without warm-up, at this learning rate, {BASELINE} loses accuracy or diverges",
            unit=POINTS,
            place_text=_place_text,
            judge=_loss_without_warmup,
        ),
        Claim(
            order=95,
            name="warmup_does_not_widen_the_range",
            statement=f"Without warm-up, {TREATMENT} trains over as wide a range of learning rates as with it",
            unit=DECADES,
            place_text=_place_text,
            judge=_range_not_narrower,
            rule="Range of learning rates, in decades: without warm-up less with the longest, on the same seeds. A "
            f"rate is in the range where a seed's test accuracy is within {_TOLERANCE} points of the best mean, with "
            "warm-up, of the other seeds; between the rates of the grid, accuracy is a straight line over the "
            "logarithm of the rate, and nothing counts beyond the grid. The claim holds where the interval lies above "
            f"-{RANGE_MARGIN:.2f} (a factor of two), otherwise it does not hold where it lies below 0, by the common "
            "rule's limits and error rates.",
        ),
    ),
)
