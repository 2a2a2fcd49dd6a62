"""Measures trials per hour: a low-data grid by the engine, against what one would use instead.

python benchmarks/throughput.py                                                   # digits, CPU
python benchmarks/throughput.py --dataset cifar10 --data-dir ../shared/data --device cuda --seeds 5
python benchmarks/throughput.py --arm engine loop --repeats 3 --json throughput.json

Arms, each a process from start to exit with a storage and an MLflow store of its own:

engine      python sweeps/low_data.py
local       the same with --address local
plain       one Tune function trial per configuration, a DataLoader with torchvision's transforms, float32, Ray's own
            MLflow callback; a core each, or a GPU each (benchmarks/arms/plain.py)
fractional  the same with a quarter of a GPU each; none without a GPU
lightning   plain, with PyTorch Lightning's loop (benchmarks/arms/with_lightning.py); needs the extra `benchmarks`
optuna      the training of plain, in one process per core that shares a study over the grid
            (benchmarks/arms/with_optuna.py)
bash        the training of plain, by `xargs -P` over `python train.py` (benchmarks/arms/bash_loop.py)
loop        our training of single stages without Ray and MLflow, one process per core (benchmarks/arms/loop.py)
loop_torch  the same with torch's operators in place of those in cvit/native

Plain, fractional, lightning, optuna and bash train in float32 with torch's operators, which is what their users have.
Options that are not listed below are those of sweeps/low_data.py and describe the grid; --precision concerns our arms.
"""

import importlib.util
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
from cvit import native
from cvit.engine.execution.cost import flops_of
from cvit.engine.planning.progress import Progress
from cvit.engine.planning.request import Request
from cvit.parameters import ConfigError
from cvit.vocabulary import STATUS_OK, TEST_ACCURACY

DEFAULTS = {"--preset": ["laptop"], "--budget-unit": ["steps"]}
"""The grid without other options: that of `python sweeps/low_data.py --budget-unit steps`."""
OURS, LOCAL = "engine", "local"
BY_US = (OURS, LOCAL, "loop", "loop_torch")
"""The arms that our trainer trains."""
GPU_SHARE = 0.25
TORCH = {"CVIT_NATIVE": "0"}
"""Environment in which models are computed by torch's operators, although there are faster ones (cvit/native)."""
# The engine gives its workers these; whoever writes a loop by hand may do so too.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30)}

app = common.new_app()

Accuracies = Callable[[Progress, Request], list[float]]


@dataclass(frozen=True)
class Arm:
    """An arm is a command that takes the options of the grid.

    Attributes:
        accuracies: reads the test accuracies of all trials that ended.
        needs: a package that may be missing.
    """

    command: Sequence[str]
    accuracies: Accuracies
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: str | None = None
    needs_gpu: bool = False


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


def _in_results(progress: Progress, request: Request) -> list[float]:
    return [
        value
        for trial in progress.plan.trials
        if progress.status(trial) == STATUS_OK
        for metric, _, value, _ in progress.results[trial.stages[-1].key].points
        if metric == TEST_ACCURACY
    ]


def _in_mlflow(progress: Progress, request: Request) -> list[float]:
    from mlflow import MlflowClient

    client = MlflowClient(request.tracking_uri)
    found = client.get_experiment_by_name(progress.plan.study.sweep)
    assert found is not None
    runs = client.search_runs([found.experiment_id], max_results=50_000)
    return [run.data.metrics[TEST_ACCURACY] for run in runs if TEST_ACCURACY in run.data.metrics]


def _in_optuna(progress: Progress, request: Request) -> list[float]:
    from benchmarks.arms.with_optuna import accuracies_in

    return accuracies_in(request.storage)


def _in_files(progress: Progress, request: Request) -> list[float]:
    from benchmarks.arms.bash_loop import accuracies_in

    return accuracies_in(request.storage)


def _arms(on_gpu: bool) -> dict[str, Arm]:
    def script(name: str, *arguments: str) -> list[str]:
        return [sys.executable, str(ROOT / name), *arguments]

    whole = "1" if on_gpu else "0"
    loop = script("benchmarks/arms/loop.py")
    return {
        OURS: Arm(script(SCRIPT), _in_results),
        LOCAL: Arm(script(SCRIPT, "--address", "local"), _in_results),
        "plain": Arm(script("benchmarks/arms/plain.py", whole), _in_mlflow, TORCH),
        "fractional": Arm(script("benchmarks/arms/plain.py", str(GPU_SHARE)), _in_mlflow, TORCH, needs_gpu=True),
        "lightning": Arm(script("benchmarks/arms/with_lightning.py", whole), _in_mlflow, TORCH, needs="lightning"),
        "optuna": Arm(script("benchmarks/arms/with_optuna.py"), _in_optuna, TORCH),
        "bash": Arm(script("benchmarks/arms/bash_loop.py"), _in_files, TORCH),
        "loop": Arm(loop, _in_results, ALLOCATOR),
        "loop_torch": Arm(loop, _in_results, ALLOCATOR | TORCH),
    }


