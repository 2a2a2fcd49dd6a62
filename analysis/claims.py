"""The paper's claims, each judged on the most recent study per data set of the sweep that asks about it.

Those about accuracy and steps follow the rule of analysis/statistics/verdicts.py. A diverged trial that was never
tested counts there with the accuracy of guessing, one over the number of classes. Those about what heads can express
rest on no seeds: theorem 2's bound is a lower limit for certain, and an error that was reached is an upper one, so
that the two are the interval; an error up to ZERO_ERROR counts as zero. A claim that nothing in the store is about
has n = 0.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.display.wording import FRACTION, INNER_DIM, LEARNING_RATE, NUM_HEADS, SCHEME, WARMUP, plain_text
from analysis.layouts import LAYOUTS
from analysis.questions import expressivity
from analysis.questions.expressivity import Fit, by_case, fits
from analysis.questions.no_warmup import warmups
from analysis.statistics.stats import Result
from analysis.statistics.studies import BASELINE, TREATMENT, Study, read_studies
from analysis.statistics.verdicts import FAILS, HOLDS, MARGIN, UNDECIDED, Judged, judge
from analysis.store.frames import Frames
from cvit import vocabulary as names
from cvit.config import THREE_BY_THREE
from cvit.theorem.counts import general_kernel_heads, heads_needed

ZERO_ERROR = 1e-3
"""Distance from a convolution, relative to its norm, that counts as none."""
LOW_DATA = 0.1
"""The largest share of the training images that counts as low data."""
TRAINS_SHARE = 0.5
"""A learning rate counts where, with the longest warm-up, a scheme reaches this share of its best accuracy."""
PENALTY = 2
"""Times the trial's steps: what an accuracy that is never reached counts as."""

Place = Mapping[str, Any]
Family = list[tuple[str, Judged]]
"""Verdicts that are judged together, each with the place that its claim is about."""


@dataclass(frozen=True)
class Claim:
    """A row of results/claims.csv; `estimate` and the interval are in the kind's unit."""

    claim: str
    verdict: str
    estimate: float
    ci_low: float
    ci_high: float
    n: int
    source: str


@dataclass(frozen=True)
class Kind:
    """A claim of the paper: its name, what it says, where it is looked for, and how it is judged, study by study.

    `unit` is `points` of accuracy or `% of the steps` (numbers are fractions), `relative error` or `heads`.
    """

    name: str
    statement: str
    sweep: str
    unit: str
    judge: Callable[[Study], Iterable[Family]]


def claims(frames: Frames) -> list[Claim]:
    """All claims, in the order of KINDS."""
    studies = {sweep: latest_studies(frames, sweep) for sweep in dict.fromkeys(kind.sweep for kind in KINDS)}
    found = []
    for kind in KINDS:
        rows = [
            _claim(f"{kind.name}/{place}", judged, source_of(study))
            for study in studies[kind.sweep]
            for family in kind.judge(study)
            for place, judged in family
        ]
        held = "; ".join(f"nothing to compare in {source_of(study)}" for study in studies[kind.sweep])
        found += rows or [_claim(kind.name, Judged(UNDECIDED), held or f"no study of {kind.sweep}")]
    return found


def kind_of(claim: Claim) -> Kind:
    """The kind that a claim is of."""
    return next(kind for kind in KINDS if kind.name == claim.claim.partition("/")[0])


def latest_studies(frames: Frames, sweep: str) -> list[Study]:
    """The most recent study per data set of a sweep."""
    axes = expressivity.AXES if sweep == expressivity.SWEEP else LAYOUTS[sweep].axes
    latest: dict[str, Study] = {}
    for study in read_studies(frames, sweep, axes):
        latest.setdefault(study.dataset, study)
    return list(latest.values())


def source_of(study: Study) -> str:
    """The sweep and the study, whose label begins with the data set."""
    return f"{study.sweep}/{study.label}"


def _claim(name: str, judged: Judged, source: str) -> Claim:
    return Claim(name, judged.verdict, judged.estimate, judged.ci_low, judged.ci_high, judged.n, source)


def _heads_enough(study: Study) -> Iterator[Family]:
    for case, by_heads in by_case(fits(study)).items():
        if (fit := by_heads.get(heads_needed(*case))) is not None:
            zero = HOLDS if fit.reached <= ZERO_ERROR else FAILS if fit.bound > ZERO_ERROR else UNDECIDED
            yield [(_case(*case), _of_fit(fit, zero))]


def _heads_necessary(study: Study) -> Iterator[Family]:
    """Where a general kernel needs the theorem's number: an even-sized one, on few channels or on a small image needs
    fewer, which theorem 2 does not deny."""
    for case, by_heads in by_case(fits(study)).items():
        is_general = _general_heads(study, *case) == heads_needed(*case)
        if is_general and (fit := by_heads.get(heads_needed(*case) - 1)) is not None:
            above = FAILS if fit.reached <= ZERO_ERROR else HOLDS if fit.bound > ZERO_ERROR else UNDECIDED
            yield [(_case(*case), _of_fit(fit, above))]


