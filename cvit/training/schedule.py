"""The schedule of the learning rate: linear warm-up, then cosine to zero. It needs no torch.

Each phase has a schedule of its own or, under `schedule=joint`, its part of one over both phases, each phase with its
own peak. Factors for some of the parameters (`cvit.training.groups`) come on top.
"""

import math
from functools import lru_cache

from cvit.stages import TrainingStage


def learning_rate(step: int, total_steps: int, peak: float, warmup_fraction: float) -> float:
    """The learning rate of a step.

    Args:
        step: the step, from 0 to total_steps − 1, counted within the phase.
        total_steps: the steps of the phase.
        peak: the highest learning rate.
        warmup_fraction: share of the steps with a linearly rising learning rate.
    """
    warmup_steps = round(warmup_fraction * total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def rate_at(stage: TrainingStage, step: int) -> float:
    """The learning rate of a stage's step, counted within the stage."""
    first, total = _place(stage)
    return learning_rate(first + step, total, stage.learning_rate, stage.warmup_fraction)


def _place(stage: TrainingStage) -> tuple[int, int]:
    """The stage's first step in its schedule, and the steps of that schedule."""
    return (0, stage.steps) if stage.schedule_steps is None else (stage.first_step, stage.schedule_steps)


def learning_rate_sum(stage: TrainingStage) -> float:
    """S, the sum of the learning rates of a stage's steps. Times its own factor, a parameter moves by little more than
    that, whatever its gradients."""
    return _sum(*_place(stage), stage.learning_rate, stage.warmup_fraction, stage.steps)


@lru_cache(maxsize=4096)
def _sum(first: int, total: int, peak: float, warmup_fraction: float, steps: int) -> float:
    return sum(learning_rate(step, total, peak, warmup_fraction) for step in range(first, first + steps))
