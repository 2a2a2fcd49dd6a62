"""This arm of throughput.py, not meant to be run by hand, runs the grid the way it is usually done with Ray.

One Ray Tune function trial per configuration, trained as benchmarks/arms/plain_training.py does; Ray's own MLflow
callback; everything else as Tune has it.

python benchmarks/arms/plain.py GPU_SHARE [options of sweeps/low_data.py]
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback

from benchmarks.arms.grid import planned
from benchmarks.arms.plain_training import Place, place_of_each, train_one
from benchmarks.common import available_cores
from cvit.data.datasets import Dataset, load
from cvit.vocabulary import TEST_ACCURACY

Trainable = Callable[[dict[str, Any], Dataset, Place], None]


def train_trial(config: dict[str, Any], dataset: Dataset, place: Place) -> None:
    """Tune's function trainable."""
    tune.report({TEST_ACCURACY: train_one(config["trial"], dataset, place, tune.report)})


def main(train: Trainable, gpu_share: float, options: list[str]) -> None:
    """Runs the grid that the sweep's options describe, each trial by a function trainable."""
    progress, info, request = planned(options)
    plan = progress.plan
    at_once = int(1 / gpu_share) if gpu_share else available_cores()
    place = place_of_each("cuda" if gpu_share else "cpu", at_once)
    trainable = tune.with_parameters(train, dataset=load(info), place=place)
    with tempfile.TemporaryDirectory(prefix="cvit-plain-", ignore_cleanup_errors=True) as folder:
        results = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1, "gpu": gpu_share}),
            param_space={"trial": tune.grid_search([dict(trial.params) for trial in plan.trials])},
            run_config=tune.RunConfig(
                storage_path=folder,
                callbacks=[MLflowLoggerCallback(tracking_uri=request.tracking_uri, experiment_name=plan.study.sweep)],
            ),
        ).fit()
    sys.exit(1 if results.num_errors else 0)


if __name__ == "__main__":
    main(train_trial, float(sys.argv[1]), sys.argv[2:])