def _patches_save_heads(study: Study) -> Iterator[Family]:
    """Heads that a convolution needs on pixels less those on patches, where the theorem counts fewer on patches."""
    cases = by_case(fits(study))
    for (kernel_size, patch_size), on_patches in cases.items():
        on_pixels = cases.get((kernel_size, 1))
        if on_pixels is None or heads_needed(kernel_size, patch_size) == heads_needed(kernel_size, 1):
            continue
        (least, reached), (least_on_patches, reached_on_patches) = _needed(on_pixels), _needed(on_patches)
        low, high = least - reached_on_patches, reached - least_on_patches
        verdict = HOLDS if low > 0 else FAILS if high <= 0 else UNDECIDED
        restarts = min(fit.restarts for fit in (*on_pixels.values(), *on_patches.values()))
        saved = reached - reached_on_patches
        yield [(_case(kernel_size, patch_size), Judged(verdict, saved, low, high, restarts))]


def _nine_beat_fewer(study: Study) -> Iterator[Family]:
    yield from _nine_against(study, lambda heads: heads < THREE_BY_THREE, line=0.0)


def _nine_match_more(study: Study) -> Iterator[Family]:
    yield from _nine_against(study, lambda heads: heads > THREE_BY_THREE, line=-MARGIN)


def _nine_against(study: Study, is_other: Callable[[int], bool], line: float) -> Iterator[Family]:
    for width in study.values(INNER_DIM):
        at = {INNER_DIM: width, SCHEME: TREATMENT}
        others = [heads for heads in study.values(NUM_HEADS) if is_other(heads)]
        if THREE_BY_THREE in study.values(NUM_HEADS) and TREATMENT in study.schemes:
            nine = {NUM_HEADS: THREE_BY_THREE}
            family = [_differences(study, at | nine, at | {NUM_HEADS: heads}) for heads in others]
            yield _judged([f"{INNER_DIM}={width},{NUM_HEADS}={heads}" for heads in others], family, line)


def _low_data_gain(study: Study) -> Iterator[Family]:
    if {TREATMENT, BASELINE} <= set(study.schemes):
        fractions = [fraction for fraction in study.values(FRACTION) if fraction <= LOW_DATA]
        gains = [list(_gains(study, fraction).values()) for fraction in fractions]
        yield _judged(map(plain_text, fractions), gains, line=0.0)


def _gain_shrinks(study: Study) -> Iterator[Family]:
    fractions = study.values(FRACTION)
    if {TREATMENT, BASELINE} <= set(study.schemes) and len(fractions) > 1:
        few, many = _gains(study, fractions[0]), _gains(study, fractions[-1])
        place = f"{plain_text(fractions[0])}-to-{plain_text(fractions[-1])}"
        yield _judged([place], [[few[seed] - many[seed] for seed in few if seed in many]], line=0.0)


def _no_loss_without_warmup(study: Study) -> Iterator[Family]:
    yield from _without_warmup(study, TREATMENT, sign=1, line=-MARGIN)


def _loss_without_warmup(study: Study) -> Iterator[Family]:
    yield from _without_warmup(study, BASELINE, sign=-1, line=0.0)


def _without_warmup(study: Study, scheme: str, sign: int, line: float) -> Iterator[Family]:
    """Accuracy without warm-up less that with the longest, times `sign`, per learning rate that counts."""
    found = warmups(study)
    if found is None or scheme not in study.schemes:
        return
    at = {rate: {LEARNING_RATE: rate, SCHEME: scheme} for rate in study.values(LEARNING_RATE)}
    none, longest = ({rate: place | {WARMUP: warmup} for rate, place in at.items()} for warmup in found)
    means = {rate: _mean(_by_seed(study, place).values()) for rate, place in longest.items()}
    best = max((mean for mean in means.values() if math.isfinite(mean)), default=math.nan)
    rates = [rate for rate in at if means[rate] >= TRAINS_SHARE * best]
    family = [[sign * d for d in _differences(study, none[rate], longest[rate])] for rate in rates]
    yield _judged(map(plain_text, rates), family, line)


def _trains_faster(study: Study) -> Iterator[Family]:
    if {TREATMENT, BASELINE} <= set(study.schemes):
        fractions = study.values(FRACTION)
        yield _judged(map(plain_text, fractions), [_steps_saved(study, f) for f in fractions], line=0.0)


def _steps_saved(study: Study, fraction: float) -> list[float]:
    """Per seed, the share of the steps by which two phases reach random's last validation accuracy sooner than random
    does; where they never do, they count as having taken PENALTY times all steps."""
    trials = {
        (result.axes[SCHEME], result.seed): result.trial
        for result in study.results
        if result.axes[FRACTION] == fraction and result.trial and not result.missing
    }
    saved = []
    for (scheme, seed), trial in trials.items():
        treated = trials.get((TREATMENT, seed))
        curve = study.curves.get((trial["trial_key"], names.VAL_ACCURACY))
        if scheme != BASELINE or treated is None or not curve:
            continue
        last = max(curve)
        needed = [study.steps_to(each, curve[last]) for each in (trial, treated)]
        own, theirs = (PENALTY * last if math.isinf(steps) else steps for steps in needed)
        if math.isfinite(theirs):
            saved.append((own - theirs) / last)
    return saved


