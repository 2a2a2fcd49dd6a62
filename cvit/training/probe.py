"""Probes of a pack on a device: the time of its steps and the memory that it needs."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean

import torch
from torch.nn import functional as F

from cvit.config import TrialConfig
from cvit.init.registry import blank_model
from cvit.models.twin import twin_reading
from cvit.stages import TrainingStage
from cvit.training.batches import LabelledImages, PackData
from cvit.training.pack import EVALUATION_BATCH_SIZE, TrainingPack

_STEPS = 3
"""The number of measurements of a step's time; the best counts."""
_STEPS_ON_A_GPU = 5
"""The number of steps of a measurement on a GPU, replayed without waiting for any but the last."""
_MANY_STEPS = 200
"""Enough steps for a graph to be captured, and too few to be compiled."""
SLOW_STEP_S = 0.3
"""From here on, a step on a CPU is not timed again in larger packs: starting its operations takes no time beside it."""
MOST_OPERATIONS = 2e10
"""The most operations of a step that is timed on a CPU, about; larger steps are timed with fewer images and blocks."""
_DEEPEST = 24
"""The most blocks that are built to count or time a step; the blocks beyond cost as much each."""
_OPERATIONS_OF_A_WEIGHT = 50
"""An attention weight takes the time of so many multiplications: softmax and bias are bound by memory."""
_BYTES_PER_PARAMETER = 16
"""Weight, gradient and two moments of a parameter, float32."""


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Limits torch to so many threads, like a worker on a CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def step_seconds(stage: TrainingStage, sizes: Sequence[int], device: torch.device) -> list[float]:
    """Seconds of an optimiser step for packs of each size, without evaluation; the best of a few measurements. Where
    steps of two kinds take turns, it is their mean.

    On a CPU the sizes take turns, so that a short disturbance affects all of them; a step that takes long is timed once
    or twice, if need be with fewer images and blocks, and the rest is extrapolated. NaN where even that is too large
    for this machine. On a GPU steps are those of a captured graph, and one pack is there at a time.
    """
    if device.type == "cpu":
        small = _timeable(stage)
        if small is None:
            return [math.nan] * len(sizes)
        alone = _pack(small, 1, device)
        seconds = _mean_seconds(alone, 0)
        if small is not stage or seconds > SLOW_STEP_S:
            seconds = min(seconds, _mean_seconds(alone, 1))
            of_member = seconds * _operations(stage) / _operations(small)
            return [of_member * size for size in sizes]
    if device.type == "cuda":
        return [_replay_seconds(stage, members, device) for members in sizes]
    packs = [_pack(stage, members, device) for members in sizes]
    for pack in packs:
        _mean_seconds(pack, 0)
    measured = [[_mean_seconds(pack, number) for pack in packs] for number in range(1, 1 + _STEPS)]
    return [min(of_size) for of_size in zip(*measured, strict=True)]


def _replay_seconds(stage: TrainingStage, members: int, device: torch.device) -> float:
    """Seconds of a step of a pack that trains for long, draws included."""
    stretch = stage.num_readings * _STEPS_ON_A_GPU
    pack = _pack(stage, members, device, steps=_MANY_STEPS, interval=stretch)
    pack.train(0)  # captures
    seconds = min(pack.train(number * stretch).seconds for number in range(1, 1 + _STEPS)) / stretch
    del pack
    torch.cuda.empty_cache()
    return seconds


def _mean_seconds(pack: TrainingPack, number: int) -> float:
    """Mean seconds of one step of each kind, trained for the time of this number."""
    turns = pack.stages[0].num_readings
    return fmean(pack.train(number * turns + turn).seconds for turn in range(turns))


