"""A worker that was forked from the warm process: it trains packs that the driver sends."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from cvit.engine.execution.faults import Fault, fault_of_exception
from cvit.engine.execution.queue import named
from cvit.engine.execution.shared import Layout, attach
from cvit.engine.execution.steps import Bench, Step, Steps
from cvit.engine.own_process import set_title
from cvit.provenance import announce_code_version

_OOM_SCORE = 500
"""If memory runs out, the system rather ends a process with so many points than one with none, such as the driver."""


@dataclass(frozen=True)
class Settings:
    """The facts that a worker has to know beside its packs.

    Attributes:
        storage: the URL of the sweep's storage.
        code: hash and version of the source, as the driver found them out.
    """

    sweep: str
    storage: str
    device: str
    threads: int
    may_be_stopped: bool
    code: tuple[str, str]


GPUS_OF_PROCESS = "CUDA_VISIBLE_DEVICES"


def work(connection: Connection, files: Sequence[int], settings: Settings, gpu: str, data: Layout) -> None:
    """Trains packs until the connection ends. It sends each step, and takes the next if the answer is True, so that it
    stands still while the driver sleeps. After a fault it ends: what an error leaves behind harms no other pack.

    Args:
        gpu: the GPU that it has, by the name that CUDA_VISIBLE_DEVICES has for it; empty on a CPU.
    """
    import torch  # the warm process has it already; the driver, which imports this module too, need not

    if gpu:
        os.environ[GPUS_OF_PROCESS] = gpu
    _prefer_to_be_killed()
    torch.set_num_threads(settings.threads)
    announce_code_version(*settings.code)
    bench = Bench(attach(data, files[0]), settings.storage, settings.device, settings.may_be_stopped)
    steps = Steps()
    while True:
        pack = connection.recv()
        set_title("cvit worker", f"cvit worker {settings.sweep}: {pack[0].phase} {named(pack)}")
        steps.take(bench.train(pack))
        goes_on = True
        while goes_on:
            step = _next(steps)
            connection.send(step)
            if isinstance(step, Fault):
                return
            goes_on = step.reports is not None and connection.recv()


def _next(steps: Steps) -> Step | Fault:
    try:
        return steps.next()
    # Any exception of the training concerns this pack alone; the sweep continues with the others.
    except Exception as error:  # noqa: BLE001
        return fault_of_exception(error)


def _prefer_to_be_killed() -> None:
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):  # another system
        score.write_text(str(max(_OOM_SCORE, int(score.read_text()))))
