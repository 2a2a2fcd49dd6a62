"""The sweep low_data: does training first as a convolution help where data are few, and is it faster?"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from cvit import vocabulary as names
from cvit.analysis.display.accuracy_tables import Comparison, Layout
from cvit.analysis.display.wording import fraction_text, plain_text
from cvit.analysis.questions import FLOPS_SHARE, POINTS, SECONDS_SHARE, STEPS_SHARE, Claim, Question
from cvit.analysis.statistics.cost import Costing, in_flops, in_seconds, in_steps
from cvit.analysis.statistics.pairs import Family, by_seed, judged_family
from cvit.analysis.statistics.speed import LEAST_SHARE, PENALTY, TARGET_SHARE, Curve, log_speed
from cvit.analysis.statistics.stats import Result, Summary, paired_difference
from cvit.analysis.statistics.studies import BASELINE, TREATMENT, Study
from cvit.analysis.statistics.variants import scheme_at
from cvit.analysis.statistics.verdicts import MARGIN
from cvit.analysis.store.axes import BUDGET_UNIT, FRACTION, SCHEME

LOW_DATA = 0.1
"""The largest share of the training images that counts as low data."""
OF_EQUAL_FLOPS = scheme_at({SCHEME: TREATMENT, BUDGET_UNIT: "flops"}, (BUDGET_UNIT,))
"""Two phases with as many steps as cost the same as those of random initialisation."""


def _low_data_gain(study: Study, treatment: str) -> Iterator[Family]:
    if _has_both(study, treatment):
        fractions = [fraction for fraction in study.values(FRACTION) if fraction <= LOW_DATA]
        gains = [list(_gains(study, treatment, fraction).values()) for fraction in fractions]
        yield judged_family(map(plain_text, fractions), gains, line=0.0)


def _gain_shrinks(study: Study) -> Iterator[Family]:
    fractions = study.values(FRACTION)
    if _has_both(study) and len(fractions) > 1:
        few, many = _gains(study, TREATMENT, fractions[0]), _gains(study, TREATMENT, fractions[-1])
        place = f"{plain_text(fractions[0])}-to-{plain_text(fractions[-1])}"
        yield judged_family([place], [[few[seed] - many[seed] for seed in few if seed in many]], line=0.0)


def _trains_faster(study: Study, costing: Costing) -> Iterator[Family]:
    if _has_both(study):
        fractions = study.values(FRACTION)
        speeds = [_log_speeds(study, fraction, costing) for fraction in fractions]
        # Logarithms of ratios, unlike shares, are as likely too high as too low, whichever of the two is faster.
        family = judged_family(map(plain_text, fractions), speeds, line=0.0, margin=-math.log1p(-MARGIN))
        yield [
            (
                place,
                replace(
                    judged,
                    estimate=_share_saved(judged.estimate),
                    ci_low=_share_saved(judged.ci_low),
                    ci_high=_share_saved(judged.ci_high),
                ),
            )
            for place, judged in family
        ]


def _has_both(study: Study, treatment: str = TREATMENT) -> bool:
    return {treatment, BASELINE} <= set(study.schemes)


def _gains(study: Study, treatment: str, fraction: float) -> dict[int, float]:
    """Accuracy of a treatment minus that of random initialisation, by seed."""
    treated, base = (by_seed(study, {FRACTION: fraction, SCHEME: scheme}) for scheme in (treatment, BASELINE))
    return {seed: treated[seed] - base[seed] for seed in sorted(treated.keys() & base.keys())}


def _gain_at_equal_flops(study: Study) -> list[Summary]:
    """Two phases of as many FLOPs minus random initialisation, on the same seeds."""
    gains = paired_difference(study.results, SCHEME, OF_EQUAL_FLOPS, BASELINE)
    return [replace(gain, place={**gain.place, SCHEME: OF_EQUAL_FLOPS}) for gain in gains]


def _log_speeds(study: Study, fraction: float, costing: Costing) -> list[float]:
    """The logarithms of how many times as fast two phases are as random initialisation, one per seed."""
    curves: dict[tuple[str, int], tuple[Curve, float]] = {}
    for result in study.results:
        if result.place[FRACTION] == fraction and result.trial:
            curve = _curve(study, result, costing)
            if curve is not None:
                curves[result.place[SCHEME], result.seed] = (curve, 1 / result.trial["num_classes"])
    return [
        log_speed(treated[0], base, guessing)
        for (scheme, seed), (base, guessing) in curves.items()
        if scheme == BASELINE and (treated := curves.get((TREATMENT, seed)))
    ]


def _curve(study: Study, result: Result, costing: Costing) -> Curve | None:
    """Accuracies on validation images by cost; none at all for a diverged trial, None without a result, or if the cost
    is not known."""
    if result.trial is None or result.missing:
        return None
    if result.diverged:
        return {}
    by_step = study.curves.get((result.trial["trial_key"], names.VAL_ACCURACY))
    cost = costing(result.trial)
    return None if by_step is None or cost is None else {cost(step): value for step, value in by_step.items()}


def _shares_text(place: str) -> str:
    """The place of a claim in words: a share of the images, or two of them."""
    return " to ".join(fraction_text(float(share)) for share in place.split("-to-"))


def _share_saved(log_ratio: float) -> float:
    """The share of the slower scheme's cost that the faster one saves; negative where two phases are the slower."""
    return math.copysign(-math.expm1(-abs(log_ratio)), log_ratio)


