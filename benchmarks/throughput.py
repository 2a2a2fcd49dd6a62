"""Measures trials per hour: a low-data grid by the engine, against the usual ways to run it.

python benchmarks/throughput.py                                                   # digits, CPU
python benchmarks/throughput.py --dataset cifar10 --data-dir ../shared/data --device cuda --seeds 5
python benchmarks/throughput.py --repeats 3 --json throughput.json

Arms, each a process from start to exit with a storage and an MLflow store of its own:

engine      python sweeps/low_data.py
plain       one Tune function trial per configuration, a DataLoader with torchvision's transforms, float32, Ray's own
            MLflow callback; a core each, or a GPU each (benchmarks/arms/plain.py)
fractional  the same with a quarter of a GPU each; none without a GPU
loop        our training of single stages without Ray and MLflow, one process per core (benchmarks/arms/loop.py)

Options that are not listed below are those of sweeps/low_data.py and describe the grid.
"""

import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cyclopts import Parameter

from benchmarks import common
from benchmarks.arms.grid import SCRIPT, planned
from benchmarks.common import ROOT
from benchmarks.processes import OUTPUT_FILE, QUIET, Observed, observe
from cvit.config import ConfigError
from cvit.vocabulary import STATUS_OK, TEST_ACCURACY

DEFAULTS = {"--preset": ["laptop"], "--budget-unit": ["steps"]}
"""The grid without other options: that of `python sweeps/low_data.py`."""
OURS, PLAIN, FRACTIONAL, LOOP = "engine", "plain", "fractional", "loop"
GPU_SHARE = 0.25
# The engine gives its workers these; whoever writes a loop by hand may do so too.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30)}

app = common.new_app()


@dataclass(frozen=True)
class Turn:
    """The outcome of one run of one arm.

    Attributes:
        test_accuracy: mean over the trials; it must agree between the arms.
        own_account: the engine's closing lines about its time, as numbers; empty for other arms.
    """

    observed: Observed
    test_accuracy: float
    own_account: dict[str, float]


@app.default
def throughput(
    *grid: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)],
    repeats: common.Repeats = 1,
    json: common.Json = None,
) -> None:
    """Trials per hour of a low-data grid: the engine against Ray Tune, Tune with fractional GPUs and a plain loop.

    Options that are not listed here are those of sweeps/low_data.py and describe the grid: --dataset, --data-dir,
    --data-fraction, --init-scheme, --seeds, --preset, --device and so on.
    """
    common.check(json, repeats=repeats)
    options = _with_defaults(grid)
    progress, _, request = planned(options)
    plan = progress.plan
    if "--storage" in options or "--tracking-uri" in options:
        raise ConfigError("storage and tracking-uri are no options here: every turn has new ones, thrown away after it")
    device = common.chosen_device(request.device)
    before = common.machine()
    python = sys.executable
    commands = {
        OURS: [python, str(ROOT / SCRIPT)],
        PLAIN: [python, str(ROOT / "benchmarks/arms/plain.py"), "1" if device.type == "cuda" else "0"],
        LOOP: [python, str(ROOT / "benchmarks/arms/loop.py")],
    }
    if device.type == "cuda":
        commands[FRACTIONAL] = [python, str(ROOT / "benchmarks/arms/plain.py"), str(GPU_SHARE)]
    turns = common.interleaved(
        {arm: partial(_run, arm, command, options) for arm, command in commands.items()}, repeats
    )
    arms = {arm: _figures(of_arm, len(plan.trials)) for arm, of_arm in turns.items()}
    ratios = {f"ratio_vs_{arm}": _ratio(arms, arm) for arm in (PLAIN, FRACTIONAL, LOOP)}
    steps = sum(stage.steps for stage in plan.stages.values())
    grid_figures = {"options": options, "trials": len(plan.trials), "stages": len(plan.stages), "steps": steps}
    _show(arms, ratios, grid_figures, repeats)
    common.write_json(
        json, "throughput", before, {"device": device.type, "n": repeats, "grid": grid_figures, "arms": arms, **ratios}
    )


def _with_defaults(given: Sequence[str]) -> list[str]:
    names = {option.partition("=")[0] for option in given}
    added = [part for name, values in DEFAULTS.items() if name not in names for part in (name, *values)]
    return [*given, *added]