def _timeable(stage: TrainingStage) -> TrainingStage | None:
    """The stage if its steps can be timed; else a stage like it with fewer images, and then fewer blocks; None if there
    is none."""
    excess = _operations(stage) / MOST_OPERATIONS
    if excess > 1:
        stage = _resized(stage, batch_size=math.ceil(stage.trial.training.batch_size / excess))
    if _operations(stage) > 2 * MOST_OPERATIONS:
        stage = _resized(stage, depth=math.ceil(stage.trial.model.depth * MOST_OPERATIONS / _operations(stage)))
    if stage.trial.model.depth > _DEEPEST:
        stage = _resized(stage, depth=_DEEPEST)
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if _operations(stage) > 2 * MOST_OPERATIONS or _num_parameters(stage) * _BYTES_PER_PARAMETER > memory / 2:
        return None
    return stage


def _resized(stage: TrainingStage, **sizes: int) -> TrainingStage:
    """The stage with another depth or batch size. A hybrid keeps about its share of blocks with attention."""
    model = stage.trial.model
    kept: dict[str, int] = {}
    if model.attention_blocks is not None and "depth" in sizes:
        kept = {"attention_blocks": max(1, round(model.attention_blocks * sizes["depth"] / model.depth))}
    return replace(stage, trial=TrialConfig.from_flat(stage.trial.flat() | sizes | kept))


def _operations(stage: TrainingStage) -> float:
    """The order of magnitude of the operations of a step, exact in its proportion to images and blocks. Only of a
    hybrid are the blocks without attention told apart."""
    model = stage.trial.model
    tokens, inner = math.prod(model.grid), model.num_heads * model.head_dim
    attention = 2 * model.embed_dim * inner + 2 * tokens * inner + _OPERATIONS_OF_A_WEIGHT * model.num_heads * tokens
    other = 2 * model.mlp_ratio * model.embed_dim**2 + 2 * model.embed_dim * inner
    of_blocks = model.depth * other + model.num_attention_blocks * attention
    return 6.0 * stage.trial.training.batch_size * tokens * of_blocks


def _num_parameters(stage: TrainingStage) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in blank_model(stage).parameters())


def step_flops(stage: TrainingStage) -> float:
    """Floating-point operations of the matrix products of one optimiser step, forward and backward; the mean where
    steps of two kinds take turns."""
    from torch.utils.flop_counter import FlopCounterMode  # imports triton

    excess = stage.trial.model.depth - _DEEPEST
    if excess > 0:
        half, whole = (step_flops(_resized(stage, depth=depth)) for depth in (_DEEPEST // 2, _DEEPEST))
        return whole + excess * (whole - half) / (_DEEPEST - _DEEPEST // 2)
    config, size = stage.trial.model, stage.trial.training.batch_size
    with torch.device("meta"):
        model = blank_model(stage)
        images = torch.zeros(size, config.in_channels, *config.shape)
        labels = torch.zeros(size, dtype=torch.int64)
    readings = (model, twin_reading(model)) if stage.num_readings > 1 else (model,)
    with FlopCounterMode(display=False) as counter:
        for reading in readings:
            F.cross_entropy(reading(images), labels).backward()
    return counter.get_total_flops() / len(readings)


def peak_bytes(stage: TrainingStage, members: int, device: torch.device) -> int:
    """The memory of a pack on a CUDA device: for training, which a CUDA graph does not share, and for evaluation beside
    it."""
    pack = _pack(stage, members, device)
    images = _images(stage, EVALUATION_BATCH_SIZE, device)
    return sum(_reserved(use, device) for use in (lambda: _mean_seconds(pack, 0), lambda: pack.evaluate(images)))


def _reserved(use: Callable[[], object], device: torch.device) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    use()
    return torch.cuda.max_memory_reserved(device)


def _pack(
    stage: TrainingStage, members: int, device: torch.device, steps: int | None = None, interval: int = 1
) -> TrainingPack:
    """A pack on black images, whose evaluations are `interval` steps apart.

    Args:
        steps: the steps that it could train; by default those that are measured.
    """
    steps = steps or stage.num_readings * (1 + _STEPS)
    stage = replace(stage, steps=steps, first_step=0, evaluation_interval=interval)
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
    values = torch.float32 if model.is_of_sequences else torch.uint8
    return LabelledImages(torch.zeros(shape, dtype=values, device=device), labels)
