"""The tracker's process: it copies what the thread would, ends with its driver, and loses nothing when it dies."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from cvit import vocabulary as v
from cvit.engine import book
from cvit.engine.recording.lease import LeaseLost
from cvit.engine.recording.process_identity import this_process
from cvit.engine.tracking import tracker_process
from cvit.engine.tracking.tracker_main import PATIENT_PRIORITY
from cvit.engine.tracking.tracker_process import Copy, Spare, TrackerProcess
from cvit.storage import Storage
from tests.support.fake_runs import expected, history, journal_of, keys, points, runs, trial_runs
from tests.support.mlflow_stores import empty_store
from tests.support.plans import SMALL, make_plan
from tests.support.scripts import ROOT, TINY, call

SWEEP = "low_data"


def may_write() -> None:
    """The check of a driver that holds its lease."""


def wait_until(is_so: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def are_copied(uri: str, last_step: int) -> bool:
    of_trials = trial_runs(uri, SWEEP)
    return len(of_trials) == 8 and all(history(uri, run) == expected(last_step) for run in of_trials)


def num_runs(uri: str) -> int:
    return len(runs(uri, SWEEP)) if MlflowClient(uri).get_experiment_by_name(SWEEP) is not None else 0


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return empty_store(tmp_path)


def test_a_process_that_is_killed_is_replaced_and_nothing_is_lost_or_doubled(tmp_path: Path, uri: str) -> None:
    plan = make_plan(tmp_path, *SMALL)
    journal = journal_of(tmp_path, plan, 3, ended=False)
    tracker = TrackerProcess(Copy(uri, SWEEP, keys(plan), Storage.open(str(tmp_path))), may_write)
    journal.listen(tracker.feed)
    for trial in plan.trials[:4]:
        journal.record_points([trial], points(5))
    wait_until(lambda: num_runs(uri) > 0)
    os.kill(tracker._process.pid, signal.SIGKILL)
    for trial in plan.trials:
        journal.record_points([trial], points(5))
        journal.record_end(trial, v.STATUS_OK, {}, "a note")
    assert tracker.close("FINISHED", timeout_s=300), tracker.error
    assert are_copied(uri, 5)
    assert {run.info.status for run in runs(uri, SWEEP)} == {"FINISHED"}
    (study,) = [run for run in runs(uri, SWEEP) if run.data.tags[v.TAG_ROLE] == v.ROLE_STUDY]
    assert study.data.tags[v.TAG_DRIVER] == this_process()


def test_a_process_that_dies_again_and_again_is_said_and_the_journal_is_copied_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_process, "_START", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    options = ("--min-steps", "24", "--data-fraction", "0.05", "--seeds", "1")
    ended = call(tmp_path, *TINY, *options)
    assert ended.exit_code == 0, ended.errors
    reason = "its process died 3 times, the last time by signal 9"
    assert f"is incomplete ({reason}); nothing is lost" in ended.output
    assert f"python -m cvit.engine.sync --storage storage --tracking-uri sqlite:///{tmp_path}" in ended.output
    monkeypatch.undo()
    monkeypatch.setattr(book, "CLOSE_TIMEOUT_S", 600.0)  # on a busy machine, MLflow's import takes a minute
    assert "is incomplete" not in call(tmp_path, *TINY, *options).output
    assert {run.info.status for run in runs(f"sqlite:///{tmp_path}/mlflow.db", SWEEP)} == {"FINISHED"}


def test_a_driver_that_loses_its_sweep_leaves_its_runs_as_they_are(tmp_path: Path, uri: str) -> None:
    plan = make_plan(tmp_path, *SMALL)
    has_lost = threading.Event()

    def check() -> None:
        if has_lost.is_set():
            raise LeaseLost("another driver has it")

    journal = journal_of(tmp_path, plan, 3, ended=False)
    tracker = TrackerProcess(Copy(uri, SWEEP, keys(plan), Storage.open(str(tmp_path))), check)
    journal.listen(tracker.feed)
    journal.record_points(plan.trials[:1], points(4))  # nothing is copied before the first measurement
    wait_until(lambda: num_runs(uri) == 9)
    has_lost.set()
    before = [run.to_dictionary() for run in runs(uri, SWEEP)]
    for trial in plan.trials:
        journal.record_end(trial, v.STATUS_OK, {}, "a note")
    assert not tracker.close("KILLED", timeout_s=300)
    assert tracker.error == "LeaseLost: another driver has it"
    assert [run.to_dictionary() for run in runs(uri, SWEEP)] == before


def test_a_spare_process_imports_at_a_low_priority_and_copies_at_its_own(tmp_path: Path, uri: str) -> None:
    plan = make_plan(tmp_path, *SMALL)
    journal_of(tmp_path, plan, 3, ended=True)
    copy = Copy(uri, SWEEP, keys(plan), Storage.open(str(tmp_path)))
    with Spare(uri, ["no.such.module", "wave"], is_patient=True) as spare:
        assert spare._process is not None
        process = psutil.Process(spare._process[0].pid)
        wait_until(lambda: any(priority(thread.id) == PATIENT_PRIORITY for thread in process.threads()))
        assert priority(process.pid) == priority(os.getpid())
        tracker = TrackerProcess(copy, may_write, spare)
        assert tracker._process.pid == process.pid and spare.take() is None
    assert tracker.close("FINISHED", timeout_s=300), tracker.error
    assert are_copied(uri, 3)


def priority(thread: int) -> int:
    """The nice value of a thread; that of one that has ended is 0."""
    try:
        return os.getpriority(os.PRIO_PROCESS, thread)
    except ProcessLookupError:
        return 0


def test_a_spare_process_that_nobody_takes_ends_with_the_context(uri: str) -> None:
    with Spare(uri, [], is_patient=False) as spare:
        assert spare._process is not None
        pid = spare._process[0].pid
        assert not is_gone(pid)
    assert is_gone(pid)
    with Spare(v.NO_TRACKING, [], is_patient=False) as spare:
        assert spare.take() is None


def test_a_spare_process_that_has_died_is_replaced(tmp_path: Path, uri: str) -> None:
    plan = make_plan(tmp_path, *SMALL)
    journal_of(tmp_path, plan, 3, ended=True)
    with Spare(uri, [], is_patient=False) as spare:
        assert spare._process is not None
        spare._process[0].kill()
        spare._process[0].wait()
        tracker = TrackerProcess(Copy(uri, SWEEP, keys(plan), Storage.open(str(tmp_path))), may_write, spare)
        assert tracker.close("FINISHED", timeout_s=300), tracker.error
    assert are_copied(uri, 3)


DRIVER = """
import sys, time
from pathlib import Path
from cvit.storage import Storage
from cvit.engine.tracking.tracker_process import Copy, TrackerProcess
from tests.support.fake_runs import journal_of, keys
from tests.support.plans import SMALL, make_plan

folder, uri = Path(sys.argv[1]), sys.argv[2]
plan = make_plan(folder, *SMALL)
journal = journal_of(folder, plan, 3, ended=True)
tracker = TrackerProcess(Copy(uri, "low_data", keys(plan), Storage.open(str(folder))), lambda: None)
tracker.feed([])
print(tracker._process.pid, flush=True)
time.sleep(600)
"""


def test_a_killed_driver_takes_its_tracker_with_it_even_from_a_write_that_waits(tmp_path: Path, uri: str) -> None:
    """Whoever takes the sweep over must be alone with its runs."""
    locked = sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None)
    locked.execute("BEGIN EXCLUSIVE")
    command = [sys.executable, "-c", DRIVER, str(tmp_path), uri]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        pid = int(driver.stdout.readline())
        path = Path(f"/proc/{pid}/maps")
        wait_until(lambda: "_sqlite3" in path.read_text())  # it has come to the store, which does not answer
        driver.kill()
    wait_until(lambda: is_gone(pid), 30)
    locked.execute("ROLLBACK")
    locked.close()
    assert num_runs(uri) == 0
