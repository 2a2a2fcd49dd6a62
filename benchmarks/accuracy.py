"""Measures what arithmetic does to accuracy: trainings by torch's operators in float32, by the fused ones in float32,
and by these with bfloat16 products, with the same seeds.

python benchmarks/accuracy.py                                        # digits, 300 steps
python benchmarks/accuracy.py --size photos --data-dir ../shared/data --seeds 5

A seed sets the subset, the initial weights and the order of the images, so arms are compared seed by seed: the mean
difference to torch in float32 and its 95 % interval, beside the spread over seeds. The difference in loss tells more:
an accuracy counts whole images. CPU seconds are those of all seeds, which one process with one thread trains as packs.
"""

import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from cyclopts import Parameter

from benchmarks import common
from cvit import native
from cvit.analysis.statistics.stats import t_interval
from cvit.config import InitSchemeName
from cvit.data.datasets import describe, load
from cvit.parameters import ConfigError
from cvit.recipes import PHOTO_TRAINING, PHOTO_VIT, SMALL_TRAINING, SMALL_VIT
from cvit.stages import TrainingStage
from cvit.storage import Storage
from cvit.tasks.training import TASK
from cvit.vocabulary import TEST_ACCURACY, VAL_LOSS

Size = Literal["digits", "photos"]
SIZES: dict[Size, dict[str, Any]] = {
    "digits": SMALL_VIT | SMALL_TRAINING | {"epochs": 0, "min_steps": 300},
    "photos": PHOTO_VIT | PHOTO_TRAINING | {"min_steps": 400, "max_test_images": 2000},
}
DATASETS: dict[Size, str] = {"digits": "digits", "photos": "cifar10"}
BASELINE = "torch, float32"
ARMS = {BASELINE: "float32", "fused, float32": "float32", "fused, bfloat16 products": "bfloat16"}
PACK_SIZE = 4

app = common.new_app()


@app.default
def accuracy(
    *,
    size: Annotated[
        Size, Parameter(help="Model and data: 8 × 8 digits, or photographs of 32 × 32 (CIFAR-10).")
    ] = "digits",
    init_scheme: Annotated[
        tuple[InitSchemeName, ...], Parameter(help="Init schemes; two_phase trains a twin too.", consume_multiple=True)
    ] = ("random", "two_phase"),
    seeds: Annotated[int, Parameter(help="Trainings of each arm and init scheme.")] = 10,
    data_dir: Annotated[str, Parameter(help="Folder of the data sets.")] = "data",
    json: common.Json = None,
) -> None:
    """Accuracies of the arms, and their differences with the same seeds."""
    common.check(json, seeds=seeds)
    if seeds < 2:
        raise ConfigError(f"seeds {seeds} must be at least 2: a difference needs an interval")
    if (problem := native.problem()) is not None:
        raise ConfigError(f"there are no fused operators to compare: {problem}")
    arms = {arm: one for arm, one in ARMS.items() if one == "float32" or native.has_half_products()}
    before = common.machine()
    torch.set_num_threads(1)
    info = describe(DATASETS[size], data_dir, download=False)
    dataset = load(info)
    defaults = {name: parameter.default for name, parameter in TASK.parameters.items()} | dict(
        TASK.defaults_of_data(info)
    )
    measured: dict[str, Any] = {}
    rows = []
    for scheme in init_scheme:
        of_arms: dict[str, dict[str, Any]] = {}
        for arm, precision in arms.items():
            flat = defaults | SIZES[size] | {"init_scheme": scheme, "precision": precision}
            trials = [TASK.stages(flat | {"seed": seed}, info)[1] for seed in range(seeds)]
            of_arms[arm] = _trained(trials, dataset, uses_torch=arm == BASELINE)
        measured[scheme] = of_arms
        rows += [_row(scheme, arm, of_arms) for arm in arms]
    title = (
        f"{size}, {SIZES[size]['min_steps']} steps, n = {seeds} seeds; differences with the same seeds, 95 % interval"
    )
    columns = ["scheme, arm", "test accuracy, %", "difference, points", "difference in loss", "CPU s"]
    common.show(title, columns, rows)
    common.write_json(json, "accuracy", before, {"size": size, "n": seeds, "schemes": measured})


def _trained(trials: list[tuple[TrainingStage, ...]], dataset: Any, uses_torch: bool) -> dict[str, Any]:
    """Accuracy on test images and loss on validation images at the end of each trial, and the seconds of all."""
    started = time.process_time()
    ends = []
    with (
        native.switched_off() if uses_torch else contextlib.nullcontext(),
        tempfile.TemporaryDirectory() as folder,
    ):
        storage = Storage.open(folder)
        for first in range(0, len(trials), PACK_SIZE):
            pack = trials[first : first + PACK_SIZE]
            results = {}
            for stages in zip(*pack, strict=True):  # phase by phase
                for reports in TASK.train(stages, dataset, storage, torch.device("cpu"), False):
                    results |= {key: report.result for key, report in reports if report.result is not None}
            ends += [{name: value for name, _, value, _ in results[trial[-1].key].points} for trial in pack]
    seconds = time.process_time() - started
    return {"accuracy": [end[TEST_ACCURACY] for end in ends], "loss": [end[VAL_LOSS] for end in ends], "cpu_s": seconds}


def _row(scheme: str, arm: str, of_arms: dict[str, dict[str, Any]]) -> list[str]:
    own, baseline = of_arms[arm], of_arms[BASELINE]
    accuracies = own["accuracy"]
    mean = f"{100 * statistics.mean(accuracies):.2f} (s = {100 * statistics.stdev(accuracies):.2f})"
    if arm == BASELINE:
        return [f"{scheme}: {arm}", mean, "", "", f"{own['cpu_s']:.0f}"]
    points, losses = (
        t_interval([factor * (one - other) for one, other in zip(own[name], baseline[name], strict=True)])
        for name, factor in (("accuracy", 100), ("loss", 1))
    )
    shown = [
        f"{each.mean:+.{digits}f} [{each.ci_low:+.{digits}f}, {each.ci_high:+.{digits}f}]"
        for each, digits in ((points, 2), (losses, 4))
    ]
    return [f"{scheme}: {arm}", mean, *shown, f"{own['cpu_s']:.0f}"]


if __name__ == "__main__":
    common.run_app(app)
