"""The copy of the journal in a real MLflow store: complete, once, whatever happens in between."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cvit import vocabulary as v
from cvit.engine.recording.lease import LeaseLost
from cvit.engine.terminal.preflight import check_tracking_uri
from cvit.engine.tracking.mlflow_views import AXES, CURVES, TABLE, TAG_PREFIX, views
from cvit.engine.tracking.tracker import Tracker
from cvit.parameters import ConfigError
from cvit.records import PointsRecord, StudyRecord, TrialRecord
from tests.support.fake_runs import START_MS, copy, expected, history, journal_of, keys, points, runs, trial_runs
from tests.support.mlflow_stores import empty_store
from tests.support.plans import SMALL, make_plan

LONGEST_EXPERIMENT_TAG = 5000
"""Characters that MLflow's stores take."""


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store that the tests share, each with an experiment of its own."""
    return empty_store(tmp_path_factory.mktemp("mlflow"))


def test_every_measurement_arrives_once_however_often_it_is_copied(tmp_path: Path, uri: str) -> None:
    plan = make_plan(tmp_path, *SMALL)
    journal = journal_of(tmp_path, plan, 1200, ended=False)  # more than one call of MLflow's takes
    copy(uri, "often", plan, journal, "KILLED")
    first = {run.info.run_id for run in runs(uri, "often")}
    assert {run.info.status for run in runs(uri, "often")} == {"KILLED"}
    journal = journal_of(tmp_path, plan, 1300, ended=True)
    copy(uri, "often", plan, journal)
    copy(uri, "often", plan, journal)
    assert {run.info.run_id for run in runs(uri, "often")} == first
    assert {run.info.status for run in runs(uri, "often")} == {"FINISHED"}
    trials = trial_runs(uri, "often")
    assert len(trials) == 8
    assert all(history(uri, run) == expected(1300) for run in trials[:2])
    assert {run.info.start_time for run in trials} == {START_MS + 1}
    assert {(r.data.tags[v.TAG_STATUS], r.data.tags[v.TAG_DEVICE], r.data.tags[v.TAG_NOTE]) for r in trials} == {
        (v.STATUS_OK, "cpu", "a note")
    }


def test_runs_whose_parameters_the_version_before_wrote_otherwise_are_completed(tmp_path: Path, uri: str) -> None:
    """It wrote 0 for `auto`, MLflow refuses to change a parameter, and here the journal was lost in between."""
    plan = make_plan(tmp_path, *SMALL)
    records = [
        replace(record, params={**record.params, "inner_dim": 0}) if isinstance(record, TrialRecord) else record
        for record in journal_of(tmp_path / "before", plan, 3, ended=False).records
    ]
    tracker = Tracker(uri, "numbers", keys(plan), records)
    assert tracker.close("KILLED", timeout_s=60), tracker.error
    copy(uri, "numbers", plan, journal_of(tmp_path / "after", plan, 5, ended=True))
    trials = trial_runs(uri, "numbers")
    assert len(trials) == 8 and {run.data.params["inner_dim"] for run in trials} == {"0"}
    assert {run.info.status for run in trials} == {"FINISHED"}
    assert all(history(uri, run) == expected(5) for run in trials)


def test_runs_that_a_dead_driver_left_running_are_taken_up_or_ended(tmp_path: Path, uri: str) -> None:
    plan = make_plan(tmp_path, *SMALL)
    journal = journal_of(tmp_path, plan, 3, ended=False)
    copy(uri, "dead", plan, journal, "RUNNING")  # as a driver leaves them that is killed
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for run in runs(uri, "dead"):
        if v.TAG_DRIVER in run.data.tags:
            MlflowClient(uri).set_tag(run.info.run_id, v.TAG_DRIVER, f"{socket.gethostname()}:{dead.pid}")
    other = make_plan(tmp_path, *SMALL, "--learning-rate", "0.5")
    grown = journal_of(tmp_path, other, 3, ended=True)
    copy(uri, "dead", other, grown)
    by_study = {run.data.tags[v.TAG_STUDY_KEY]: set() for run in runs(uri, "dead")}
    for run in trial_runs(uri, "dead"):
        by_study[run.data.tags[v.TAG_STUDY_KEY]].add(run.info.status)
    assert by_study == {plan.study.key: {"KILLED"}, other.study.key: {"FINISHED"}}
    copy(uri, "dead", plan, journal_of(tmp_path, plan, 5, ended=True))
    assert {run.info.status for run in runs(uri, "dead")} == {"FINISHED"}
    assert len(runs(uri, "dead")) == 2 * 9


def test_a_living_drivers_runs_are_left_alone(tmp_path: Path, uri: str) -> None:
    plan = make_plan(tmp_path, *SMALL)
    copy(uri, "alive", plan, journal_of(tmp_path, plan, 3, ended=False), "RUNNING")  # this process lives
    other = make_plan(tmp_path, *SMALL, "--learning-rate", "0.5")
    copy(uri, "alive", other, journal_of(tmp_path, other, 3, ended=True))
    statuses = {r.info.status for r in runs(uri, "alive") if r.data.tags[v.TAG_STUDY_KEY] == plan.study.key}
    assert statuses == {"RUNNING"}


def test_an_unreachable_server_delays_the_copy_and_loses_nothing(tmp_path: Path, uri: str) -> None:
    plan = make_plan(tmp_path, *SMALL)
    journal = journal_of(tmp_path, plan, 5, ended=True)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    started = time.monotonic()
    tracker = Tracker(nobody, "later", keys(plan), list(journal.records))
    tracker.feed([])
    assert time.monotonic() - started < 1  # feeding never waits for the server
    assert not tracker.close("FINISHED", timeout_s=1)
    assert tracker.error
    copy(uri, "later", plan, journal)
    assert len(trial_runs(uri, "later")) == 8
    assert all(history(uri, run) == expected(5) for run in trial_runs(uri, "later"))


@pytest.mark.parametrize(
    ("task", "axes", "group", "answer"),
    [
        (v.TRAINING, ["data_fraction", "init_scheme", "num_heads", "patch_size"], "init_scheme", v.TEST_ACCURACY),
        (v.EXPRESSIVITY, ["kernel_size", "num_heads", "patch_size"], "num_heads", v.EXPRESSIVITY_ERROR),
        (v.DEPTH, ["depth", "kernel_size", "num_heads"], "num_heads", v.EXPRESSIVITY_ERROR),
    ],
)
def test_views_show_single_trials_and_span_all_axes(task: str, axes: list[str], group: str, answer: str) -> None:
    """MLflow's UI was seen to read these fields (docs/MLFLOW.md)."""
    texts = views(study("a1b2", axes, {v.TAG_TASK: task}), ["answer/a mean"])
    by_view = {tag.removeprefix("mlflow.sharedViewState."): json.loads(text) for tag, text in texts.items()}
    assert set(by_view) == {CURVES, AXES, TABLE}
    assert all(len(text) < LONGEST_EXPERIMENT_TAG for text in texts.values())
    states = {key: json.loads(view["state"]) for key, view in by_view.items()}
    for key in (CURVES, AXES):
        state = states[key]
        assert state["searchFilter"] == "tags.`cvit.role` = 'trial' AND tags.`cvit.study_key` = 'a1b2'"
        # A group would average over the other axes, and has a colour of the browser's; sorted by time, trials are
        # folded into their study.
        assert "groupBy" not in state and state["orderByKey"] == "params.`seed`"
        sections = {section["uuid"] for section in state["compareRunSections"]}
        assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == sections
        ids = [chart["uuid"] for chart in state["compareRunCharts"]]
        assert len(set(ids)) == len(ids)
    (parallel,) = states[AXES]["compareRunCharts"]
    assert (parallel["type"], parallel["selectedMetrics"]) == ("PARALLEL", [answer])
    assert set(parallel["selectedParams"]) == set(axes) and parallel["selectedParams"][-1] == group
    curves = [chart for chart in states[CURVES]["compareRunCharts"] if chart["type"] == "LINE"]
    assert curves and {chart["xAxisKey"] for chart in curves} == {"step"}
    assert states[TABLE]["selectedColumns"] == ["attributes.`Dataset`", "metrics.`answer/a mean`"]


