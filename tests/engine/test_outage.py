"""Tracking servers that fail in every way: training never waits for them, and in the end each run is there once."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from cvit import vocabulary as v
from cvit.engine.planning.plan import Plan
from cvit.engine.recording.journal import Journal
from cvit.engine.recording.process_identity import this_process
from cvit.engine.tracking import tracker as tracking
from cvit.engine.tracking.tracker import Tracker
from cvit.records import StudyRecord, TrialRecord
from cvit.storage import Storage
from tests.support.fake_runs import copy, expected, history, journal_of, keys, points, runs, trial_runs
from tests.support.plans import SMALL, make_plan
from tests.support.scripts import ROOT
from tests.support.servers import Fault, FaultyProxy, MlflowServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A running server; each test has an experiment of its own."""
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def proxy(server: MlflowServer) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_FLUSH_INTERVAL_S", 0.05)
    monkeypatch.setattr(tracking, "_LONGEST_PAUSE_S", 0.2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")


def feed_in_rounds(journal: Journal, plan: Plan, pause_s: float, rounds: int = 6) -> None:
    """Results as they come in while a sweep runs."""
    for last in range(1, rounds + 1):
        for trial in plan.trials:
            journal.record_points([trial], points(last))
            if last == rounds:
                journal.record_end(trial, v.STATUS_OK, {v.TAG_DEVICE: "cpu"}, "a note")
        time.sleep(pause_s)


def tracked_journal(uri: str, experiment: str, folder: Path, plan: Plan) -> tuple[Tracker, Journal]:
    journal = Journal(Storage.open(str(folder)), "low_data")
    journal.record_plan(plan.study, plan.trials, {v.TAG_CODE_VERSION: "1"})
    tracker = Tracker(uri, experiment, keys(plan), list(journal.records))
    journal.listen(tracker.feed)
    return tracker, journal


def assert_complete(uri: str, experiment: str, last_step: int = 6) -> None:
    """Every trial has one run, ended, with every measurement once, below the one study."""
    all_runs = runs(uri, experiment)
    trials = trial_runs(uri, experiment)
    (study,) = [run for run in all_runs if run.data.tags[v.TAG_ROLE] == v.ROLE_STUDY]
    assert len(trials) == 8
    assert len({run.data.tags[v.TAG_TRIAL_KEY] for run in trials}) == 8
    assert {run.info.status for run in all_runs} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {study.info.run_id}
    assert {run.data.tags[v.TAG_STATUS] for run in trials} == {v.STATUS_OK}
    assert all(history(uri, run) == expected(last_step) for run in trials)


@pytest.mark.parametrize("seed", range(2))
def test_requests_fail_at_random_with_and_without_having_been_carried_out(
    tmp_path: Path, server: MlflowServer, proxy: FaultyProxy, seed: int
) -> None:
    draw = random.Random(seed)
    faults: list[Fault] = ["before", "after", "cut"]
    proxy.fault = lambda path: draw.choice(faults) if draw.random() < 0.3 else ""
    plan = make_plan(tmp_path, *SMALL)
    tracker, journal = tracked_journal(proxy.uri, f"random-{seed}", tmp_path, plan)
    feed_in_rounds(journal, plan, pause_s=0.3)
    assert tracker.close("FINISHED", timeout_s=100), tracker.error
    assert proxy.faults > 3
    assert_complete(server.uri, f"random-{seed}")


def test_a_create_that_is_carried_out_after_the_client_gave_up_leaves_no_second_run(
    tmp_path: Path, server: MlflowServer, proxy: FaultyProxy
) -> None:
    late = iter([3.0, 3.0, 3.0])  # seconds, beyond the client's 2
    proxy.delay_s = lambda path: next(late, 0.0) if path.endswith("runs/create") else 0.0
    plan = make_plan(tmp_path, *SMALL)
    tracker, journal = tracked_journal(proxy.uri, "late", tmp_path, plan)
    feed_in_rounds(journal, plan, pause_s=1.5)
    assert tracker.close("FINISHED", timeout_s=100), tracker.error
    assert next(late, None) is None
    assert_complete(server.uri, "late")


def test_a_server_that_never_answers_holds_up_neither_training_nor_the_end(
    tmp_path: Path, server: MlflowServer, proxy: FaultyProxy
) -> None:
    proxy.fault = lambda path: "hang"
    plan = make_plan(tmp_path, *SMALL)
    tracker, journal = tracked_journal(proxy.uri, "hang", tmp_path, plan)
    started = time.monotonic()
    feed_in_rounds(journal, plan, pause_s=0.0)
    assert time.monotonic() - started < 2
    assert not tracker.close("FINISHED", timeout_s=3)
    assert time.monotonic() - started < 8
    assert tracker.error
    copy(server.uri, "hang", plan, Journal(Storage.open(str(tmp_path)), "low_data"))
    assert_complete(server.uri, "hang")


def test_a_server_killed_and_started_again_gets_everything(tmp_path: Path) -> None:
    server = MlflowServer(tmp_path)
    server.start()
    plan = make_plan(tmp_path, *SMALL)
    tracker, journal = tracked_journal(server.uri, "killed", tmp_path / "storage", plan)
    try:
        for last in range(1, 7):
            for trial in plan.trials:
                journal.record_points([trial], points(last))
            time.sleep(0.3)
            if last == 2:
                server.kill()  # in the middle of its writing
            if last == 5:
                assert tracker.error
                server.start()
        for trial in plan.trials:
            journal.record_end(trial, v.STATUS_OK, {}, "a note")
        assert tracker.close("FINISHED", timeout_s=100), tracker.error
        assert_complete(server.uri, "killed")
    finally:
        server.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_store_on_a_full_disk_gets_everything_once_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)], check=True)
    try:
        uri = f"sqlite:///{disk / 'mlflow.db'}"
        plan = make_plan(tmp_path, *SMALL)
        tracker, journal = tracked_journal(uri, "full", tmp_path / "storage", plan)
        for trial in plan.trials:
            journal.record_points([trial], points(1))
        wait_until(lambda: len(runs_if_any(uri, "full")) == 9)
        with pytest.raises(OSError, match="No space left"):
            (disk / "ballast").write_bytes(bytes(2**26))
        for trial in plan.trials:
            journal.record_points([trial], points(3000))
        wait_until(lambda: "full" in (tracker.error or ""))
        (disk / "ballast").unlink()
        for trial in plan.trials:
            journal.record_end(trial, v.STATUS_OK, {}, "a note")
        assert tracker.close("FINISHED", timeout_s=100), tracker.error
        assert_complete(uri, "full", last_step=3000)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def runs_if_any(uri: str, experiment: str) -> list[Any]:
    return runs(uri, experiment) if MlflowClient(uri).get_experiment_by_name(experiment) else []