def _judged(places: Iterable[str], family: Sequence[Sequence[float]], line: float) -> Family:
    return list(zip(places, judge(family, line), strict=True))


def _of_fit(fit: Fit, verdict: str) -> Judged:
    verdict = FAILS if fit.contradicts else verdict if fit.restarts else UNDECIDED
    return Judged(verdict, fit.reached, fit.bound, fit.reached, fit.restarts)


def _general_heads(study: Study, kernel_size: int, patch_size: int) -> int:
    fit = next(iter(study.trials), study.params)
    channels, grid_size = fit["fit_channels"], fit["fit_image_size"] // patch_size
    return general_kernel_heads(kernel_size, patch_size, channels, channels, grid_size)


def _case(kernel_size: int, patch_size: int) -> str:
    return f"K{kernel_size}-P{patch_size}"


def _needed(by_heads: Mapping[int, Fit]) -> tuple[float, float]:
    """The least number of heads that the bound leaves possible, and the least that reached the convolution."""
    impossible = [heads for heads, fit in by_heads.items() if fit.bound > ZERO_ERROR]
    reached = [heads for heads, fit in by_heads.items() if fit.reached <= ZERO_ERROR]
    return max(impossible, default=0) + 1, min(reached, default=math.inf)


def _gains(study: Study, fraction: float) -> dict[int, float]:
    """Two phases less random initialisation, by seed."""
    treated, base = (_by_seed(study, {FRACTION: fraction, SCHEME: scheme}) for scheme in (TREATMENT, BASELINE))
    return {seed: treated[seed] - base[seed] for seed in sorted(treated.keys() & base.keys())}


def _differences(study: Study, place: Place, other: Place) -> list[float]:
    one, two = _by_seed(study, place), _by_seed(study, other)
    return [one[seed] - two[seed] for seed in sorted(one.keys() & two.keys())]


def _by_seed(study: Study, place: Place) -> dict[int, float]:
    """Test accuracies at a place, by seed."""
    at_place = [result for result in study.results if place.items() <= result.axes.items()]
    counted = {result.seed: _counted(result) for result in at_place}
    return {seed: value for seed, value in counted.items() if math.isfinite(value)}


def _counted(result: Result) -> float:
    if result.diverged and math.isnan(result.value) and result.trial is not None:
        return 1 / result.trial["num_classes"]
    return result.value


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return math.fsum(known) / len(known) if known else math.nan


KINDS = (
    Kind(
        "heads_enough",
        "The theorem's number of heads expresses the convolution: the error reached is zero",
        expressivity.SWEEP,
        "relative error",
        _heads_enough,
    ),
    Kind(
        "heads_necessary",
        "One head fewer does not express it, where a general kernel needs as many: the error stays clearly above zero",
        expressivity.SWEEP,
        "relative error",
        _heads_necessary,
    ),
    Kind(
        "patches_save_heads",
        "On patches a convolution needs fewer heads than on pixels",
        expressivity.SWEEP,
        "heads",
        _patches_save_heads,
    ),
    Kind(
        "nine_beat_fewer",
        f"With 9 heads {TREATMENT} is more accurate than with fewer",
        "head_count",
        "points",
        _nine_beat_fewer,
    ),
    Kind(
        "nine_match_more",
        f"With 9 heads {TREATMENT} is no less accurate than with more",
        "head_count",
        "points",
        _nine_match_more,
    ),
    Kind(
        "low_data_gain",
        f"Where data are few, at this share of the images, {TREATMENT} is more accurate than {BASELINE}",
        "low_data",
        "points",
        _low_data_gain,
    ),
    Kind(
        "gain_shrinks",
        "That gain is larger at the smallest share of the images than at the largest",
        "low_data",
        "points",
        _gain_shrinks,
    ),
    Kind(
        "no_loss_without_warmup",
        f"Without warm-up, at this learning rate, {TREATMENT} loses no accuracy",
        "no_warmup",
        "points",
        _no_loss_without_warmup,
    ),
    Kind(
        "random_loses_without_warmup",
        f"Without warm-up, at this learning rate, {BASELINE} loses accuracy or diverges",
        "no_warmup",
        "points",
        _loss_without_warmup,
    ),
    Kind(
        "trains_faster",
        f"At this share of the images, {TREATMENT} reaches {BASELINE}'s last validation accuracy in fewer steps, those "
        "of both phases counted",
        "low_data",
        "% of the steps",
        _trains_faster,
    ),
)
"""The claims of the paper."""