ARMS = tuple(_arms(on_gpu=False))


@app.default
def throughput(
    *grid: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)],
    arm: Annotated[tuple[str, ...], Parameter(consume_multiple=True, help=f"Of {', '.join(ARMS)}; all of them.")] = (),
    repeats: common.Repeats = 1,
    json: common.Json = None,
) -> None:
    """Trials per hour of a low-data grid: the engine against Ray Tune, Lightning on Ray, Optuna and loops by hand.

    Options that are not listed here are those of sweeps/low_data.py and describe the grid: --dataset, --data-dir,
    --data-fraction, --init-scheme, --seeds, --preset, --device and so on.
    """
    common.check(json, repeats=repeats)
    options = _with_defaults(grid)
    progress, _, request = planned(options)
    plan = progress.plan
    options = _without_auto(options, plan.trials[0].params["precision"])
    if given := {"--storage", "--tracking-uri", "--address"} & {option.partition("=")[0] for option in options}:
        raise ConfigError(f"{min(given)[2:]} is no option here: the arms have their own, new ones for every turn")
    device = common.chosen_device(request.device)
    chosen, left_out = _chosen(_arms(device.type == "cuda"), arm, device.type == "cuda")
    _require_trainable(plan.stages.values(), chosen)
    before = common.machine()
    problem = native.problem() if device.type == "cpu" else None  # compiles the operators before anything is measured
    flops = flops_of(plan.stages.values())
    limit = common.limits(flops, common.matrix_rates(device))
    turns = common.interleaved({name: partial(_run, name, one, options) for name, one in chosen.items()}, repeats)
    arms = {name: _figures(of_arm, len(plan.trials)) for name, of_arm in turns.items()}
    for figures in arms.values():
        figures["times_limit"] = {dtype: figures["seconds"]["median"] / one["seconds"] for dtype, one in limit.items()}
    ratios = {f"ratio_vs_{name}": _ratio(arms, OURS, name) for name in ARMS if name != OURS}
    ratios |= {f"local_ratio_vs_{name}": _ratio(arms, LOCAL, name) for name in ARMS if name not in (OURS, LOCAL)}
    steps = sum(stage.steps for stage in plan.stages.values())
    sizes = {"trials": len(plan.trials), "stages": len(plan.stages), "steps": steps, "flops": flops}
    content = {"device": device.type, "n": repeats, "grid": {"options": options, **sizes}, "limit": limit}
    no_operators = [] if problem is None else [f"without the fused operators: {problem}"]
    title = f"{len(plan.trials)} trials of {len(plan.stages)} stages, {steps:,} steps, {flops:.3g} operations"
    _show(f"{title}; median of n = {repeats}", arms, ratios, [*_notes(arms, content), *left_out, *no_operators])
    common.write_json(json, "throughput", before, {**content, "arms": arms, **ratios})


def _chosen(arms: dict[str, Arm], names: Sequence[str], on_gpu: bool) -> tuple[dict[str, Arm], list[str]]:
    """Returns the arms that were asked for, or all that can run here, and a line for each that cannot.

    Raises:
        ConfigError: an arm that was asked for does not exist or cannot run here.
    """
    if unknown := [name for name in names if name not in arms]:
        raise ConfigError(f"arm {unknown[0]!r} is not valid: one of {', '.join(arms)}")
    reasons = {name: reason for name, one in arms.items() if (reason := _reason_against(one, on_gpu))}
    if missing := [name for name in names if name in reasons]:
        raise ConfigError(f"arm {missing[0]!r} cannot run: {reasons[missing[0]]}")
    chosen = {name: one for name, one in arms.items() if name not in reasons and (not names or name in names)}
    lines = [f"without the arm {name}: {reason}" for name, reason in reasons.items()]
    return chosen, [] if names else lines


