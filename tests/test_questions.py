"""The sweeps beside low_data as a user runs them: small grids, from the command line to the tables."""

import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest
from sweeping import ROOT, journal, mlflow_runs, sweep

from cvit import vocabulary as v
from cvit.config import EXPRESSIVITY_PARAMETERS, PARAMETERS

TINY = ("--embed-dim", "16", "--depth", "1", "--batch-size", "16", "--epochs", "0", "--min-steps", "8")
HEAD_COUNT = (
    *("--preset", "smoke", *TINY, "--num-heads", "4", "9", "--head-dim", "8", "--inner-dim", "0", "72"),
    *("--kernel-size", "3", "--patch-size", "2", "--seeds", "2", "--fit-steps", "300"),
)
PATCH_SIZE = (*TINY, "--preset", "smoke", "--patch-size", "2", "4", "--data-fraction", "0.05", "0.1", "--seeds", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which both sweeps have ended and their tables are made."""
    folder = tmp_path_factory.mktemp("questions")
    (folder / "head_count.txt").write_text(sweep(folder, *HEAD_COUNT, script="sweeps/head_count.py"))
    (folder / "patch_size.txt").write_text(sweep(folder, *PATCH_SIZE, script="sweeps/patch_size.py"))
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
    assert "trials    4, of which done 0" in output[first:second]
    assert "trials    16, of which done 0" in output[second:]


def test_the_expressivity_table_meets_its_bound(folder: Path) -> None:
    found = rows(folder, "expressivity")
    assert list(found[0]) == ["kernel_size", "patch_size", "num_heads", "bound", "reached", "restarts"]
    four, nine = ({name: float(value) for name, value in row.items()} for row in found)
    assert (four["num_heads"], nine["num_heads"]) == (4, 9)
    assert four["restarts"] == nine["restarts"] == 2
    assert 0.1 < four["bound"] <= four["reached"] + 1e-12 < 1
    assert nine["bound"] == 0 and nine["reached"] <= 1e-4


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
            assert sorted(run.data.params["inner_dim"] for run in pair) == ["0", "72"]
            assert pair[0].data.metrics == pair[1].data.metrics
            assert {run.data.params["head_dim"] for run in pair} == {"8"}
    # Per seed: random at 3 models, one convolution phase for all heads and widths, 3 attention phases.
    stages = {r["note"] for r in journal(folder, "head_count") if r["type"] == v.RECORD_END}
    keys = {word for note in stages for word in note.split() if len(word) == 24}
    assert len(keys) == 2 * (3 + 1 + 3)


def test_training_runs_have_the_parameters_of_training(folder: Path) -> None:
    for name in ("head_count", "patch_size"):
        for run in mlflow_runs(folder, v.ROLE_TRIAL, name):
            assert set(run.data.params) == set(PARAMETERS)
            assert run.data.tags[v.TAG_TASK] == v.TRAINING


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