def test_the_study_of_a_task_that_is_not_known_here_has_no_views() -> None:
    assert views(study("a1b2", ["num_heads"], {v.TAG_TASK: "of a later version"})) == {}


def study(key: str, axes: Iterable[str], tags: dict[str, str]) -> StudyRecord:
    grid = {axis: [1] for axis in (*axes, "seed")}
    return StudyRecord(
        study_key=key,
        sweep="s",
        question="q",
        command="c",
        start_time_ms=START_MS,
        params={},
        cells=[grid],
        tags=tags,
    )


def test_an_experiment_has_its_views_and_the_page_opens_one(tmp_path: Path, uri: str) -> None:
    plan = make_plan(tmp_path, *SMALL)
    tracker = copy(uri, "viewed", plan, journal_of(tmp_path, plan, last_step=2, ended=True))
    experiment = MlflowClient(uri).get_experiment_by_name("viewed")
    assert experiment is not None
    axes = sorted(axis for axis in plan.study.grid if axis != "seed")  # the journal sorts names
    expected = views(study(plan.study.key, axes, {}))
    stored = {tag: json.loads(text)["state"] for tag, text in experiment.tags.items() if tag in expected}
    assert stored == {tag: json.loads(text)["state"] for tag, text in expected.items()}
    command, page, click = tracker.how_to_look()
    assert command == f"Runs in MLflow:      mlflow ui --backend-store-uri {uri}"
    beginning = "... and then:        http://127.0.0.1:5000/#/experiments/"
    assert click == "... or by a click:   Model training at the upper left, once; then the experiment"
    assert page.startswith(f"{beginning}{experiment.experiment_id}/runs?")
    assert f"viewStateShareKey={CURVES}" in page and TAG_PREFIX + CURVES in experiment.tags
    # MLflow takes the filter, and it finds the trials.
    text = json.loads(expected[TAG_PREFIX + CURVES])["state"]
    trials = MlflowClient(uri).search_runs([experiment.experiment_id], json.loads(text)["searchFilter"])
    assert {run.data.tags[v.TAG_TRIAL_KEY] for run in trials} == {trial.key for trial in plan.trials}


