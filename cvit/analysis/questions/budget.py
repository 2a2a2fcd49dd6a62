"""The sweep budget: accuracy against optimiser steps, and the budget from which on the second phase pays."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from cvit.analysis.display.accuracy_tables import Comparison, Layout, Section
from cvit.analysis.display.text import number_text
from cvit.analysis.questions import POINTS, Claim, Question
from cvit.analysis.statistics.cost import PhaseCost, phases_of
from cvit.analysis.statistics.pairs import Family, differences, judged_family
from cvit.analysis.statistics.studies import BASELINE, TREATMENT, Study, gains_over
from cvit.analysis.statistics.verdicts import HOLDS, judge
from cvit.analysis.store.axes import MIN_STEPS, SCHEME

TWIN = "convolution"


def costs_at(study: Study, budget: int, scheme: str) -> list[PhaseCost]:
    """The phases of the trials of a scheme at a budget, with steps and operations; none without trials."""
    trials = study.trials_at({MIN_STEPS: budget, SCHEME: scheme})
    return next((list(phases) for trial in trials if (phases := phases_of(trial))), [])


def steps_at(study: Study, budget: int) -> int:
    """The optimiser steps of the trials at a budget: those that they have, since `epochs` may ask for more."""
    phases = next((phases for scheme in study.schemes if (phases := costs_at(study, budget, scheme))), [])
    return sum(phase.steps for phase in phases) or budget


@dataclass(frozen=True)
class Crossover:
    """The budget at which two_phase overtakes another scheme.

    Attributes:
        steps: where the mean difference, straight over the logarithm of the steps, changes to positive for good; NaN
            if it does so below the smallest budget, or never.
        beyond: `below N` or `above N` steps where `steps` is NaN.
        loses_until: the largest budget at which a loss is shown; NaN without one.
        gains_from: the smallest budget at which the claim of a gain holds; NaN without one.
    """

    other: str
    steps: float
    beyond: str
    loses_until: float
    gains_from: float


def crossovers(study: Study) -> list[Crossover]:
    """The crossovers of two_phase with random initialisation and with the twin, as far as the study has them."""
    found = []
    for other in (BASELINE, TWIN):
        family = _family(study, other)
        known = [(int(steps), judged) for steps, judged in family if math.isfinite(judged.estimate)]
        if not known:
            continue
        crossing = _last_crossing([(steps, judged.estimate) for steps, judged in known])
        beyond = ""
        if math.isnan(crossing):
            is_ahead = known[-1][1].estimate > 0
            beyond = f"below {known[0][0]}" if is_ahead else f"above {known[-1][0]}"
        losses = judge([[-gain for gain in gains] for gains in _gains(study, other).values()], line=0.0)
        losing = [int(steps) for (steps, _), judged in zip(family, losses, strict=True) if judged.verdict == HOLDS]
        gaining = [steps for steps, judged in known if judged.verdict == HOLDS]
        found.append(Crossover(other, crossing, beyond, max(losing, default=math.nan), min(gaining, default=math.nan)))
    return found


def _last_crossing(points: list[tuple[int, float]]) -> float:
    """The steps at which a difference last changes from at most 0 to more; NaN if it ends at most at 0, or is always
    more."""
    if points[-1][1] <= 0:
        return math.nan
    crossing = math.nan
    for (steps, low), (following, high) in pairwise(points):
        if low <= 0 < high:
            crossing = steps * (following / steps) ** (-low / (high - low))
    return crossing


def _two_phases_pay(study: Study) -> Iterator[Family]:
    yield _family(study, BASELINE)


def _attention_adds_to_the_twin(study: Study) -> Iterator[Family]:
    yield _family(study, TWIN)


def _family(study: Study, other: str) -> Family:
    """The verdicts on two_phase minus another scheme at all budgets."""
    gains = _gains(study, other)
    return judged_family(gains, list(gains.values()), line=0.0)


def _gains(study: Study, other: str) -> dict[str, list[float]]:
    """two_phase minus another scheme on the same seeds, by the steps of the budget."""
    if not {TREATMENT, other} <= set(study.schemes):
        return {}
    return {
        str(steps_at(study, budget)): differences(
            study, {MIN_STEPS: budget, SCHEME: TREATMENT}, {MIN_STEPS: budget, SCHEME: other}
        )
        for budget in study.values(MIN_STEPS)
    }


def _crossover_table(study: Study) -> tuple[list[str], list[list[str]]]:
    head = [f"{TREATMENT} overtakes", "at steps", "loses up to", "gains from"]
    return head, [
        [row.other, row.beyond or f"{row.steps:.0f}", number_text(row.loses_until), number_text(row.gains_from)]
        for row in crossovers(study)
    ]


def _crossover_rows(study: Study) -> list[dict[str, Any]]:
    return [
        {
            "kind": "crossover_steps",
            SCHEME: f"{TREATMENT}-{row.other}",
            "mean": row.steps,
            "beyond": row.beyond,
            "loses_until": row.loses_until,
            "gains_from": row.gains_from,
        }
        for row in crossovers(study)
    ]


QUESTION = Question(
    order=15,
    axes=(MIN_STEPS, SCHEME),
    layout=Layout(
        comparisons=(
            Comparison(
                kind="less_the_twin",
                heading="less the twin, for",
                summaries=partial(gains_over, baseline=TWIN),
                title="Less the twin alone, on the same seeds",
            ),
        ),
        sections=(
            Section(
                title="The budget from which on two phases pay",
                notes="Steps: where the mean difference on the same seeds last changes to positive, on a straight line "
                "over the logarithm of the steps between two budgets. Loses up to: the largest budget at which "
                "a loss is shown; gains from: the smallest at which the claim of a gain holds; all budgets are judged "
                "together, by the rule of the claims.",
                table=_crossover_table,
                csv_rows=_crossover_rows,
                csv_names=("beyond", "loses_until", "gains_from"),
            ),
        ),
    ),
    caption="Test accuracy against the budget, left in optimiser steps, right in floating-point operations of the "
    "training. Each point is a training with a whole schedule of its own. Means over seeds with 95 % intervals.",
    claims=(
        Claim(
            order=110,
            name="two_phases_pay",
            statement=f"With this many optimiser steps, {TREATMENT} is more accurate than {BASELINE}",
            unit=POINTS,
            place_text="{} steps".format,
            judge=_two_phases_pay,
        ),
        Claim(
            order=120,
            name="attention_adds_to_the_twin",
            statement=f"With this many optimiser steps, {TREATMENT} is more accurate than its twin trained for all of "
            "them",
            unit=POINTS,
            place_text="{} steps".format,
            judge=_attention_adds_to_the_twin,
        ),
    ),
)