def test_a_run_that_somebody_deletes_holds_up_no_other(tmp_path: Path, server: MlflowServer) -> None:
    plan = make_plan(tmp_path, *SMALL)
    tracker, journal = tracked_journal(server.uri, "deleted", tmp_path, plan)
    for trial in plan.trials:
        journal.record_points([trial], points(1))
    wait_until(lambda: len(runs_if_any(server.uri, "deleted")) == 9)
    deleted = plan.trials[0].key
    (run,) = [r for r in trial_runs(server.uri, "deleted") if r.data.tags[v.TAG_TRIAL_KEY] == deleted]
    MlflowClient(server.uri).delete_run(run.info.run_id)
    feed_in_rounds(journal, plan, pause_s=0.1)
    assert not tracker.close("FINISHED", timeout_s=30)
    assert deleted in (tracker.error or "")
    others = trial_runs(server.uri, "deleted")
    assert len(others) == 7
    assert all(history(server.uri, r) == expected(6) for r in others)
    copy(server.uri, "deleted", plan, journal)  # the next session makes it again
    assert_complete(server.uri, "deleted")


def test_what_another_machine_left_running_is_ended_where_its_journal_is_ours(
    tmp_path: Path, server: MlflowServer
) -> None:
    plan = make_plan(tmp_path, *SMALL)
    copy(server.uri, "moved", plan, journal_of(tmp_path, plan, 3, ended=False), "RUNNING")
    for run in runs(server.uri, "moved"):
        if v.TAG_DRIVER in run.data.tags:
            assert run.data.tags[v.TAG_DRIVER] == this_process()
            MlflowClient(server.uri).set_tag(run.info.run_id, v.TAG_DRIVER, "elsewhere:7:x:1")
    other = make_plan(tmp_path, *SMALL, "--learning-rate", "0.5")
    copy(server.uri, "moved", other, journal_of(tmp_path / "another storage", other, 3, ended=True))
    assert {r.info.status for r in runs(server.uri, "moved") if r.data.tags[v.TAG_STUDY_KEY] == plan.study.key} == {
        "RUNNING"  # a driver with another storage cannot know
    }
    copy(server.uri, "moved", other, journal_of(tmp_path, other, 3, ended=True))
    assert {r.info.status for r in runs(server.uri, "moved") if r.data.tags[v.TAG_STUDY_KEY] == plan.study.key} == {
        "KILLED"
    }


