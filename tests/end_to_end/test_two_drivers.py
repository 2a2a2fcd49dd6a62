"""Two drivers in one storage: sweeps that share stages train each once, and a driver that slept through a takeover ends
without a trace."""

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from cvit import vocabulary as v
from cvit.engine import exit_codes
from cvit.results import load_result
from cvit.storage import Storage
from tests.support.scripts import ROOT, TINY, journal, start

SMALL = (*TINY, "--data-fraction", "0.05", "--init-scheme", "random", "two_phase", "--seeds", "2")
EXPIRY_S = 3.0

# A driver that does not wait long for another one; its first argument is the identity that it claims, if any. That of
# another machine makes its lease the only sign of its life. Its second one is how long each of its trainings waits, in
# seconds, so that it is not done before somebody has looked.
DRIVER = f"""
import sys, time
from cvit.training.pack import TrainingPack
from cvit.engine.main import main
from cvit.engine.recording import drivers, lease
from sweeps.low_data import SWEEP
lease.BEAT_S, drivers.EXPIRY_S = 0.2, {EXPIRY_S}
sys.argv[0] = "low_data.py"
if identity := sys.argv.pop(1):
    lease.this_process = lambda: identity
if wait_s := float(sys.argv.pop(1)):
    train = TrainingPack.train
    TrainingPack.train = lambda pack, first: (time.sleep(wait_s), train(pack, first))[1]
main(SWEEP)
"""
ELSEWHERE = "elsewhere:7:x:1"
ONE_PACK = (*TINY, "--data-fraction", "0.05", "--init-scheme", "random", "--seeds", "2", "--min-steps", "240")
"""A sweep whose trials all start at once, so that its driver has made all its runs long before it is done."""
NUM_RUNS = 3
"""Runs of that sweep: the study and two trials."""
SLOW_S = 6.0
"""The wait of each training of a driver that is to be suspended before it is done, once its runs are in MLflow, whose
import takes a busy machine half a minute."""


def test_two_sweeps_at_once_train_each_stage_that_they_share_once(tmp_path: Path) -> None:
    options = (*SMALL, "--min-steps", "150", "--address", "local", "--tracking-uri", "none")
    names = ("low_data", "init_schemes")
    sweeps = [start(tmp_path, *options, script=f"sweeps/{name}.py") for name in names]
    said = [process.communicate(timeout=240) for process in sweeps]
    assert [process.returncode for process in sweeps] == [exit_codes.FINISHED] * 2, said
    storage = Storage.open(str(tmp_path / "storage"))
    stored = [load_result(storage, key) for key in storage.names(v.STAGES_FOLDER)]
    measured = {point for result in stored if result is not None for point in result.points}
    assert len(stored) == 6
    for name in names:
        records = [record for record in journal(tmp_path, name) if record["type"] == v.RECORD_POINTS]
        points = {tuple(point) for record in records for point in record["points"]}
        # A measurement holds its time, so a stage that was trained twice would have others. The seconds of a phase are
        # added to it by each driver.
        assert {point for point in points if not point[0].startswith(v.SECONDS_OF_PHASE)} == measured
    parts = {"result.json", "weights.safetensors", "moments.safetensors"}
    assert {path.name for path in tmp_path.glob("storage/stages/*/*")} == parts
    assert list(tmp_path.glob("storage/leases/*/*")) == []


def test_a_driver_that_wakes_after_a_takeover_touches_nothing(tmp_path: Path) -> None:
    with driver(tmp_path, ELSEWHERE, wait_s=SLOW_S) as slept:
        put_to_sleep(slept, tmp_path)
        with driver(tmp_path) as second:
            _, errors = second.communicate(timeout=200)
        assert second.returncode == exit_codes.FINISHED, errors
        runs, stored = statuses(tmp_path), files(tmp_path / "storage")
        assert {status for status, *_ in runs.values()} == {"FINISHED"} and len(runs) == NUM_RUNS
        slept.send_signal(signal.SIGCONT)
        _, errors = slept.communicate(timeout=200)
    assert slept.returncode == exit_codes.LEASE_LOST, errors
    assert errors == (
        "low_data.py: sweep 'low_data' is no longer this driver's: its lease was removed, by another driver or by "
        "hand; it stops and writes nothing more\n"
    )
    assert statuses(tmp_path) == runs
    assert files(tmp_path / "storage/journal") == {
        path: data for path, data in stored.items() if "journal" in str(path)
    }
    assert stored.items() <= files(tmp_path / "storage").items()


@pytest.mark.chaos
def test_a_driver_that_wakes_while_another_runs_leaves_its_runs_alone(tmp_path: Path) -> None:
    with driver(tmp_path, ELSEWHERE, wait_s=SLOW_S) as slept:
        put_to_sleep(slept, tmp_path)
        before = files(tmp_path / "storage/journal")
        with driver(tmp_path, wait_s=0.5) as second:
            wait_until(lambda: files(tmp_path / "storage/journal") != before or second.poll() is not None)
            assert second.poll() is None, second.communicate()
            slept.send_signal(signal.SIGCONT)
            _, errors = slept.communicate(timeout=200)
            assert slept.returncode == exit_codes.LEASE_LOST, errors
            assert errors.count("\n") == 1
            assert f"process {second.pid} on {socket.gethostname()} has taken it over" in errors
            assert "KILLED" not in {status for status, *_ in statuses(tmp_path).values()}
            _, errors = second.communicate(timeout=200)
    assert second.returncode == exit_codes.FINISHED, errors
    after = files(tmp_path / "storage/journal")
    assert {name: content for name, content in after.items() if name in before} == before
    assert {status for status, *_ in statuses(tmp_path).values()} == {"FINISHED"}


@contextlib.contextmanager
def driver(folder: Path, identity: str = "", wait_s: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    """Runs a small sweep in a process of its own."""
    options = (*ONE_PACK, "--address", "local", "--workers", "1")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", DRIVER, identity, str(wait_s), *options]
    with subprocess.Popen(command, cwd=folder, text=True, env=environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def put_to_sleep(process: subprocess.Popen[str], folder: Path) -> None:
    """Suspends a driver that has all its runs in MLflow: else it might be about to make one, having just looked at its
    lease. It is suspended outside its transactions: otherwise the store would stay locked."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db", timeout=1, isolation_level=None)) as store:
        wait_until(lambda: num_runs(store) == NUM_RUNS)
        while True:
            assert process.poll() is None
            process.send_signal(signal.SIGSTOP)
            # Its threads go on until each has got the signal; one of them could still begin a transaction.
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            try:
                store.execute("BEGIN EXCLUSIVE")
                store.execute("ROLLBACK")
                return
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)
                time.sleep(0.1)


def num_runs(store: sqlite3.Connection) -> int:
    try:
        return store.execute("SELECT count(*) FROM runs").fetchone()[0]
    except sqlite3.OperationalError:  # it is being made
        return 0


def statuses(folder: Path) -> dict[str, tuple[str, int | None]]:
    """Status and end of every run in `folder`/mlflow.db, by id."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("low_data")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return {run.info.run_id: (run.info.status, run.info.end_time) for run in runs}


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_until(condition: Any, timeout_s: float = 200.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