QUESTION = Question(
    order=10,
    axes=(FRACTION, SCHEME),
    variants=(BUDGET_UNIT,),
    layout=Layout(
        comparisons=(
            Comparison(
                kind="paired_gain_at_equal_flops",
                heading="scheme",
                summaries=_gain_at_equal_flops,
                title="Two phases of as many steps as cost the FLOPs of random initialisation, less that, on the same "
                "seeds",
            ),
        ),
    ),
    caption="Left: test accuracy against the share of the training images. In the middle: the gain over random "
    "initialisation on the same seeds. Right: validation accuracy during training with equal steps; a tick marks where "
    "trials pass from convolution to attention. Means over seeds with 95 % intervals.",
    curves=(names.VAL_ACCURACY,),
    claims=(
        Claim(
            order=60,
            name="low_data_gain",
            statement=f"Where data are few, at this share of the images, {TREATMENT} is more accurate than {BASELINE}",
            unit=POINTS,
            place_text=_shares_text,
            judge=partial(_low_data_gain, treatment=TREATMENT),
        ),
        Claim(
            order=65,
            name="low_data_gain_at_equal_flops",
            statement=f"So it is where {TREATMENT} takes as many steps as cost the FLOPs of {BASELINE}",
            unit=POINTS,
            place_text=_shares_text,
            judge=partial(_low_data_gain, treatment=OF_EQUAL_FLOPS),
        ),
        Claim(
            order=70,
            name="gain_shrinks",
            statement="That gain is larger at the smallest share of the images than at the largest",
            unit=POINTS,
            place_text=_shares_text,
            judge=_gain_shrinks,
        ),
        Claim(
            order=100,
            name="trains_faster",
            statement=f"At this share of the images, {TREATMENT} needs fewer steps than {BASELINE} to the same "
            "accuracy, those of both phases counted",
            unit=STEPS_SHARE,
            place_text=_shares_text,
            judge=partial(_trains_faster, costing=in_steps),
            rule="Steps are counted, on the same seed and images, to one accuracy on validation images, at "
            f"{TARGET_SHARE:g} of the way from guessing to the lower of the two trials' ends and at no less than "
            f"{LEAST_SHARE:g} of the way to the higher; curves are smoothed to rise only. A trial of either scheme "
            f"that diverges or never gets there counts with {PENALTY} times all its steps. The estimate is the "
            "geometric mean over seeds, as the share of the slower scheme's steps that the faster one saves: +50 where "
            f"{TREATMENT} is twice as fast, -50 where {BASELINE} is.",
        ),
        Claim(
            order=101,
            name="trains_faster_in_flops",
            statement=f"At this share of the images, {TREATMENT} needs fewer FLOPs than {BASELINE} to the same "
            "accuracy",
            unit=FLOPS_SHARE,
            place_text=_shares_text,
            judge=partial(_trains_faster, costing=in_flops),
            rule="FLOPs and seconds are counted like steps, on the trials of equal steps: each step counts with the "
            "mean of its phase. Trials of which they are not known are left out.",
        ),
        Claim(
            order=102,
            name="trains_faster_in_seconds",
            statement=f"At this share of the images, {TREATMENT} needs fewer seconds of a worker than {BASELINE} to "
            "the same accuracy",
            unit=SECONDS_SHARE,
            place_text=_shares_text,
            judge=partial(_trains_faster, costing=in_seconds),
        ),
    ),
)
