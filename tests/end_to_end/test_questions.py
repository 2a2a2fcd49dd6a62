"""The sweeps beside low_data run as a user runs them: small grids, from the command line to the tables."""

import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest

from cvit import vocabulary as v
from cvit.config import PARAMETERS
from cvit.deep_fits import PARAMETERS as DEPTH_PARAMETERS
from cvit.fits import PARAMETERS as EXPRESSIVITY_PARAMETERS
from tests.support.scripts import ROOT, journal, mlflow_runs, sweep, sweep_with_ray

SMALL = ("--preset", "smoke", "--embed-dim", "16", "--batch-size", "16", "--epochs", "0")
TINY = (*SMALL, "--depth", "1")
HEAD_COUNT = (
    *(*TINY, "--min-steps", "8", "--num-heads", "4", "9", "--head-dim", "8", "--inner-dim", "0", "72"),
    *("--kernel-size", "3", "--patch-size", "2", "--seeds", "2", "--fit-steps", "300"),
)
STABILITY_STEPS = 120
OTHERS = {
    "patch_size": ("--min-steps", "8", "--patch-size", "2", "4", "--data-fraction", "0.05", "0.1"),
    "no_warmup": (
        "--min-steps",
        str(STABILITY_STEPS),
        "--warmup-fraction",
        "0",
        "0.1",
        "--learning-rate",
        "0.001",
        "1e3",
        "--transferred-learning-rate-factor",
        "1",
        "--schedule",
        "per_phase",
    ),
    "init_schemes": ("--min-steps", "8", "--data-fraction", "0.05"),
    "budget": ("--min-steps", "8", "16"),
    "hybrids": ("--min-steps", "8", "--depth", "3", "--attention-blocks", "1", "2", "auto", "--data-fraction", "0.05"),
    "full_grid": ("--min-steps", "8", "--data-fraction", "0.05", "--head-dim", "4"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Path:
    """A working folder in which the sweeps have ended and their tables are made.

    The script with two parts, of two tasks, runs with Ray: both parts share the workers.
    """
    folder = tmp_path_factory.mktemp("questions")
    head_count = sweep_with_ray(folder, *HEAD_COUNT, "--address", ray_address, script="sweeps/head_count.py")
    (folder / "head_count.txt").write_text(head_count)
    for name, options in OTHERS.items():
        sizes = SMALL if "--depth" in options else TINY
        output = sweep(folder, *sizes, *options, "--seeds", "1", script=f"sweeps/{name}.py")
        (folder / f"{name}.txt").write_text(output)
    tables = subprocess.run(
        [sys.executable, str(ROOT / "analysis/make_tables.py")], cwd=folder, capture_output=True, text=True, check=False
    )
    assert tables.returncode == 0, tables.stderr
    return folder


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "results" / f"{name}.csv").read_text())))


def test_one_script_runs_both_parts_and_answers_each(folder: Path) -> None:
    output = (folder / "head_count.txt").read_text()
    first, second = output.index("expressivity: "), output.index("head_count: ")
    assert first < second
    assert "trials    4, 0 of them done" in output[first:second]
    assert "trials    16, 0 of them done" in output[second:]


def test_the_expressivity_table_meets_its_bound(folder: Path) -> None:
    found = rows(folder, "expressivity")
    assert list(found[0]) == ["kernel_size", "patch_size", "num_heads", "bound", "reached", "restarts"]
    four, nine = ({name: float(value) for name, value in row.items()} for row in found)
    assert (four["num_heads"], nine["num_heads"]) == (4, 9)
    assert four["restarts"] == nine["restarts"] == 2
    assert 0.1 < four["bound"] <= four["reached"] + 1e-12 < 1
    assert nine["bound"] == 0 and nine["reached"] <= 1e-4


