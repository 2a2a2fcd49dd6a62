"""The weights that the stages of a pack start from, made side by side and each once."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from cvit.cores import usable_cores
from cvit.init.registry import initial_model
from cvit.stages import TrainingStage

Start = tuple[dict[str, Tensor], dict[str, float]]
"""Weights by parameter name, not to be changed, and metrics measured on the way."""

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(function: Callable[[T], R], items: Iterable[T], device: torch.device) -> list[R]:
    """The function of each item, in their order; its first exception.

    Beside a GPU most cores are idle, while a pack of 30 models of ViT size would take a minute to draw. On a CPU the
    other cores belong to other workers. Results do not depend on it: each thread has as many threads of torch as the
    caller.
    """
    if device.type == "cpu":
        return [function(item) for item in items]
    with ThreadPoolExecutor(usable_cores(), "start", torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        return list(pool.map(function, items))


def first_starts(stages: Iterable[TrainingStage], device: torch.device) -> dict[TrainingStage, Start]:
    """The starts of stages without a parent. Stages that differ in data and training alone share theirs."""
    kinds = {stage: (stage.phase, stage.trial.model, stage.trial.init, stage.trial.seed) for stage in stages}
    examples = {kind: stage for stage, kind in kinds.items()}
    made = side_by_side(_first_start, examples.values(), device)
    start_of = dict(zip(examples, made, strict=True))
    return {stage: start_of[kind] for stage, kind in kinds.items()}


def _first_start(stage: TrainingStage) -> Start:
    model, measured = initial_model(stage, None)
    return model.state_dict(), measured
