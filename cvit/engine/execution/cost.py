"""The cost of a plan: floating-point operations, known beforehand, and time, measured on a few steps."""

import math
import statistics
import time
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from cvit.engine.execution.pack_size import Limits
from cvit.engine.execution.workers import Workers
from cvit.stages import Stage
from cvit.tasks import task_named

MEASURING_S = 10.0
"""The time after which no other kind of step is measured; those that are left count as the mean of the others."""


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of one member's step on one worker of this machine, by the kind of step; NaN where they cannot be
    measured here. `num_kinds` counts the kinds that were not measured too."""

    by_kind: Mapping[Hashable, float]
    num_kinds: int

    def of(self, stages: Iterable[Stage]) -> float:
        """Seconds of training stages, without evaluation. A kind that was not measured counts as the mean of the
        others."""
        mean = statistics.fmean(self.by_kind.values())
        return sum(self.by_kind.get(stage.cost_kind, mean) * stage.steps for stage in stages)


def flops_of(stages: Iterable[Stage]) -> float:
    """Floating-point operations of training stages, forward and backward, without evaluation."""
    of_step: dict[Hashable, float] = {}
    total = 0.0
    for stage in stages:
        kind = stage.cost_kind
        if kind not in of_step:
            of_step[kind] = task_named(stage.task).step_flops(stage)
        total += of_step[kind] * stage.steps
    return total


def step_seconds(stages: Iterable[Stage], limits: Limits, workers: Workers) -> StepSeconds:
    """The seconds of the steps of stages, of which there is at least one. A step of every kind is timed, on a worker's
    device and with its threads.

    Args:
        limits: the largest number of stages in a pack, by shape.
    """
    started = time.monotonic()
    kinds = {stage.cost_kind: stage for stage in stages}
    measured: dict[Hashable, float] = {}
    for kind, stage in kinds.items():
        if measured and time.monotonic() - started > MEASURING_S:
            break
        measured[kind] = _seconds_of_step(stage, limits.get(stage.shape, 1), workers)
    return StepSeconds(measured, len(kinds))


def _seconds_of_step(stage: Stage, pack_size: int, workers: Workers) -> float:
    """Seconds of one member's step in a pack."""
    import torch

    from cvit.training.probe import threads

    device = torch.device(workers.device)
    with threads(workers.threads):
        try:
            return task_named(stage.task).step_seconds(stage, [pack_size], device)[0] / pack_size
        except (torch.OutOfMemoryError, MemoryError):
            return math.nan
