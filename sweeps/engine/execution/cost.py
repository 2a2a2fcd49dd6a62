"""What a plan will cost: floating-point operations counted, time measured on a few steps."""

import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cvit.init.registry import blank_model
from cvit.stages import AnyStage, FitStage, Stage
from cvit.training.fit import descend
from cvit.training.probe import one_thread, step_seconds
from sweeps.engine.execution.pack_size import Limits

_TIMED_FIT_STEPS = 20


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of training, and seconds on one worker of this machine."""

    flops: float
    worker_seconds: float


def estimate(stages: Iterable[AnyStage], limits: Limits, device: torch.device) -> Cost:
    """Counts the matrix operations of one step of every shape, forward and backward, and times a few such steps.

    Evaluation is left out.

    Args:
        limits: stages in a pack.
    """
    flops, seconds = 0.0, 0.0
    measured: dict[object, tuple[float, float]] = {}
    for stage in stages:
        shape = _shape(stage)
        if shape not in measured:
            size = limits.get(stage.shape, 1)
            measured[shape] = _fit_cost(stage) if isinstance(stage, FitStage) else _training_cost(stage, size, device)
        flops += measured[shape][0] * stage.steps
        seconds += measured[shape][1] * stage.steps
    return Cost(flops, seconds)


def _shape(stage: AnyStage) -> object:
    if isinstance(stage, FitStage):
        return dataclasses.replace(stage.trial, seed=0)
    return stage.architecture, stage.trial.training.batch_size


def _fit_cost(stage: FitStage) -> tuple[float, float]:
    """FLOPs and seconds of a step."""

    def run(steps: int) -> float:
        started = time.perf_counter()
        descend(dataclasses.replace(stage.trial, fit_steps=steps))
        return time.perf_counter() - started

    with one_thread():
        with FlopCounterMode(display=False) as counter:
            run(1)
        return float(counter.get_total_flops()), max(0.0, run(1 + _TIMED_FIT_STEPS) - run(1)) / _TIMED_FIT_STEPS


def _training_cost(stage: Stage, pack_size: int, device: torch.device) -> tuple[float, float]:
    """FLOPs and seconds of a member's step in a pack."""
    with one_thread():
        return _step_flops(stage), step_seconds(stage, [pack_size], device)[0] / pack_size


def _step_flops(stage: Stage) -> float:
    m, size = stage.trial.model, stage.trial.training.batch_size
    with torch.device("meta"):
        model = blank_model(stage)
        images = torch.zeros(size, m.in_channels, m.image_size, m.image_size)
        labels = torch.zeros(size, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(images), labels).backward()
    return float(counter.get_total_flops())
