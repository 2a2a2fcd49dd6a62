"""How many stages are trained together: as many as pay, and as the device has room for. Measured, not believed."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from cvit.stages import Stage
from cvit.tasks import task_named
from cvit.training.probe import one_thread
from sweeps.engine.execution.workers import Workers

LARGEST_PACK = {"cuda": 64, "cpu": 4}
"""On a CPU larger ones gain nothing or lose (docs/PERFORMANCE.md), and small ones keep the workers busy to the end."""
LEAST_GAIN = 1.03
"""How much faster per member a larger pack must be on a CPU to be worth it: at the end of a sweep, more cores wait for
the last one."""
MEMORY_SHARE = 0.85
"""Of a GPU's free memory; the rest is for fragmentation and for what a probe cannot see."""

Limits = dict[Any, int]
"""Stages in a pack at most, by their shape; 1 where a shape is not named."""


def pack_limits(stages: Sequence[Stage], workers: Workers, max_pack: int | None) -> Limits:
    """The limits for stages that are to be trained; measured on a worker's device, once for each kind of training step.

    Args:
        max_pack: taken instead of measuring.
    """
    shapes = {stage.shape: stage for stage in stages}
    if max_pack is not None:
        return dict.fromkeys(shapes, max_pack)
    counts = Counter(stage.shape for stage in stages)
    kinds: dict[Any, tuple[Stage, int]] = {}
    for shape, stage in shapes.items():
        share = min(LARGEST_PACK[workers.device], -(-counts[shape] // workers.count))
        kinds[stage.cost_kind] = stage, max(share, kinds.get(stage.cost_kind, (stage, 1))[1])
    asked = [(stage, most) for stage, most in kinds.values() if most > 1]
    if not asked:
        return {}
    arguments = asked, workers.device, workers.per_device
    if workers.is_here:
        sizes = fitting_packs(*arguments)
    else:
        import ray  # training without it does without its start, too

        num_gpus = workers.resources.get("gpu", 0)
        sizes = ray.get(ray.remote(fitting_packs).options(num_cpus=1, num_gpus=num_gpus).remote(*arguments))
    size_of = {stage.cost_kind: size for (stage, _), size in zip(asked, sizes, strict=True)}
    return {shape: size_of.get(stage.cost_kind, 1) for shape, stage in shapes.items()}


def fitting_packs(asked: Sequence[tuple[Stage, int]], device: str, workers_per_device: int) -> list[int]:
    """For each (stage, largest size of use), the best size of a pack of such stages on this machine's device."""
    if device == "cuda":
        return [_fitting_the_memory(stage, most, workers_per_device) for stage, most in asked]
    with one_thread():
        return [_fitting_the_cache(stage, most) for stage, most in asked]


def _fitting_the_cache(stage: Stage, most: int) -> int:
    """On a CPU a worker is one thread: a larger pack has fewer operations to start, and outgrows the cache earlier."""
    sizes = sorted({most, *(2**i for i in range(most.bit_length()))})
    seconds = task_named(stage.task).step_seconds(stage, sizes, torch.device("cpu"))
    of_member = {size: of_pack / size for size, of_pack in zip(sizes, seconds, strict=True)}
    return next(size for size in sizes if of_member[size] < LEAST_GAIN * min(of_member.values()))


def _fitting_the_memory(stage: Stage, most: int, workers_per_device: int) -> int:
    """On a GPU larger packs are never slower, so memory alone decides: the second member's need is every further one's.

    Where a pack proves too large after all, the worker halves it (`cvit.training.loop.train_pack`).
    """
    peak_bytes = task_named(stage.task).peak_bytes
    if peak_bytes is None:
        return 1
    cuda = torch.device("cuda")
    room = MEMORY_SHARE * torch.cuda.mem_get_info(cuda)[0] / workers_per_device
    try:
        one, two = (peak_bytes(stage, members, cuda) for members in (1, 2))
    except torch.OutOfMemoryError:
        return 1
    return max(1, min(most, int(1 + (room - one) / max(1, two - one))))