def test_several_layers_are_fitted_and_answered_beside_their_frontier(tmp_path: Path) -> None:
    """Four causal taps take 3 heads in one layer and 1 + 1 in two, with skip connections; fewer cannot do."""
    options = ("--preset", "smoke", "--kernel-size", "4", "--num-heads", "1", "3", "--fit-image-size", "8")
    output = sweep(tmp_path, *options, "--fit-steps", "100", script="sweeps/depth.py")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line.startswith("| K")]
    assert [row[1:5] for row in cells] == [["4", "1", "3", "3"], ["4", "2", "1", "1"]], output
    fits = mlflow_runs(tmp_path, v.ROLE_TRIAL, "depth")
    assert len(fits) == 8 and {run.data.tags[v.TAG_TASK] for run in fits} == {v.DEPTH}
    assert all(set(run.data.params) == set(DEPTH_PARAMETERS) for run in fits)
    for run in fits:
        assert run.data.metrics[v.EXPRESSIVITY_ERROR] >= run.data.metrics[v.EXPRESSIVITY_BOUND] - 1e-12


def test_a_fit_is_a_run_like_any_other(folder: Path) -> None:
    (study,) = mlflow_runs(folder, v.ROLE_STUDY, "expressivity")
    fits = mlflow_runs(folder, v.ROLE_TRIAL, "expressivity")
    assert len(fits) == 4
    for run in fits:
        assert set(run.data.params) == set(EXPRESSIVITY_PARAMETERS)
        assert run.info.status == "FINISHED" and run.data.tags[v.TAG_STATUS] == v.STATUS_OK
        assert run.data.tags[v.TAG_TASK] == study.data.tags[v.TAG_TASK] == v.EXPRESSIVITY
        assert run.data.metrics[v.EXPRESSIVITY_ERROR] >= run.data.metrics[v.EXPRESSIVITY_BOUND] - 1e-12


def test_two_cells_that_need_the_same_stages_are_two_trials_with_one_training(folder: Path) -> None:
    """9 heads of 8 are 72 wide: both rules for the width ask for the same model, so it is trained once."""
    trials = mlflow_runs(folder, v.ROLE_TRIAL, "head_count")
    assert len(trials) == 16
    for scheme in ("random", "two_phase"):
        for seed in "01":
            pair = [
                run
                for run in trials
                if (run.data.params["num_heads"], run.data.params["init_scheme"], run.data.params["seed"])
                == ("9", scheme, seed)
            ]
            assert sorted(run.data.params["inner_dim"] for run in pair) == ["72", "auto"]
            assert pair[0].data.metrics == pair[1].data.metrics
            assert {run.data.params["head_dim"] for run in pair} == {"8"}
    # Per seed: random at 3 models, one convolution phase for all heads and widths, 3 attention phases.
    stages = {r["note"] for r in journal(folder, "head_count") if r["type"] == v.RECORD_END}
    keys = {word for note in stages for word in note.split() if len(word) == 24}
    assert len(keys) == 2 * (3 + 1 + 3)


def test_training_runs_have_the_parameters_of_training(folder: Path) -> None:
    for name in ("head_count", *OTHERS):
        for run in mlflow_runs(folder, v.ROLE_TRIAL, name):
            assert set(run.data.params) == set(PARAMETERS)
            assert run.data.tags[v.TAG_TASK] == v.TRAINING


def test_hybrids_of_all_numbers_of_blocks_share_the_convolution_phase(folder: Path) -> None:
    """Three numbers of blocks are three trainings of random, three attention phases and one convolution phase; the two
    references do not depend on the number."""
    assert "stages    9, 9 to train (sharing saves 6" in (folder / "hybrids.txt").read_text()
    accuracy = {
        (row["attention_blocks"], row["init_scheme"]): row["mean"]
        for row in rows(folder, "hybrids")
        if row["kind"] == "accuracy"
    }
    assert {blocks for blocks, _ in accuracy} == {"auto", "1", "2"} and len(accuracy) == 12
    for reference in ("convolution", "resnet"):
        assert len({accuracy[blocks, reference] for blocks in ("auto", "1", "2")}) == 1
    differences = [row for row in rows(folder, "hybrids") if row["kind"] == "hybrid_minus_all_attention"]
    assert {(row["attention_blocks"], row["init_scheme"]) for row in differences} == {
        (blocks, scheme) for blocks in ("1", "2") for scheme in ("random", "two_phase")
    }
    for row in differences:
        expected = float(accuracy[row["attention_blocks"], row["init_scheme"]])
        expected -= float(accuracy["auto", row["init_scheme"]])
        assert float(row["mean"]) == pytest.approx(expected, abs=1e-12)


