"""What a plan will cost: floating-point operations counted, time measured on a few steps."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cvit.init.registry import blank_model
from cvit.stages import AnyStage, FitStage, Stage
from cvit.theorem.expressivity import descend
from cvit.training.optimizer import adamw

_TIMED_STEPS = 3
_TIMED_FIT_STEPS = 20
_LONGEST_TIMING_S = 3.0


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of training, and seconds on one worker of this machine."""

    flops: float
    worker_seconds: float


def estimate(stages: list[AnyStage], device: torch.device) -> Cost:
    """Counts the matrix operations of one step of every shape, forward and backward, and times a few such steps.

    Evaluation and data preparation are left out.
    """
    flops, seconds = 0.0, 0.0
    measured: dict[object, tuple[float, float]] = {}
    for stage in stages:
        shape = _shape(stage)
        if shape not in measured:
            measured[shape] = _fit_cost(stage) if isinstance(stage, FitStage) else _training_cost(stage, device)
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

    with _one_thread():
        with FlopCounterMode(display=False) as counter:
            run(1)
        return float(counter.get_total_flops()), max(0.0, run(1 + _TIMED_FIT_STEPS) - run(1)) / _TIMED_FIT_STEPS


def _training_cost(stage: Stage, device: torch.device) -> tuple[float, float]:
    return _step_flops(stage), _step_seconds(stage, device)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """As many as a worker on a CPU has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _batch(stage: Stage, device: str | torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    m, size = stage.trial.model, stage.trial.training.batch_size
    images = torch.zeros(size, m.in_channels, m.image_size, m.image_size, device=device)
    return images, torch.zeros(size, dtype=torch.int64, device=device)


def _step_flops(stage: Stage) -> float:
    with torch.device("meta"):
        model = blank_model(stage)
    images, labels = _batch(stage, "meta")
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(images), labels).backward()
    return float(counter.get_total_flops())


def _step_seconds(stage: Stage, device: torch.device) -> float:
    with _one_thread():
        model = blank_model(stage).to(device)
        optimizer = adamw(model, stage.trial.training)
        images, labels = _batch(stage, device)
        times = []
        while len(times) <= _TIMED_STEPS and sum(times) < _LONGEST_TIMING_S:
            started = time.perf_counter()
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return min(times)
