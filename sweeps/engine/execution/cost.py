"""The cost of a plan: floating-point operations, counted, and time, measured on a few steps."""

import math
import time
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

import torch

from cvit.stages import Stage
from cvit.tasks import task_named
from cvit.training.probe import one_thread
from sweeps.engine.execution.pack_size import Limits

MEASURING_S = 10.0
"""The time after which no other kind of step is measured; those that are left count as the mean of the others."""


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of training, and seconds on one worker of this machine; NaN where they cannot be
    measured here."""

    flops: float
    worker_seconds: float


@dataclass(frozen=True)
class StepCosts:
    """The costs of one member's step, by the kind of step; `num_kinds` counts those that were not measured too."""

    by_kind: Mapping[Hashable, Cost]
    num_kinds: int

    def of(self, stages: Iterable[Stage]) -> Cost:
        """The cost of stages, without evaluation."""
        mean = _mean(list(self.by_kind.values()))
        steps = [(self.by_kind.get(stage.cost_kind, mean), stage.steps) for stage in stages]
        return Cost(sum(c.flops * n for c, n in steps), sum(c.worker_seconds * n for c, n in steps))


def step_costs(stages: Iterable[Stage], limits: Limits, device: torch.device) -> StepCosts:
    """The costs of the steps of stages. One step of every kind is counted, forward and backward, and timed.

    Args:
        limits: the largest number of stages in a pack, by shape.
    """
    started = time.monotonic()
    kinds = {stage.cost_kind: stage for stage in stages}
    measured: dict[Hashable, Cost] = {}
    for kind, stage in kinds.items():
        if measured and time.monotonic() - started > MEASURING_S:
            break
        measured[kind] = _step_cost(stage, limits.get(stage.shape, 1), device)
    return StepCosts(measured, len(kinds))


def _step_cost(stage: Stage, pack_size: int, device: torch.device) -> Cost:
    """FLOPs and seconds of one member's step in a pack."""
    task = task_named(stage.task)
    with one_thread():
        flops = task.step_flops(stage)
        try:
            return Cost(flops, task.step_seconds(stage, [pack_size], device)[0] / pack_size)
        except (torch.OutOfMemoryError, MemoryError):
            return Cost(flops, math.nan)


def _mean(costs: list[Cost]) -> Cost:
    count = max(1, len(costs))
    return Cost(sum(c.flops for c in costs) / count, sum(c.worker_seconds for c in costs) / count)
