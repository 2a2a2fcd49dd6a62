"""This arm of throughput.py, not meant to be run by hand, walks the grid without Ray and without MLflow.

There is one process per core, each with one thread (on a GPU, GPU_PROCESSES of them), and each trains trial after trial
as `--address local` does, but one stage at a time. It is the best that one could do by hand without packs.

python benchmarks/arms/loop.py [options of sweeps/low_data.py]
"""

import multiprocessing
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.arms.grid import planned
from benchmarks.common import available_cores, chosen_device
from cvit.data.datasets import Dataset, load
from cvit.engine.execution.in_process import train_stages
from cvit.engine.execution.queue import StagePack
from cvit.engine.execution.site import Site
from cvit.engine.execution.timing import Timing
from cvit.engine.execution.workers import this_process
from cvit.engine.planning.progress import Progress
from cvit.engine.recording.journal import Journal
from cvit.results import Report
from cvit.storage import Storage

GPU_PROCESSES = 4


class _Process:
    """A process of the pool keeps these from one trial to the next."""

    progress: Progress
    journal: Journal
    site: Site


class _Silent:
    """This follower of the training says nothing."""

    def started(self, name: str, pack: StagePack) -> None:
        """Says nothing."""

    def waiting(self, line: str) -> None:
        """Says nothing."""

    def reported(self, name: str, key: str, report: Report) -> None:
        """Says nothing."""

    def ended(self, name: str, lines: Iterable[str] = ()) -> None:
        """Says nothing."""

    def noticed(self, line: str) -> None:
        """Says nothing."""


def _set_up(options: list[str], dataset: Dataset) -> None:
    _Process.progress, _, request = planned(options)
    storage, workers = Storage.open(request.storage), this_process(request.device)
    _Process.journal = Journal(storage, _Process.progress.plan.study.sweep)
    _Process.site = Site(dataset, storage, workers, limits={}, timing=Timing(time.monotonic()))


def _train(number: int) -> None:
    plan = _Process.progress.plan
    of_trial = Progress(replace(plan, trials=(plan.trials[number],)), results={})
    train_stages(of_trial, _Process.journal, _Silent(), _Process.site)


def main(options: list[str]) -> None:
    """Runs the grid that the sweep's options describe; results go to the storage that they name."""
    progress, info, request = planned(options)
    device = chosen_device(request.device)
    # A forked process has torch at once; one that uses a GPU must not be forked.
    how = multiprocessing.get_context("spawn" if device.type == "cuda" else "fork")
    processes = GPU_PROCESSES if device.type == "cuda" else available_cores()
    with ProcessPoolExecutor(processes, how, _set_up, (options, load(info))) as pool:
        for _ in pool.map(_train, range(len(progress.plan.trials))):
            pass


if __name__ == "__main__":
    main(sys.argv[1:])