def test_a_trial_that_failed_and_then_succeeds_ends_as_succeeded(tmp_path: Path, uri: str) -> None:
    plan = make_plan(tmp_path, *SMALL)
    journal = journal_of(tmp_path, plan, 5, ended=False)
    for trial in plan.trials:
        journal.record_end(trial, v.STATUS_FAILED, {}, "ValueError: broken")
    copy(uri, "retried", plan, journal, "FAILED")
    assert {run.info.status for run in runs(uri, "retried")} == {"FAILED"}
    assert {run.data.tags[v.TAG_NOTE] for run in trial_runs(uri, "retried")} == {"ValueError: broken"}
    for trial in plan.trials:
        journal.record_end(trial, v.STATUS_OK, {}, "well")
    copy(uri, "retried", plan, journal)
    assert {run.info.status for run in runs(uri, "retried")} == {"FINISHED"}
    assert {run.data.tags[v.TAG_STATUS] for run in trial_runs(uri, "retried")} == {v.STATUS_OK}


@pytest.mark.parametrize(
    "wrong", ["mlruns", "file:///tmp/x", "ftp://host", "", "sqlite", "sqlite:x.db", "sqlite:////no/such/folder/x.db"]
)
def test_wrong_tracking_uris_are_refused_without_opening_them(wrong: str) -> None:
    with pytest.raises(ConfigError, match="tracking URI"):
        check_tracking_uri(wrong)


@pytest.mark.parametrize(
    "right", ["sqlite:///mlflow.db", "http://127.0.0.1:5000", "postgresql+psycopg2://u@h/db", "none"]
)
def test_usable_tracking_uris_are_taken(right: str) -> None:
    check_tracking_uri(right)


