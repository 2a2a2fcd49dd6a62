"""A sweep that is killed or stopped: the same command finishes exactly what is missing, from checkpoints."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import safetensors.torch
import torch

from cvit import vocabulary as v
from cvit.engine.terminal.plan_text import kept_text
from cvit.results import load_result
from cvit.storage import Storage
from tests.support.plans import make_progress
from tests.support.scripts import TINY, call, mlflow_runs, start, sweep

OPTIONS = (
    *("--embed-dim", "32", "--depth", "2", "--head-dim", "4", "--mlp-ratio", "2", "--batch-size", "16"),
    *("--epochs", "0", "--min-steps", "2000", "--evaluations", "100"),
    *("--budget-unit", "steps", "--data-fraction", "0.1", "--init-scheme", "random", "two_phase", "--seeds", "1"),
)
"""Stages of several seconds, so that there are checkpoints in the middle."""


def wait_for_checkpoint(process: subprocess.Popen[str], folder: Path) -> None:
    """Waits until a stage has a checkpoint and is not done."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the sweep ended before it could be interrupted"
        if list(folder.glob("storage/stages/*/step-*.json")):
            return
        time.sleep(0.02)
    raise TimeoutError("no checkpoint within two minutes")


def results(folder: Path) -> dict[str, dict[tuple[str, int], float]]:
    """Reads every measurement of every finished stage that does not depend on the clock."""
    storage = Storage.open(str(folder / "storage"))
    found = {}
    for key in storage.names(v.STAGES_FOLDER):
        result = load_result(storage, key)
        assert result is not None
        found[key] = {(name, step): value for name, step, value, _ in result.points if name != v.IMAGES_PER_SECOND}
    return found


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {
        path.parent.name: safetensors.torch.load_file(path)
        for path in sorted(folder.glob("storage/stages/*/weights.safetensors"))
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep to which nothing happened; it ran without Ray, which changes no result."""
    folder = tmp_path_factory.mktemp("undisturbed")
    sweep(folder, *OPTIONS)
    return folder


def assert_equals(folder: Path, undisturbed: Path) -> None:
    assert results(folder) == results(undisturbed)
    ours, theirs = weights(folder), weights(undisturbed)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert all(torch.equal(ours[key][name], theirs[key][name]) for name in theirs[key])
    assert not list(folder.glob("storage/stages/*/step-*"))


def assert_one_finished_run_per_trial(folder: Path) -> None:
    runs = mlflow_runs(folder, v.ROLE_TRIAL)
    assert sorted(run.data.params["init_scheme"] for run in runs) == ["random", "two_phase"]
    assert {run.info.status for run in [*runs, *mlflow_runs(folder, v.ROLE_STUDY)]} == {"FINISHED"}


def test_after_sigkill_the_same_command_ends_as_if_undisturbed(tmp_path: Path, undisturbed: Path) -> None:
    process = start(tmp_path, *OPTIONS)
    wait_for_checkpoint(process, tmp_path)
    # Workers outlive their driver for a moment, and may begin another stage in it.
    half_done = {path.parent.name for path in tmp_path.glob("storage/stages/*/step-*.json")}
    process.kill()
    process.communicate()
    killed_ms = time.time_ns() // 1_000_000
    time.sleep(2)  # Ray's own processes notice that their driver is gone
    assert half_done
    sweep(tmp_path, *OPTIONS)
    assert_equals(tmp_path, undisturbed)
    assert_one_finished_run_per_trial(tmp_path)
    storage = Storage.open(str(tmp_path / "storage"))
    for key in half_done:  # what had been measured before the kill was not measured again
        result = load_result(storage, key)
        assert result is not None
        assert min(time_ms for *_, time_ms in result.points) < killed_ms


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, undisturbed: Path) -> None:
    process = start(tmp_path, *OPTIONS, "--address", "local")
    wait_for_checkpoint(process, tmp_path)
    process.kill()
    process.communicate()
    time.sleep(2)
    for path in tmp_path.glob("storage/stages/*/step-*.safetensors"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    sweep(tmp_path, *OPTIONS)
    assert_equals(tmp_path, undisturbed)
    assert_one_finished_run_per_trial(tmp_path)


@pytest.mark.parametrize(
    ("number", "address"),
    [(signal.SIGINT, ("--address", "local")), (signal.SIGTERM, ())],
    ids=["Ctrl-C, without Ray", "SIGTERM, with Ray"],
)
def test_a_stop_is_clean_and_names_the_command_that_resumes(
    tmp_path: Path, number: signal.Signals, address: tuple[str, ...]
) -> None:
    process = start(tmp_path, *OPTIONS, *address)
    wait_for_checkpoint(process, tmp_path)
    os.kill(process.pid, number)
    output, errors = process.communicate(timeout=90)
    assert process.returncode == 130, output + errors
    assert "Traceback" not in output + errors
    assert "of 2 trials done. Continue with:" in output
    assert "low_data.py --embed-dim 32" in output
    # The workers ended first, so that the next run finds what the closing text says.
    assert f"{kept_text(make_progress(tmp_path / 'storage', *OPTIONS))} are kept." in output
    runs = [*mlflow_runs(tmp_path, v.ROLE_TRIAL), *mlflow_runs(tmp_path, v.ROLE_STUDY)]
    assert "RUNNING" not in {run.info.status for run in runs}
    assert {run.info.status for run in runs if run.data.tags[v.TAG_ROLE] == v.ROLE_STUDY} == {"KILLED"}


@pytest.mark.parametrize("started", ["gcs_server", "raylet"])
def test_a_stop_while_ray_starts_is_clean(tmp_path: Path, started: str) -> None:
    """Ray puts a handler of its own in place, which would end the driver with exit code 15."""
    process = start(tmp_path, *OPTIONS)
    deadline = time.monotonic() + 120
    while not any(started in " ".join(child.cmdline()) for child in children(process.pid)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=90)
    assert process.returncode == 130, output + errors
    assert "Traceback" not in output + errors
    assert not list(tmp_path.glob("storage/leases/*/*"))


def children(pid: int) -> Iterator[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            if child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
                yield child


def test_an_error_of_ray_that_nobody_foresaw_ends_in_the_table_so_far_and_the_command(
    tmp_path: Path, ray_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*TINY, "--min-steps", "16", "--data-fraction", "0.1", "--init-scheme", "random", "--max-pack", "1")
    sweep(tmp_path, *options, "--seeds", "1")
    from ray.tune.execution.tune_controller import TuneController

    monkeypatch.setattr(TuneController, "step", broken)
    ended = call(tmp_path, *options, "--seeds", "2", "--address", ray_address)
    assert ended.exit_code == 1 and "Traceback" not in ended.output + ended.errors
    before, _, after = ended.output.partition("Ray failed: RuntimeError: nobody foresaw this; the stages that are left")
    assert before and "Missing: 1 of 2 trials." in after, "the table so far"
    assert "\nRay failed: RuntimeError: nobody foresaw this\n" in after
    assert "Stopped with 1 of 2 trials done. Continue with:\n  python " in after and "--seeds 2" in after
    monkeypatch.undo()
    sweep(tmp_path, *options, "--seeds", "2")


def broken(_: object) -> None:
    raise RuntimeError("nobody foresaw this")
