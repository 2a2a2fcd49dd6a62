"""The cost of trials by phase: steps, sum of the learning rates, operations, seconds.

All but the seconds follow from a trial's parameters and its number of images, so they are known for trials of earlier
versions too. Seconds were measured.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from cvit import vocabulary as names
from cvit.analysis.statistics.stats import mean_of
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import SCHEME
from cvit.config import PARAMETERS, TrialConfig
from cvit.parameters import ConfigError
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


Costing = Callable[[Trial], Callable[[float], float] | None]
"""Trial → (step → the cost of the trial up to that step, in some unit); None if that is not known."""


def phases_of(trial: Trial) -> tuple[PhaseCost, ...]:
    """The phases of a training in their order; none for another task, and for a trial that does not say enough."""
    if trial.get("task") != names.TRAINING or trial.get("train_images") is None:
        return ()
    flat = {name: _value(name, trial[name]) for name in PARAMETERS if name in trial}
    return tuple(
        replace(phase, seconds=_seconds(trial, phase.phase))
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


def costs_of(study: Study, axes: Collection[str]) -> list[CostAt]:
    """The costs of all phases of a study, by scheme and place on some of its axes, in the order of its results."""
    groups: dict[tuple[Any, ...], list[tuple[Trial, PhaseCost]]] = {}
    for place, trial, phases in _known_phases(study):
        at = tuple(place[axis] for axis in (*axes, SCHEME))
        for phase in phases:
            groups.setdefault((*at, phase.phase), []).append((trial, phase))
    found = []
    for (*place, _), members in groups.items():
        timed = [c.seconds for trial, c in members if trial["status"] == names.STATUS_OK and not math.isnan(c.seconds)]
        mean = replace(members[0][1], seconds=mean_of(timed))
        found.append(CostAt(dict(zip((*axes, SCHEME), place, strict=True)), mean, len(timed)))
    return found


def decisive_axes(study: Study) -> list[str]:
    """The axes that have an influence on the steps, the learning rates or the operations of some phase."""
    known, axes = _known_phases(study), list(study.axes)
    for axis in study.axes:
        others = [name for name in (*axes, SCHEME) if name != axis]
        seen: dict[tuple[Any, ...], set[tuple[PhaseCost, ...]]] = {}
        for place, _, phases in known:
            exact = tuple(replace(phase, seconds=0.0) for phase in phases)
            seen.setdefault(tuple(place[name] for name in others), set()).add(exact)
        if all(len(costs) == 1 for costs in seen.values()):
            axes.remove(axis)
    return axes


def _known_phases(study: Study) -> list[tuple[Mapping[str, Any], Trial, tuple[PhaseCost, ...]]]:
    """Place, trial and phases of the trials that say enough."""
    trials = [(result.place, result.trial) for result in study.results if result.trial is not None]
    return [(place, trial, phases) for place, trial in trials if (phases := phases_of(trial))]


def in_steps(trial: Trial) -> Callable[[float], float] | None:
    """Counts steps."""
    return lambda step: step


def in_flops(trial: Trial) -> Callable[[float], float] | None:
    """Counts floating-point operations."""
    return _up_to(phases_of(trial), lambda phase: phase.flops)


def in_seconds(trial: Trial) -> Callable[[float], float] | None:
    """Counts seconds."""
    return _up_to(phases_of(trial), lambda phase: phase.seconds)


def _up_to(phases: Sequence[PhaseCost], of_phase: Callable[[PhaseCost], float]) -> Callable[[float], float] | None:
    """The cost up to a step, straight within each phase; None if that of a phase is not known."""
    costs = [(phase.steps, of_phase(phase)) for phase in phases]
    if not costs or not all(cost > 0 for _, cost in costs):
        return None

    def up_to(step: float) -> float:
        total, before = 0.0, 0
        for steps, cost in costs:
            total += cost * min(max(step - before, 0), steps) / steps
            before += steps
        return total

    return up_to