def test_the_patch_size_table_has_speed_and_heads(folder: Path) -> None:
    found = [row for row in rows(folder, "patch_size") if row["kind"] == "accuracy"]
    assert {(row["data_fraction"], row["patch_size"], row["init_scheme"]) for row in found} == {
        (fraction, patch, scheme)
        for fraction in ("0.05", "0.1")
        for patch in ("2", "4")
        for scheme in ("random", "two_phase")
    }
    for row in found:
        assert float(row["steps_per_second"]) > 0
        heads = [row[f"heads_needed_k{size}"] for size in (3, 5, 7)]
        assert heads == (["9", "9", "25"] if row["patch_size"] == "2" else ["9", "9", "9"])


def test_running_a_script_again_trains_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "storage/stages").rglob("*.*")}
    output = sweep(folder, *HEAD_COUNT, script="sweeps/head_count.py")
    assert output.count("Nothing to train: every trial is done.") == 2
    assert {path: path.stat().st_mtime_ns for path in (folder / "storage/stages").rglob("*.*")} == before


def test_stability_is_measured_and_the_convolution_phase_shared(folder: Path) -> None:
    """A learning rate of 1000 diverges or not; it is a result either way, and has the same first phase."""
    assert "stages    9, 9 to train (sharing saves 3, 180 steps, 19 % of all)" in (folder / "no_warmup.txt").read_text()
    runs = mlflow_runs(folder, v.ROLE_TRIAL, "no_warmup")
    assert len(runs) == 8
    for run in runs:
        metrics = run.data.metrics
        assert metrics[v.GRAD_NORM_MAX] > 0 and metrics[v.LOSS_SPIKES] >= 0 and metrics[v.EARLY_LOSS] > 0
        assert 0 <= metrics[v.GRAD_NORM_MAX_STEP] < STABILITY_STEPS
        assert run.data.tags[v.TAG_STATUS] in (v.STATUS_OK, v.STATUS_DIVERGED)
    wild = [run for run in runs if run.data.params["learning_rate"] == "1000.0"]
    calm = [run for run in runs if run.data.params["learning_rate"] == "0.001"]
    assert min(r.data.metrics[v.GRAD_NORM_MAX] for r in wild) > max(r.data.metrics[v.GRAD_NORM_MAX] for r in calm)
    records = [r for r in journal(folder, "no_warmup") if r["type"] == v.RECORD_POINTS]
    early = [point[1] for r in records for point in r["points"] if point[0] == v.EARLY_GRAD_NORM]
    assert set(early) == set(range(STABILITY_STEPS))  # 100 of the one phase of random, 60 of each of two_phase's


def test_a_budget_is_a_training_of_its_own(folder: Path) -> None:
    assert "trials    6, " in (folder / "budget.txt").read_text()
    found = rows(folder, "budget")
    steps = [(r["min_steps"], r["init_scheme"], r["phase"], r["steps"]) for r in found if r["kind"] == "cost"]
    assert [row for row in steps if row[1] == "two_phase"] == [
        (budget, "two_phase", phase, str(int(budget) // 2))
        for budget in ("8", "16")
        for phase in ("convolution", "attention")
    ]
    assert {r["kind"] for r in found} == {"accuracy", "paired_gain", "less_the_twin", "crossover_steps", "cost"}


def test_every_scheme_and_reference_ends_with_a_test_accuracy(folder: Path) -> None:
    runs = mlflow_runs(folder, v.ROLE_TRIAL, "init_schemes")
    assert len(runs) == 9
    assert {run.data.params["init_scheme"] for run in runs} == {
        *("random", "mimetic", "impulse", "local", "conv_structured", "joint", "two_phase", "convolution", "resnet")
    }
    for run in runs:
        assert 0 <= run.data.metrics[v.TEST_ACCURACY] <= 1
        assert run.data.tags[v.TAG_STATUS] == v.STATUS_OK


def test_dropped_combinations_are_listed_and_not_missing(folder: Path) -> None:
    output = (folder / "full_grid.txt").read_text()
    assert "dropped   2 impossible combinations:" in output
    assert "patch_size 4, num_heads 16: num_heads 16 must be at most 9" in output
    assert "Missing" not in output
    assert len(mlflow_runs(folder, v.ROLE_TRIAL, "full_grid")) == 6
