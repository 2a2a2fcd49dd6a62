"""This arm of throughput.py, not meant to be run by hand, runs the grid with Optuna.

A GridSampler over the places of the grid, and one process per core (on a GPU, four) that calls `study.optimize` on one
storage, a journal file as Optuna advises for several processes. A trial trains as benchmarks/arms/plain_training.py
does; Optuna's storage keeps the validation accuracies and, as the value, the test accuracy. No Ray, no MLflow.

python benchmarks/arms/with_optuna.py [options of sweeps/low_data.py]
"""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from benchmarks.arms.grid import planned
from benchmarks.arms.plain_training import at_once, place_of_each, train_one
from benchmarks.common import chosen_device
from cvit.data.datasets import Dataset, load
from cvit.vocabulary import VAL_ACCURACY

JOURNAL = "optuna.log"
STUDY = "low_data"


def optimize(configs: list[dict[str, Any]], dataset: Dataset, folder: str, device: str) -> None:
    """Trains places of the grid until none is left; several processes do so at the same time."""
    place = place_of_each(device, at_once(device))

    def objective(trial: optuna.Trial) -> float:
        if trial.number >= len(configs):  # all have begun: the sampler would train one a second time
            trial.study.stop()
            raise optuna.TrialPruned
        config = configs[trial.suggest_int("number", 0, len(configs) - 1)]

        def report(figures: dict[str, float]) -> None:
            trial.report(figures[VAL_ACCURACY], step=int(figures["step"]))

        return train_one(config, dataset, place, report)

    optuna.load_study(study_name=STUDY, storage=storage_in(folder), sampler=_sampler(len(configs))).optimize(objective)


def storage_in(folder: str) -> JournalStorage:
    """Returns Optuna's storage in a folder that exists."""
    return JournalStorage(JournalFileBackend(str(Path(folder) / JOURNAL)))


def accuracies_in(folder: str) -> list[float]:
    """Returns the test accuracies of all trials that ended."""
    trials = optuna.load_study(study_name=STUDY, storage=storage_in(folder)).trials
    return [trial.value for trial in trials if trial.value is not None and trial.state.name == "COMPLETE"]


def _sampler(count: int) -> optuna.samplers.GridSampler:
    return optuna.samplers.GridSampler({"number": list(range(count))}, seed=0)


def main(options: list[str]) -> None:
    """Runs the grid that the sweep's options describe."""
    progress, info, request = planned(options)
    configs = [dict(trial.params) for trial in progress.plan.trials]
    device = chosen_device(request.device).type
    Path(request.storage).mkdir(parents=True, exist_ok=True)
    optuna.create_study(
        study_name=STUDY, storage=storage_in(request.storage), sampler=_sampler(len(configs)), direction="maximize"
    )
    dataset = load(info)
    # A forked process has torch at once; one that uses a GPU must not be forked.
    how = multiprocessing.get_context("spawn" if device == "cuda" else "fork")
    with ProcessPoolExecutor(at_once(device), how) as pool:
        processes = [pool.submit(optimize, configs, dataset, request.storage, device) for _ in range(at_once(device))]
        for process in processes:
            process.result()


if __name__ == "__main__":
    main(sys.argv[1:])