def test_records_whose_trial_or_study_is_damaged_wait_for_it(tmp_path: Path, server: MlflowServer) -> None:
    plan = make_plan(tmp_path, *SMALL)
    journal = journal_of(tmp_path, plan, 6, ended=True)
    damaged = [r for r in journal.records if not isinstance(r, StudyRecord | TrialRecord)]
    tracker = Tracker(server.uri, "damaged", keys(plan), damaged)
    time.sleep(1)
    tracker.feed([r for r in journal.records if r not in damaged])
    assert tracker.close("FINISHED", timeout_s=60), tracker.error
    assert_complete(server.uri, "damaged")


def sync(*options: str, exit_code: int = 0) -> str:
    command = [sys.executable, "-m", "cvit.engine.sync", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_journal_is_copied_by_hand(tmp_path: Path, server: MlflowServer) -> None:
    plan = make_plan(tmp_path, *SMALL)
    journal_of(tmp_path, plan, 6, ended=True)
    half = make_plan(tmp_path, *SMALL, "--learning-rate", "0.5")
    journal_of(tmp_path, half, 3, ended=False)
    options = ("--storage", str(tmp_path), "--tracking-uri", server.uri)
    assert "low_data: 16 trials, 8 of them ended, are in MLflow" in sync(*options)
    first = {run.info.run_id: (run.info.status, run.info.end_time) for run in trial_runs(server.uri, "low_data")}
    by_study: dict[str, set[str]] = {}
    for run in runs(server.uri, "low_data"):
        by_study.setdefault(run.data.tags[v.TAG_STUDY_KEY], set()).add(run.info.status)
    assert by_study == {plan.study.key: {"FINISHED"}, half.study.key: {"KILLED"}}
    sync(*options, "--sweep", "low_data")
    again = {run.info.run_id: (run.info.status, run.info.end_time) for run in trial_runs(server.uri, "low_data")}
    assert {key: value for key, value in again.items() if value[0] == "FINISHED"}.items() <= first.items()
    assert again.keys() == first.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--storage", "nowhere"), "has no journal"),
        (("--storage", "STORAGE", "--sweep", "head_count"), "'head_count' has no journal in storage"),
        (("--storage", "STORAGE", "--tracking-uri", "ftp://host"), "tracking URI 'ftp://host' is not valid"),
        (("--storage", "STORAGE", "--tracking-uri", "none"), "tracking URI 'none': there is no store to copy to"),
        (("--storage", "STORAGE", "--tracking-uri", "http://127.0.0.1:9"), "127.0.0.1:9 cannot be reached"),
        (("--storage", "wrong://place"), "cannot be opened"),
        (("--colour", "red"), "--colour"),
    ],
)
def test_sync_answers_bad_input_in_one_line(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    journal_of(tmp_path, make_plan(tmp_path, *SMALL), 1, ended=True)
    said = sync(*(option.replace("STORAGE", str(tmp_path)) for option in options), exit_code=2)
    assert message in said
    assert len(said.strip().splitlines()) == 1