def _run(arm: str, command: Sequence[str], options: Sequence[str]) -> Turn:
    """Takes one turn of an arm, in a folder of its own.

    Raises:
        RuntimeError: it failed, or left trials out.
    """
    with tempfile.TemporaryDirectory(prefix="cvit-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        places = ["--storage", str(folder / "storage"), "--tracking-uri", f"sqlite:///{folder / 'mlflow.db'}"]
        observed = observe([*command, *options, *places], folder, QUIET | (ALLOCATOR if arm == LOOP else {}))
        progress, _, request = planned([*options, *places])
        plan = progress.plan
        found = (
            _accuracies_in_mlflow(request.tracking_uri, plan.study.sweep)
            if arm in (PLAIN, FRACTIONAL)
            else [
                value
                for trial in plan.trials
                if progress.status(trial) == STATUS_OK
                for metric, _, value, _ in progress.results[trial.stages[-1].key].points
                if metric == TEST_ACCURACY
            ]
        )
        if len(found) != len(plan.trials):
            raise RuntimeError(f"{arm} finished {len(found)} of {len(plan.trials)} trials")
        return Turn(observed, fmean(found), _own_account((folder / OUTPUT_FILE).read_text()) if arm == OURS else {})


def _own_account(output: str) -> dict[str, float]:
    """Reads the closing lines of a sweep (cvit/engine/execution/timing.py)."""
    parts = {
        "start_up_seconds": (r"start-up ([\d.]+) s", 1.0),
        "share_of_workers_time_in_training": (r"workers trained ([\d.]+) %", 0.01),
        "overhead_seconds_per_trial": (r"([\d.]+) s a trial", 1.0),
    }
    return {name: scale * float(re.findall(pattern, output)[-1]) for name, (pattern, scale) in parts.items()}


def _accuracies_in_mlflow(uri: str, experiment: str) -> list[float]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id], max_results=50_000)
    return [run.data.metrics[TEST_ACCURACY] for run in runs if TEST_ACCURACY in run.data.metrics]


def _figures(turns: Sequence[Turn], num_trials: int) -> dict[str, Any]:
    """Returns the figures of an arm; null for what could not be observed."""
    observed = [asdict(turn.observed) for turn in turns]
    figures: dict[str, Any] = {
        name: common.figure([one[name] for one in observed]) if observed[0][name] is not None else None
        for name in observed[0]
    }
    figures["trials_per_hour"] = common.figure([3600 * num_trials / turn.observed.seconds for turn in turns])
    figures["mean_test_accuracy"] = common.figure([turn.test_accuracy for turn in turns])
    figures |= {name: common.figure([turn.own_account[name] for turn in turns]) for name in turns[0].own_account}
    return figures


def _ratio(arms: dict[str, Any], other: str) -> float | None:
    """Returns the engine's median of trials per hour over the other arm's; None for an arm that lacks its GPU."""
    if other not in arms:
        return None
    return arms[OURS]["trials_per_hour"]["median"] / arms[other]["trials_per_hour"]["median"]


def _show(arms: dict[str, Any], ratios: dict[str, float | None], grid: dict[str, Any], repeats: int) -> None:
    columns = ["arm", "trials/h", "engine is", "seconds", "CPU s", "CPU", "memory", "accuracy"]
    if has_gpu := arms[OURS]["gpu_utilisation"] is not None:
        columns += ["GPU", "GPU memory"]
    rows = []
    for arm, figures in arms.items():
        ratio = ratios.get(f"ratio_vs_{arm}")
        row = [
            arm,
            common.with_spread(figures["trials_per_hour"], digits=0),
            "" if ratio is None else f"{ratio:.2f}×",
            common.with_spread(figures["seconds"]),
            common.with_spread(figures["cpu_seconds"]),
            f"{100 * figures['cpu_utilisation']['median']:.0f} %",
            f"{figures['peak_memory_bytes']['median'] / 2**30:.1f} GiB",
            f"{100 * figures['mean_test_accuracy']['median']:.1f} %",
        ]
        if has_gpu:
            row += [
                f"{100 * figures['gpu_utilisation']['median']:.0f} %",
                f"{figures['gpu_peak_memory_bytes']['median'] / 2**30:.1f} GiB",
            ]
        rows.append(row)
    title = f"{grid['trials']} trials of {grid['stages']} stages, {grid['steps']:,} steps; median of n = {repeats}"
    ours = arms[OURS]
    note = (
        f"the engine by its own account: start-up {common.with_spread(ours['start_up_seconds'])} s, workers trained "
        f"{100 * ours['share_of_workers_time_in_training']['median']:.1f} % of the time, "
        f"overhead {common.with_spread(ours['overhead_seconds_per_trial'], digits=3)} s a trial"
    )
    common.show(title, columns, rows, [note])


if __name__ == "__main__":
    common.run_app(app)
