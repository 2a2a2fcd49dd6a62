"""The cost of trials by phase: steps, sum of the learning rates, operations, seconds.

All but the seconds follow from a trial's parameters and its number of images, so they are known for trials of earlier
versions too. Seconds were measured.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from analysis.statistics.stats import mean_of
from analysis.statistics.studies import Study
from analysis.store.axes import SCHEME
from cvit import vocabulary as names
from cvit.config import PARAMETERS, ConfigError, TrialConfig
from cvit.stages import stages_of
from cvit.training.schedule import learning_rate_sum

Trial = Mapping[str, Any]


@dataclass(frozen=True)
class PhaseCost:
    """The cost of a phase of a trial.

    Attributes:
        learning_rate_sum: S, the sum of the learning rates of its steps.
        flops: floating-point operations; NaN if they are not known.
        seconds: seconds of a worker, evaluation included; NaN if they were not measured.
    """

    phase: str
    steps: int
    learning_rate_sum: float
    flops: float
    seconds: float = math.nan


Costing = Callable[[PhaseCost], float]
"""The cost of a phase in a unit."""


def phases_of(trial: Trial) -> tuple[PhaseCost, ...]:
    """The phases of a training in their order; none for another task, and for a trial that does not say enough."""
    if trial.get("task") != names.TRAINING or trial.get("train_images") is None:
        return ()
    flat = {name: _value(name, trial[name]) for name in PARAMETERS if name in trial}
    return tuple(
        PhaseCost(**vars(phase) | {"seconds": _seconds(trial, phase.phase)})
        for phase in _phases(tuple(flat.items()), int(trial["train_images"]))
    )


@lru_cache(maxsize=65536)
def _phases(flat: tuple[tuple[str, Any], ...], num_images: int) -> tuple[PhaseCost, ...]:
    try:
        stages = stages_of(TrialConfig.from_flat(dict(flat)), num_images)
    except ConfigError:  # such as an init scheme that this version does not know
        return ()
    return tuple(
        PhaseCost(
            stage.phase,
            stage.steps,
            learning_rate_sum(stage),
            math.nan if stage.step_flops is None else float(stage.steps * stage.step_flops),
        )
        for stage in stages
    )


def _value(name: str, value: Any) -> Any:
    """A parameter's value, None in place of the number that stands for it in the frames."""
    unset = PARAMETERS[name].unset
    return None if unset is not None and value == unset else value


def _seconds(trial: Trial, phase: str) -> float:
    value = trial.get(f"{names.SECONDS_OF_PHASE}{phase}")
    return math.nan if value is None else float(value)


@dataclass(frozen=True)
class CostAt:
    """The cost of a phase at a place of a study; `cost.seconds` is the mean of `num_timed` trials."""

    place: Mapping[str, Any]
    cost: PhaseCost
    num_timed: int


def costs_of(study: Study) -> list[CostAt]:
    """The costs of all phases of a study, by place and scheme, in the order of its results. Axes that have no influence
    on any phase's steps, learning rates or operations are left out of the places."""
    phases = [(result.place, result.trial, phases_of(result.trial)) for result in study.results if result.trial]
    phases = [known for known in phases if known[2]]
    axes = list(study.axes)
    for axis in study.axes:
        others = [name for name in (*axes, SCHEME) if name != axis]
        seen: dict[tuple[Any, ...], set[tuple[Any, ...]]] = {}
        for place, _, costs in phases:
            exact = tuple((c.phase, c.steps, c.learning_rate_sum, c.flops) for c in costs)
            seen.setdefault(tuple(place[name] for name in others), set()).add(exact)
        if all(len(costs) == 1 for costs in seen.values()):
            axes.remove(axis)
    groups: dict[tuple[Any, ...], list[tuple[Trial, PhaseCost]]] = {}
    for place, trial, costs in phases:
        for cost in costs:
            groups.setdefault((*(place[name] for name in (*axes, SCHEME)), cost.phase), []).append((trial, cost))
    found = []
    for (*place, _), members in groups.items():
        timed = [c.seconds for trial, c in members if trial["status"] == names.STATUS_OK and not math.isnan(c.seconds)]
        mean = PhaseCost(**vars(members[0][1]) | {"seconds": mean_of(timed)})
        found.append(CostAt(dict(zip((*axes, SCHEME), place, strict=True)), mean, len(timed)))
    return found


def cost_by_step(trial: Trial, costing: Costing) -> Callable[[float], float] | None:
    """The cost of a trial up to a step, straight within each phase; None if it is not known."""
    phases = [(phase.steps, costing(phase)) for phase in phases_of(trial)]
    if not phases or any(math.isnan(cost) for _, cost in phases):
        return None

    def cost(step: float) -> float:
        total = 0.0
        for steps, of_phase in phases:
            total += of_phase * min(max(step, 0.0), steps) / steps
            step -= steps
        return total

    return cost
