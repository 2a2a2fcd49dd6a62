"""The cost of a plan: floating-point operations, counted, and time, measured on a few steps."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import torch

from cvit.stages import Stage
from cvit.tasks import task_named
from cvit.training.probe import one_thread
from sweeps.engine.execution.pack_size import Limits


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of training, and seconds on one worker of this machine."""

    flops: float
    worker_seconds: float


def cost_of(stages: Iterable[Stage], limits: Limits, device: torch.device) -> Cost:
    """The cost of stages, without evaluation. One step of every kind is counted, forward and backward, and timed.

    Args:
        limits: the largest number of stages in a pack, by shape.
    """
    flops, seconds = 0.0, 0.0
    measured: dict[Hashable, tuple[float, float]] = {}
    for stage in stages:
        if stage.cost_kind not in measured:
            measured[stage.cost_kind] = _step_cost(stage, limits.get(stage.shape, 1), device)
        step_flops, step_seconds = measured[stage.cost_kind]
        flops += step_flops * stage.steps
        seconds += step_seconds * stage.steps
    return Cost(flops, seconds)


def _step_cost(stage: Stage, pack_size: int, device: torch.device) -> tuple[float, float]:
    """FLOPs and seconds of one member's step in a pack."""
    task = task_named(stage.task)
    with one_thread():
        return task.step_flops(stage), task.step_seconds(stage, [pack_size], device)[0] / pack_size