def test_a_step_that_is_measured_again_in_a_later_session_is_there_once(tmp_path: Path, uri: str) -> None:
    plan = make_plan(tmp_path, *SMALL)
    copy(uri, "again", plan, journal_of(tmp_path / "before", plan, 5, ended=False), "RUNNING")
    # The journal has lost everything but two steps, and so have the checkpoints.
    journal = journal_of(tmp_path / "after", plan, 2, ended=False)
    tracker = Tracker(uri, "again", keys(plan), journal.records)
    journal.listen(tracker.feed)
    time.sleep(3)  # the runs are taken up
    for trial in plan.trials:
        journal.record_points([trial], [(v.VAL_ACCURACY, step, step / 1000, 9_999) for step in range(3, 6)])
        journal.record_points([trial], points(8))
        journal.record_end(trial, v.STATUS_OK, {}, "a note")
    assert tracker.close("FINISHED", timeout_s=60), tracker.error
    assert all(history(uri, run) == expected(8) for run in trial_runs(uri, "again"))


def lost() -> None:
    raise LeaseLost("another driver has it")


@pytest.mark.parametrize("outcome", ["KILLED", "FINISHED"])
def test_a_driver_that_lost_its_sweep_writes_nothing(tmp_path: Path, uri: str, outcome: str) -> None:
    name = f"lost-{outcome}"
    plan = make_plan(tmp_path, *SMALL)
    copy(uri, name, plan, journal_of(tmp_path / "before", plan, 3, ended=False), "RUNNING")
    before = [run.to_dictionary() for run in runs(uri, name)]
    tracker = Tracker(uri, name, keys(plan), journal_of(tmp_path, plan, 5, ended=True).records, lost)
    assert not tracker.close(outcome, timeout_s=60)
    assert tracker.error == "LeaseLost: another driver has it"
    assert [run.to_dictionary() for run in runs(uri, name)] == before


def test_a_driver_that_loses_its_sweep_later_leaves_its_runs_as_they_are(tmp_path: Path, uri: str) -> None:
    plan = make_plan(tmp_path, *SMALL)
    has_lost = threading.Event()
    journal = journal_of(tmp_path, plan, 3, ended=False)

    def is_copied(name: str) -> bool:
        return all(history(uri, run) == expected(3) for run in trial_runs(uri, name))

    tracker = Tracker(uri, "later lost", keys(plan), journal.records, lambda: lost() if has_lost.is_set() else None)
    journal.listen(tracker.feed)
    copied = deadline_s(60)
    while tracker.error or not is_there(uri, "later lost", 9) or not is_copied("later lost"):
        next(copied)
    has_lost.set()
    before = [run.to_dictionary() for run in runs(uri, "later lost")]
    for trial in plan.trials:
        journal.record_end(trial, v.STATUS_OK, {}, "a note")
    assert not tracker.close("KILLED", timeout_s=60)
    assert [run.to_dictionary() for run in runs(uri, "later lost")] == before


def is_there(uri: str, experiment: str, num_runs: int) -> bool:
    return MlflowClient(uri).get_experiment_by_name(experiment) is not None and len(runs(uri, experiment)) == num_runs


def deadline_s(seconds: float) -> Iterator[None]:
    """Waits a moment each time, and fails after so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.05)
        yield
    raise TimeoutError


def test_a_record_that_makes_no_sense_holds_up_no_other_and_is_said(tmp_path: Path, uri: str) -> None:
    plan = make_plan(tmp_path, *SMALL)
    records = journal_of(tmp_path, plan, 3, ended=True).records
    tracker = Tracker(uri, "senseless", keys(plan), records)
    tracker.feed([PointsRecord(trial_key="unknown", points=[])])
    assert not tracker.close("FINISHED", timeout_s=60)
    assert tracker.error == "a record of the journal: IndexError: list index out of range"
    assert len(trial_runs(uri, "senseless")) == 8
    assert all(history(uri, run) == expected(3) for run in trial_runs(uri, "senseless"))


@pytest.mark.parametrize("error", [SystemExit("gone"), MemoryError("none left")])
def test_a_thread_that_dies_does_not_look_as_if_all_were_copied(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The closing lines that follow are tested in test_tracker_process.py."""

    def dies(*_: object) -> bool:
        raise error

    monkeypatch.setattr(Tracker, "_take", dies)
    plan = make_plan(tmp_path, *SMALL)
    tracker = Tracker(uri, "dies", keys(plan), journal_of(tmp_path, plan, 3, ended=True).records)
    assert not tracker.close("FINISHED", timeout_s=60)
    assert tracker.error == f"{type(error).__name__}: {error}"
