"""An arm of throughput.py, not meant to be run by hand: the grid by our training code and nothing else.

Without Ray and without MLflow: one process per core, each with one thread (on a GPU, GPU_PROCESSES of them), and in
each a loop over trials. It is the best that one could do by hand with training of one stage at a time.

python benchmarks/arms/loop.py [options of sweeps/low_data.py]
"""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from benchmarks.arms.grid import planned
from benchmarks.common import available_cores, chosen_device
from cvit.data.datasets import Dataset, load
from cvit.stages import TrainingStage
from cvit.storage import Storage
from cvit.training.loop import train_pack

GPU_PROCESSES = 4


class _Process:
    """What a process of the pool keeps from one trial to the next."""

    dataset: Dataset
    storage: Storage
    device: torch.device


def _set_up(dataset: Dataset, storage_url: str, device: torch.device) -> None:
    torch.set_num_threads(1)
    _Process.dataset, _Process.storage, _Process.device = dataset, Storage.open(storage_url), device


def _train(stages: tuple[TrainingStage, ...]) -> None:
    for stage in stages:
        for _ in train_pack([stage], _Process.dataset, _Process.storage, _Process.device):
            pass


def main(options: list[str]) -> None:
    """Runs the grid that the sweep's options describe; results go to the storage that they name."""
    plan, info, request = planned(options)
    device = chosen_device(request.device)
    trials = [tuple(stage for stage in trial.stages if isinstance(stage, TrainingStage)) for trial in plan.trials]
    # A forked process has torch at once; one that uses a GPU must not be forked.
    how = multiprocessing.get_context("spawn" if device.type == "cuda" else "fork")
    processes = GPU_PROCESSES if device.type == "cuda" else available_cores()
    with ProcessPoolExecutor(processes, how, _set_up, (load(info), request.storage, device)) as pool:
        for _ in pool.map(_train, trials):
            pass


if __name__ == "__main__":
    main(sys.argv[1:])