def _require_trainable(stages: Iterable[Any], chosen: Mapping[str, Arm]) -> None:
    """Raises ConfigError if the grid has something that the training of others' arms does not have."""
    from benchmarks.arms.plain_training import reason_not_trained

    by_others = [name for name in chosen if name not in BY_US]
    if by_others and (reason := reason_not_trained(stages)):
        raise ConfigError(f"arm {by_others[0]!r} has no {reason}; --arm chooses others: {', '.join(BY_US)}")


def _reason_against(arm: Arm, on_gpu: bool) -> str | None:
    if arm.needs_gpu and not on_gpu:
        return "it needs a GPU"
    if arm.needs is not None and importlib.util.find_spec(arm.needs) is None:
        return f"it needs the package {arm.needs}; {sys.executable} -m pip install -e '.[benchmarks]' installs it"
    return None


def _with_defaults(given: Sequence[str]) -> list[str]:
    names = {option.partition("=")[0] for option in given}
    added = [part for name, values in DEFAULTS.items() if name not in names for part in (name, *values)]
    return [*given, *added]


def _without_auto(options: Sequence[str], precision: str) -> list[str]:
    """The options with this precision in place of `auto`, for which arms with and without fused operators would choose
    different ones."""
    joined = "\0".join(options).replace("--precision\0auto", f"--precision\0{precision}")
    return joined.replace("--precision=auto", f"--precision={precision}").split("\0")


def _run(name: str, arm: Arm, options: Sequence[str]) -> Turn:
    """Takes one turn of an arm, in a folder of its own.

    Raises:
        RuntimeError: it failed, or left trials out.
    """
    with tempfile.TemporaryDirectory(prefix="cvit-bench-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        places = ["--storage", str(folder / "storage"), "--tracking-uri", f"sqlite:///{folder / 'mlflow.db'}"]
        observed = observe([*arm.command, *options, *places], folder, {**QUIET, **arm.environment})
        progress, _, request = planned([*options, *places])
        found = arm.accuracies(progress, request)
        if len(found) != len(progress.plan.trials):
            raise RuntimeError(f"{name} finished {len(found)} of {len(progress.plan.trials)} trials")
        return Turn(observed, fmean(found), _own_account((folder / OUTPUT_FILE).read_text()) if name == OURS else {})


def _own_account(output: str) -> dict[str, float]:
    """Reads the closing lines of a sweep (cvit/engine/execution/timing.py)."""
    parts = {
        "start_up_seconds": (r"start-up ([\d.]+) s", 1.0),
        "share_of_workers_time_in_training": (r"workers trained ([\d.]+) %", 0.01),
        "overhead_seconds_per_trial": (r"([\d.]+) s a trial", 1.0),
    }
    return {name: scale * float(re.findall(pattern, output)[-1]) for name, (pattern, scale) in parts.items()}


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


def _ratio(arms: dict[str, Any], ours: str, other: str) -> float | None:
    """Returns an arm's median of trials per hour over another's; None if one of them did not run."""
    if other not in arms or ours not in arms:
        return None
    return arms[ours]["trials_per_hour"]["median"] / arms[other]["trials_per_hour"]["median"]


def _show(title: str, arms: dict[str, Any], ratios: dict[str, float | None], notes: Sequence[str]) -> None:
    columns = ["arm", "trials/h", "engine is", "local is", "seconds", "limits", "CPU s", "CPU", "memory", "accuracy"]
    if has_gpu := all(figures["gpu_utilisation"] is not None for figures in arms.values()):
        columns += ["GPU", "GPU memory"]
    rows = []
    for arm, figures in arms.items():
        row = [
            arm,
            common.with_spread(figures["trials_per_hour"], digits=0),
            *(
                "" if ratio is None else f"{ratio:.2f}×"
                for ratio in (ratios.get(f"{ours}ratio_vs_{arm}") for ours in ("", "local_"))
            ),
            common.with_spread(figures["seconds"]),
            f"{figures['times_limit']['float32']:.1f}",
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
    common.show(title, columns, rows, notes)


def _notes(arms: dict[str, Any], content: Mapping[str, Any]) -> list[str]:
    notes = [common.limit_line(content["limit"])]
    if ours := arms.get(OURS):
        trained = f"{100 * ours['share_of_workers_time_in_training']['median']:.1f} %"
        notes.append(
            f"the engine by its own account: start-up {common.with_spread(ours['start_up_seconds'])} s, "
            f"workers trained {trained} of the time, "
            f"overhead {common.with_spread(ours['overhead_seconds_per_trial'], digits=3)} s a trial"
        )
    return notes


if __name__ == "__main__":
    common.run_app(app)
