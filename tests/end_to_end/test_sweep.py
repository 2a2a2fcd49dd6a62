"""Whole sweeps show the right things, leave the right things behind, and are extended by a second run.

The first one runs as a user's does, in a process of its own and with a Ray of its own; the others run in this process.
"""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cvit import vocabulary as v
from cvit.config import PARAMETERS
from tests.support.fake_studies import squeezed
from tests.support.scripts import ROOT, TINY, journal, mlflow_runs, sweep, sweep_with_ray

FRACTIONS, SCHEMES, STEPS = ("0.02", "0.1"), ("random", "conv_structured", "two_phase"), 16
GRID = ("--min-steps", str(STEPS), "--data-fraction", *FRACTIONS, "--init-scheme", *SCHEMES)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Returns the folder and the output of a sweep of 2 fractions x 3 schemes x 1 seed."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, sweep_with_ray(folder, *TINY, *GRID, "--seeds", "1")


def snapshot(folder: Path) -> dict[str, Any]:
    """Takes down everything that a second run must not change."""
    runs = {run.data.tags[v.TAG_TRIAL_KEY]: run for run in mlflow_runs(folder, v.ROLE_TRIAL)}
    return {
        "runs": {key: (r.info.run_id, r.info.status, r.info.end_time, r.data.metrics) for key, r in runs.items()},
        "stages": {p: p.stat().st_mtime_ns for p in sorted((folder / "storage/stages").rglob("*.*"))},
    }


def test_the_answer_table_and_where_to_look_next_are_printed(finished: tuple[Path, str]) -> None:
    _, output = finished
    assert "trials    6, 0 of them done" in output
    assert "stages    8, 8 to train (sharing saves none)" in output
    assert "| training data | random" in squeezed(output)
    assert "two_phase - random" in output
    assert "python analysis/make_tables.py" in output
    assert "mlflow ui" in output
    (study,) = mlflow_runs(finished[0], v.ROLE_STUDY)
    assert (
        f"http://127.0.0.1:5000/#/experiments/{study.info.experiment_id}/runs?workflowType=machine_learning" in output
    )


