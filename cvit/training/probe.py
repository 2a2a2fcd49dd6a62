"""Probes of a pack on a device: the time of its steps and the memory that it needs."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cvit.init.registry import blank_model
from cvit.stages import TrainingStage
from cvit.training.batches import LabelledImages, PackData
from cvit.training.pack import EVALUATION_BATCH_SIZE, TrainingPack

_STEPS = 3


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limits torch to one thread, like a worker on a CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def step_seconds(stage: TrainingStage, sizes: Sequence[int], device: torch.device) -> list[float]:
    """Seconds of an optimiser step for packs of each size, without evaluation; the best of a few measurements.

    The sizes take turns, so that a short disturbance of the device affects all of them.
    """
    packs = [_pack(stage, members, device) for members in sizes]
    for pack in packs:
        pack.train(0)
    turns = [[pack.train(step).seconds for pack in packs] for step in range(1, 1 + _STEPS)]
    return [min(of_size) for of_size in zip(*turns, strict=True)]


def step_flops(stage: TrainingStage) -> float:
    """Floating-point operations of the matrix products of one optimiser step, forward and backward."""
    config, size = stage.trial.model, stage.trial.training.batch_size
    with torch.device("meta"):
        model = blank_model(stage)
        images = torch.zeros(size, config.in_channels, *config.shape)
        labels = torch.zeros(size, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(images), labels).backward()
    return float(counter.get_total_flops())


def peak_bytes(stage: TrainingStage, members: int, device: torch.device) -> int:
    """The memory of a pack on a CUDA device: for training, which a CUDA graph does not share, and for evaluation beside
    it."""
    pack = _pack(stage, members, device)
    images = _images(stage, EVALUATION_BATCH_SIZE, device)
    return sum(_reserved(use, device) for use in (lambda: pack.train(0), lambda: pack.evaluate(images)))


def _reserved(use: Callable[[], object], device: torch.device) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    use()
    return torch.cuda.max_memory_reserved(device)


def _pack(stage: TrainingStage, members: int, device: torch.device) -> TrainingPack:
    """A pack on black images, whose next evaluation is always one step away."""
    stage = replace(stage, steps=1 + _STEPS, first_step=0, evaluation_interval=1)
    model = stage.trial.model
    images = _images(stage, stage.trial.training.batch_size, device)
    subset = torch.arange(len(images))
    channels = torch.ones(members, model.in_channels, device=device)
    data = PackData(images, (subset,) * members, images, images, mean=0 * channels, std=channels)
    state = dict(blank_model(stage).named_parameters())
    return TrainingPack([stage] * members, data, [state] * members, device)


def _images(stage: TrainingStage, count: int, device: torch.device) -> LabelledImages:
    model = stage.trial.model
    shape = (count, model.in_channels, *model.shape)
    labels = torch.zeros(count, dtype=torch.int64, device=device)
    return LabelledImages(torch.zeros(shape, dtype=torch.uint8, device=device), labels)
