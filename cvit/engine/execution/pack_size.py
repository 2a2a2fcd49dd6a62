"""The size of packs, measured: the smallest with which a worker trains about as fast as it can."""

import contextlib
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cvit
from cvit.engine.execution.faults import TrainingError, fault_of_trial
from cvit.engine.execution.warm import WarmProcess
from cvit.engine.execution.workers import Workers
from cvit.stages import Stage
from cvit.tasks import task_named

ROOT = Path(cvit.__file__).parents[1]
LARGEST_PACK = {"cuda": 64, "cpu": 4}
"""The largest pack tried. On a CPU larger packs gain nothing or lose (docs/PERFORMANCE.md), and small ones keep the
workers busy to the end."""
SIZES_ON_A_GPU = (4, 8, 16, 32, 64)
"""The sizes that are timed on a GPU, up to the largest that the sweep can use and the memory holds: few, since each of
them captures a graph. An H100 trained a model of width 96 as fast as it can from 16 members on."""
LEAST_GAIN = 1.03
"""A larger pack is chosen only if it is faster per member by this factor: with larger packs, more workers wait for the
last one at the end of a sweep, and more steps are lost with a worker."""
MEASURING_S = 20.0
"""On a CPU, the time after which no other kind of step is measured: it gets the smallest size of those before."""
MEASURED_FROM_S = 60.0
"""On CPUs, a sweep that trains for less takes the largest packs unmeasured: they are the best for small models, or lose
a few percent, and to measure them this process would have to import torch, which takes longer than that."""
MEMORY_SHARE = 0.85
"""Share of a GPU's free memory that packs may use; the rest is for fragmentation and for what a probe cannot see."""

Limits = dict[Any, int]
"""The largest number of stages in a pack, by their shape; 1 for a shape that is not named."""


def pack_limits(
    stages: Sequence[Stage],
    workers: Workers,
    max_pack: int | None,
    warm: WarmProcess | None = None,
    work_s: float = math.inf,
) -> Limits:
    """The limits for the given stages, measured on a worker's device, once for each kind of training step, if that is
    worth it.

    Args:
        max_pack: the limit for all stages, which are then not measured.
        warm: the process from which the workers are forked; then one of them measures, and this process needs no torch.
        work_s: the seconds that the workers are expected to train.

    Raises:
        TrainingError: a worker of the cluster, or the process that asks the GPU, could not measure them.
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
    if not is_worth_measuring(workers, work_s):
        sizes = [most for _, most in asked]
    elif warm is not None:
        try:
            sizes = warm.call(fitting_packs, asked, workers)
        except TrainingError as error:
            raise _not_measured(str(error)) from error
    elif workers.is_here:
        sizes = (_in_another_process if workers.device == "cuda" else fitting_packs)(asked, workers)
    else:
        import ray  # in-process training needs no Ray
        from ray.exceptions import RayError

        resources = {"num_cpus": workers.resources["CPU"], "num_gpus": workers.resources.get("GPU", 0)}
        try:
            sizes = ray.get(ray.remote(fitting_packs).options(**resources).remote(asked, workers))
        except RayError as error:
            raise _not_measured(fault_of_trial(error, str(error)).line) from error
    size_of = {stage.cost_kind: size for (stage, _), size in zip(asked, sizes, strict=True)}
    return {shape: size_of.get(stage.cost_kind, 1) for shape, stage in shapes.items()}


def is_worth_measuring(workers: Workers, work_s: float) -> bool:
    """True if measuring pack sizes is worth its time, for workers that train for so many seconds."""
    return workers.device != "cpu" or work_s >= MEASURED_FROM_S


def _in_another_process(asked: Sequence[tuple[Stage, int]], workers: Workers) -> list[int]:
    """The sizes of `fitting_packs`. A process that has used a GPU keeps 2 GB of it as long as it lives, and this one
    lives as long as the sweep."""
    ours, theirs = Pipe()
    program = [sys.executable, "-m", "cvit.engine.execution.pack_size", str(theirs.fileno())]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    process = subprocess.Popen(
        program, pass_fds=[theirs.fileno()], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with ours, process:
        theirs.close()
        with contextlib.suppress(OSError):  # it has died already, as its exit code says
            ours.send((list(asked), workers))
        output, errors = process.communicate()
    if process.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
        raise _not_measured(lines[-1])
    return [int(size) for size in output.splitlines()[-1].split()]


def _not_measured(reason: str) -> TrainingError:
    return TrainingError(f"the size of packs could not be measured ({reason}); --max-pack sets it")


def fitting_packs(asked: Sequence[tuple[Stage, int]], workers: Workers) -> list[int]:
    """The best pack size on this machine's device, for each (stage, largest size that the sweep can use)."""
    if workers.device == "cuda":
        return [_fitting_the_gpu(stage, most, workers.per_device) for stage, most in asked]
    from cvit.training.probe import threads

    started = time.monotonic()
    sizes: list[int] = []
    with threads(workers.threads):
        for stage, most in asked:
            if sizes and time.monotonic() - started > MEASURING_S:
                sizes.append(min(most, *sizes))
            else:
                sizes.append(_fitting_the_cache(stage, most))
    return sizes


def _fitting_the_cache(stage: Stage, most: int) -> int:
    """The best size on a CPU, where a worker has few threads: a larger pack starts fewer operations per member, but
    outgrows the cache earlier."""
    import torch

    sizes = sorted({most, *(2**i for i in range(most.bit_length()))})
    return _smallest_fast(sizes, task_named(stage.task).step_seconds(stage, sizes, torch.device("cpu")))


def _fitting_the_gpu(stage: Stage, most: int, workers_per_device: int) -> int:
    """The best size on a GPU: larger packs fill it better until it is full, or its memory is."""
    import torch

    task, cuda = task_named(stage.task), torch.device("cuda")
    most = min(most, _fitting_the_memory(stage, workers_per_device))
    sizes = sorted({most, *(size for size in SIZES_ON_A_GPU if size < most)})
    if len(sizes) == 1:
        return most
    try:
        return _smallest_fast(sizes, task.step_seconds(stage, sizes, cuda))
    except torch.OutOfMemoryError:
        return sizes[0]


def _smallest_fast(sizes: Sequence[int], seconds: Sequence[float]) -> int:
    """The smallest size whose time of a step and member is close to the best; 1 if steps are too large to be timed."""
    if math.isnan(seconds[0]):
        return 1
    of_member = {size: of_pack / size for size, of_pack in zip(sizes, seconds, strict=True)}
    return next(size for size in sizes if of_member[size] < LEAST_GAIN * min(of_member.values()))


def _fitting_the_memory(stage: Stage, workers_per_device: int) -> int:
    """The largest size for which a GPU has room. Every further member needs as much as the second one.

    If a pack proves too large after all, the worker halves it (`cvit.training.loop.train_pack`).
    """
    import torch

    peak_bytes = task_named(stage.task).peak_bytes
    if peak_bytes is None:
        return 1
    cuda = torch.device("cuda")
    room = MEMORY_SHARE * torch.cuda.mem_get_info(cuda)[0] / workers_per_device
    try:
        one, two = (peak_bytes(stage, members, cuda) for members in (1, 2))
    except torch.OutOfMemoryError:
        return 1
    return max(1, int(1 + (room - one) / max(1, two - one)))


if __name__ == "__main__":
    print(*fitting_packs(*Connection(int(sys.argv[1])).recv()))