def test_mlflow_has_a_study_and_a_nested_run_for_each_trial(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    (study,) = mlflow_runs(folder, v.ROLE_STUDY)
    trials = mlflow_runs(folder, v.ROLE_TRIAL)
    cells = [(t.data.params["data_fraction"], t.data.params["init_scheme"], t.data.params["seed"]) for t in trials]
    assert sorted(cells) == sorted(itertools.product(FRACTIONS, SCHEMES, ("0",)))
    assert {t.data.tags["mlflow.parentRunId"] for t in trials} == {study.info.run_id}
    assert {run.info.status for run in [study, *trials]} == {"FINISHED"}
    assert {t.data.tags[v.TAG_STATUS] for t in trials} == {v.STATUS_OK}
    assert {t.data.tags[v.TAG_SWEEP] for t in trials} == {"low_data"}
    assert len({t.data.tags[v.TAG_TRIAL_KEY] for t in trials}) == 6
    for trial in trials:
        assert set(trial.data.params) == set(PARAMETERS)
        assert {v.TAG_CODE_VERSION, v.TAG_DEVICE, v.TAG_DATA_FINGERPRINT, v.TAG_NOTE} <= set(trial.data.tags)
        assert study.data.params.items() <= trial.data.params.items()
    assert not set(study.data.params) & {"data_fraction", "init_scheme", "seed"}


def test_curves_run_through_both_phases_on_one_step_axis(finished: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    folder, _ = finished
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    names = (v.TRAIN_LOSS, v.TRAIN_ACCURACY, v.VAL_ACCURACY, v.LEARNING_RATE, v.GRAD_NORM, v.IMAGES_PER_SECOND)
    for run in mlflow_runs(folder, v.ROLE_TRIAL):
        for name in names:
            history = client.get_metric_history(run.info.run_id, name)
            assert [m.step for m in history] == [4, 8, 12, 16], name
            assert all(a.timestamp <= b.timestamp for a, b in itertools.pairwise(history))
        (test,) = client.get_metric_history(run.info.run_id, v.TEST_ACCURACY)
        assert test.step == STEPS
        assert 0 <= test.value <= 1


def test_a_second_run_trains_nothing_says_so_and_changes_nothing(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    before = snapshot(folder)
    output = sweep(folder, *TINY, *GRID, "--seeds", "1")
    assert "Nothing to train: every trial is done." in output
    assert snapshot(folder) == before


def test_journal_alone_and_mlflow_alone_give_identical_tables(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    sources = {"a": ("--storage", "storage"), "b": ("--tracking-uri", "sqlite:///mlflow.db")}
    for out, source in sources.items():
        command = [sys.executable, str(ROOT / "analysis/make_tables.py"), *source, "--out", out]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    for name in ("low_data.md", "low_data.csv", "low_data.tex"):
        assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes()
    for name in ("low_data.png", "low_data.svg"):
        assert (folder / "a" / name).stat().st_size > 1000


def test_adding_seeds_and_fractions_trains_only_the_new_cells(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    before = snapshot(folder)
    grid = ("--data-fraction", "0.02", "0.3", "--init-scheme", "random", "two_phase", "--seeds", "2")
    output = sweep(folder, *TINY, "--min-steps", str(STEPS), *grid)
    assert "trials    8, 2 of them done" in output
    assert ", 9 to train (" in output  # 3 new cells of random, and of two_phase with two stages each
    after = snapshot(folder)
    assert after["runs"].items() >= before["runs"].items()
    assert after["stages"].items() >= before["stages"].items()
    assert len(after["runs"]) == 6 + 6
    assert len(mlflow_runs(folder, v.ROLE_STUDY)) == 1


def test_divergence_is_a_result(tmp_path: Path) -> None:
    grid = ("--data-fraction", "0.05", "--init-scheme", "random", "two_phase", "--seeds", "1", "--min-steps", "40")
    wild = ("--learning-rate", "1e6", "--gradient-clip-norm", "0", "--warmup-fraction", "0")
    sweep(tmp_path, *TINY, *grid, *wild)
    runs = mlflow_runs(tmp_path, v.ROLE_TRIAL)
    assert [run.data.tags[v.TAG_STATUS] for run in runs] == [v.STATUS_DIVERGED] * 2
    assert all(0 <= int(run.data.tags[v.TAG_DIVERGED_STEP]) <= 40 for run in runs)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert "Nothing to train" in sweep(tmp_path, *TINY, *grid, *wild)
    assert len([r for r in journal(tmp_path) if r["type"] == v.RECORD_END]) == 2


@pytest.fixture
def photographs(tmp_path: Path, cifar10_dir: Path) -> Path:
    """The first images of CIFAR-10; to decode all of them takes half a minute."""
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    for part, count in (("train", 5000), ("test", 2000)):
        name = f"cifar10/{part}.parquet"
        pq.write_table(pq.read_table(cifar10_dir / name).slice(0, count), tmp_path / "data" / name)
    return tmp_path / "data"


def test_real_photographs(tmp_path: Path, photographs: Path) -> None:
    """One integration run on real CIFAR-10: it learns something from 450 images in 60 steps."""
    options = ("--dataset", "cifar10", "--data-dir", str(photographs), "--data-fraction", "0.1", "--seeds", "1")
    small = ("--embed-dim", "32", "--depth", "2", "--head-dim", "8", "--mlp-ratio", "2", "--batch-size", "32")
    training = ("--epochs", "0", "--min-steps", "60", "--evaluations", "2", "--max-validation-images", "500")
    schemes = ("--init-scheme", "random", "two_phase", "--budget-unit", "steps")
    sweep(tmp_path, *options, *small, *training, *schemes)
    runs = mlflow_runs(tmp_path, v.ROLE_TRIAL)
    assert {run.data.params["image_size"] for run in runs} == {"32"}
    assert len(runs) == 2
    for run in runs:
        assert run.data.metrics[v.TEST_ACCURACY] > 0.14  # chance is 0.10, with a standard error of 0.007
