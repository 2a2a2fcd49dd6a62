"""The sweep no_warmup: accuracy with and without warm-up, and the stability of the trainings.

Steps are counted up to a target accuracy: TARGET_SHARE of the best accuracy that a cell of the study reaches on
validation images, so that one number serves all learning rates.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from analysis.display.accuracy_tables import Column, Comparison, Layout
from analysis.display.wording import plain_text
from analysis.questions import POINTS, Claim, Question
from analysis.statistics.pairs import Family, by_seed, differences, judged_family
from analysis.statistics.stats import STATES_WITH_RESULT, Summary, mean_of, paired_difference
from analysis.statistics.studies import BASELINE, TREATMENT, Study
from analysis.statistics.verdicts import MARGIN
from analysis.store.axes import LEARNING_RATE, SCHEME, WARMUP
from cvit import vocabulary as names

TARGET_SHARE = 0.9
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


def warmups(study: Study) -> tuple[float, float] | None:
    """No warm-up and the longest one, as numbers; None if the grid lacks either."""
    values = study.values(WARMUP)
    return (values[0], values[-1]) if values[0] == 0 < values[-1] else None


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
    """Judges accuracy without warm-up minus that with the longest, times `sign`, at the learning rates that count.

    Whether a rate counts is seen from the very accuracies that are judged. So the family consists of all rates, and its
    verdicts are left out where the rate does not count: fewer of them are wrong then, never more.
    """
    ends = warmups(study)
    if ends is None or scheme not in study.schemes:
        return
    rates = study.values(LEARNING_RATE)
    none, longest = ([{LEARNING_RATE: rate, SCHEME: scheme, WARMUP: warmup} for rate in rates] for warmup in ends)
    family = [[sign * d for d in differences(study, *pair)] for pair in zip(none, longest, strict=True)]
    means = [mean_of(by_seed(study, place).values()) for place in longest]
    best = max((mean for mean in means if math.isfinite(mean)), default=math.nan)
    judged = judged_family(map(plain_text, rates), family, line)
    yield [verdict for verdict, mean in zip(judged, means, strict=True) if mean >= TRAINS_SHARE * best]


QUESTION = Question(
    order=20,
    axes=(WARMUP, LEARNING_RATE, SCHEME),
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
        notes=(
            "One that was never tested, since its loss or gradient stopped being finite, is left out of the mean; "
            "the divergence rate counts it. Of trials' norm of the gradient before clipping, its step, early loss and "
            "steps the median is shown, of loss spikes the mean; gradient, spikes and early loss are those of the "
            "attention phase. Steps, those of both phases, are counted to the attention phase's first evaluation that "
            f"reaches {100 * TARGET_SHARE:.0f} % of the best cell's accuracy on validation images (second number); a "
            "dash where most trials do not."
        ),
    ),
    caption="Above: test accuracy and share of diverged trials against learning rate, solid without warm-up, "
    "broken with the longest. Below: norm of the gradient in the first steps of the attention phase, median over seeds "
    "that have got so far. Means over seeds, bands 95 % intervals; trials that were never tested are left out of them.",
    # The measurement of the transfer tells where the attention phase begins.
    curves=(names.VAL_ACCURACY, names.EARLY_GRAD_NORM, names.TRANSFER_VAL_ACCURACY),
    claims=(
        Claim(
            order=80,
            name="no_loss_without_warmup",
            statement=f"Without warm-up, at this learning rate, {TREATMENT} loses no accuracy",
            unit=POINTS,
            judge=_no_loss_without_warmup,
            rule="Without warm-up less with the longest, judged together at all learning rates, and shown at those "
            f"where the scheme, with warm-up, reaches {TRAINS_SHARE:g} times its best accuracy.",
        ),
        Claim(
            order=90,
            name="random_loses_without_warmup",
            statement=f"Without warm-up, at this learning rate, {BASELINE} loses accuracy or diverges",
            unit=POINTS,
            judge=_loss_without_warmup,
        ),
    ),
)
