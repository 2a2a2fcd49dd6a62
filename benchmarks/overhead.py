"""Measures the cost of a trial beside its training: seconds per trial of trials that do next to nothing.

python benchmarks/overhead.py
python benchmarks/overhead.py --trials 10 100 --repeats 3 --json overhead.json

Arms, each a process from start to exit with a storage and an MLflow store of its own:

engine       python sweeps/head_count.py --part expressivity, with the smallest possible fit: a layer of one head and
             one channel on four pixels, one step. Everything around it is as in any sweep: searcher, workers, a stage's
             weights and result written and flushed, journal, SQLite store of MLflow, closing table
tune         Ray Tune with reused actors and nothing else, a class trainable that ends at its first step
tune_mlflow  the same with Ray's own MLflow callback and a SQLite store

`work` runs the same fits, saved as the engine saves them, one after another in a bare loop. Starting Ray and closing
MLflow is paid once, so the marginal cost counts, between the smallest and the largest number of trials.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from cyclopts import Parameter

from benchmarks import common
from benchmarks.common import ROOT
from benchmarks.processes import QUIET, observe
from cvit.fits import ExpressivityConfig, FitStage
from cvit.parameters import ConfigError
from cvit.storage import Storage
from cvit.training.fit import fit
from cvit.vocabulary import STAGES_FOLDER

SMALLEST: dict[str, Any] = {
    "kernel_size": 1,
    "patch_size": 1,
    "num_heads": 1,
    "fit_steps": 1,
    "fit_image_size": 2,
    "fit_channels": 1,
}
OURS, TUNE, TUNE_MLFLOW, WORK = "engine", "tune", "tune_mlflow", "work"

app = common.new_app()


@app.default
def overhead(
    *,
    trials: Annotated[tuple[int, ...], Parameter(consume_multiple=True, help="Numbers of trials, ascending.")] = (
        10,
        100,
        1000,
    ),
    repeats: common.Repeats = 1,
    json: common.Json = None,
) -> None:
    """Seconds per trial of trials that do next to nothing: the engine against plain Ray Tune with reused actors."""
    common.check(json, repeats=repeats, trials=min(trials, default=0))
    if len(trials) < 2 or list(trials) != sorted(set(trials)):
        raise ConfigError(f"trials {' '.join(map(str, trials))} must be two or more different numbers, ascending")
    before = common.machine()
    _work(1)  # torch's first steps take seconds
    kinds: dict[str, Callable[[int], float]] = {OURS: _engine, TUNE: _tune, TUNE_MLFLOW: _tune_mlflow, WORK: _work}
    arms = {f"{arm} {count}": partial(run, count) for count in trials for arm, run in kinds.items()}
    seconds = common.interleaved(arms, repeats)
    figures: dict[str, Any] = {arm: _figures({n: seconds[f"{arm} {n}"] for n in trials}) for arm in kinds}
    ratios = {
        f"ratio_vs_{arm}": figures[arm]["marginal_seconds_per_trial"] / figures[OURS]["marginal_seconds_per_trial"]
        for arm in (TUNE, TUNE_MLFLOW)
    }
    _show(figures, trials, repeats)
    common.write_json(json, "overhead", before, {"n": repeats, "trials": list(trials), "arms": figures, **ratios})


def _engine(count: int) -> float:
    options = [part for name, value in SMALLEST.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    with tempfile.TemporaryDirectory(prefix="cvit-bench-", ignore_cleanup_errors=True) as folder:
        places = ["--storage", f"{folder}/storage", "--tracking-uri", f"sqlite:///{folder}/mlflow.db"]
        script = [sys.executable, str(ROOT / "sweeps/head_count.py"), "--part", "expressivity"]
        seconds = observe([*script, *options, "--seeds", str(count), *places], Path(folder), QUIET).seconds
        done = len(Storage.open(f"{folder}/storage").names(STAGES_FOLDER))
    if done != count:
        raise RuntimeError(f"the engine finished {done} of {count} trials")
    return seconds


def _tune(count: int, *options: str) -> float:
    with tempfile.TemporaryDirectory(prefix="cvit-bench-", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, str(ROOT / "benchmarks/arms/noop.py"), str(count), *options]
        return observe(command, Path(folder), QUIET).seconds


def _tune_mlflow(count: int) -> float:
    with tempfile.TemporaryDirectory(prefix="cvit-bench-", ignore_cleanup_errors=True) as folder:
        return _tune(count, f"sqlite:///{folder}/mlflow.db")


def _work(count: int) -> float:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="cvit-bench-") as folder:
        storage = Storage.open(folder)
        started = time.perf_counter()
        for seed in range(count):
            for _ in fit(FitStage(ExpressivityConfig(**SMALLEST, seed=seed)), storage):
                pass
        return time.perf_counter() - started


def _figures(seconds: dict[int, list[float]]) -> dict[str, Any]:
    """Returns the seconds of every number of trials, and the marginal seconds per trial, over all and in between."""
    by_count = {count: common.figure(values) for count, values in seconds.items()}

    def marginal(few: int, many: int) -> float:
        return (by_count[many]["median"] - by_count[few]["median"]) / (many - few)

    counts = list(by_count)
    return {
        "seconds": {str(count): measured for count, measured in by_count.items()},
        "marginal_seconds_per_trial": marginal(counts[0], counts[-1]),
        "marginal_between": {f"{few}-{many}": marginal(few, many) for few, many in pairwise(counts)},
    }


def _show(figures: dict[str, Any], trials: Sequence[int], repeats: int) -> None:
    rows = [
        [
            arm,
            *(common.with_spread(measured) for measured in of_arm["seconds"].values()),
            *(f"{1000 * value:.1f}" for value in of_arm["marginal_between"].values()),
        ]
        for arm, of_arm in figures.items()
    ]
    columns = ["arm", *(f"s, {n:,} trials" for n in trials), *(f"ms a trial, {a:,}–{b:,}" for a, b in pairwise(trials))]
    common.show(f"No-op trials; median of n = {repeats}", columns, rows)


if __name__ == "__main__":
    common.run_app(app)
