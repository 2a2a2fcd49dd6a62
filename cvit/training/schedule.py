"""The schedule of the learning rate: linear warm-up, then cosine to zero."""

import math


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
