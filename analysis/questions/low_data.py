"""The sweep low_data: does training first as a convolution help where data are few, and is it faster?"""

import math
from collections.abc import Iterator

from analysis.display.wording import plain_text
from analysis.questions import POINTS, STEPS_SHARE, Claim, Question
from analysis.statistics.pairs import Family, by_seed, judged_family
from analysis.statistics.studies import BASELINE, TREATMENT, Study
from analysis.store.axes import FRACTION, SCHEME
from cvit import vocabulary as names

LOW_DATA = 0.1
"""The largest share of the training images that counts as low data."""
PENALTY = 2
"""An accuracy that is never reached counts as this many times the trial's steps."""


def _low_data_gain(study: Study) -> Iterator[Family]:
    if {TREATMENT, BASELINE} <= set(study.schemes):
        fractions = [fraction for fraction in study.values(FRACTION) if fraction <= LOW_DATA]
        gains = [list(_gains(study, fraction).values()) for fraction in fractions]
        yield judged_family(map(plain_text, fractions), gains, line=0.0)


def _gain_shrinks(study: Study) -> Iterator[Family]:
    fractions = study.values(FRACTION)
    if {TREATMENT, BASELINE} <= set(study.schemes) and len(fractions) > 1:
        few, many = _gains(study, fractions[0]), _gains(study, fractions[-1])
        place = f"{plain_text(fractions[0])}-to-{plain_text(fractions[-1])}"
        yield judged_family([place], [[few[seed] - many[seed] for seed in few if seed in many]], line=0.0)


def _trains_faster(study: Study) -> Iterator[Family]:
    if {TREATMENT, BASELINE} <= set(study.schemes):
        fractions = study.values(FRACTION)
        yield judged_family(map(plain_text, fractions), [_steps_saved(study, f) for f in fractions], line=0.0)


def _gains(study: Study, fraction: float) -> dict[int, float]:
    """Accuracy of two phases minus that of random initialisation, by seed."""
    treated, base = (by_seed(study, {FRACTION: fraction, SCHEME: scheme}) for scheme in (TREATMENT, BASELINE))
    return {seed: treated[seed] - base[seed] for seed in sorted(treated.keys() & base.keys())}


def _steps_saved(study: Study, fraction: float) -> list[float]:
    """The steps that two phases save to reach random's last validation accuracy, as a share of all steps, per seed. If
    they never reach it, they count with PENALTY times all steps."""
    trials = {
        (result.place[SCHEME], result.seed): result.trial
        for result in study.results
        if result.place[FRACTION] == fraction and result.trial and not result.missing
    }
    shares = []
    for (scheme, seed), trial in trials.items():
        treated = trials.get((TREATMENT, seed))
        curve = study.curves.get((trial["trial_key"], names.VAL_ACCURACY))
        if scheme != BASELINE or treated is None or not curve:
            continue
        last = max(curve)
        needed = [study.steps_to(each, curve[last]) for each in (trial, treated)]
        random_steps, treated_steps = (PENALTY * last if math.isinf(steps) else steps for steps in needed)
        if math.isfinite(treated_steps):
            shares.append((random_steps - treated_steps) / last)
    return shares


QUESTION = Question(
    order=10,
    axes=(FRACTION, SCHEME),
    caption="Left: test accuracy against the share of the training images. Right: validation accuracy during "
    "training; a tick marks where trials pass from convolution to attention. Means over seeds, bands 95 % intervals.",
    curves=(names.VAL_ACCURACY,),
    claims=(
        Claim(
            order=60,
            name="low_data_gain",
            statement=f"Where data are few, at this share of the images, {TREATMENT} is more accurate than {BASELINE}",
            unit=POINTS,
            judge=_low_data_gain,
        ),
        Claim(
            order=70,
            name="gain_shrinks",
            statement="That gain is larger at the smallest share of the images than at the largest",
            unit=POINTS,
            judge=_gain_shrinks,
        ),
        Claim(
            order=100,
            name="trains_faster",
            statement=f"At this share of the images, {TREATMENT} reaches {BASELINE}'s last validation accuracy in "
            "fewer steps, those of both phases counted",
            unit=STEPS_SHARE,
            judge=_trains_faster,
            rule="Steps are those to the last validation accuracy of random initialisation on the same seed and "
            "images, as a share of the trial's; an accuracy that is never reached counts as "
            f"{PENALTY} times all steps.",
        ),
    ),
)
