"""MLflow stores as people leave them: renamed, moved, half deleted, edited by hand, made by an older MLflow."""

import contextlib
import json
import logging
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient

from cvit import vocabulary as v
from cvit.analysis import make_tables
from cvit.analysis.store.frames import Frames, LoadError
from cvit.analysis.store.mlflow import load_mlflow
from cvit.engine.tracking.tracker import Tracker
from cvit.records import EndRecord, PointsRecord, Record, StudyRecord, TrialRecord
from cvit.tracking import PARENT
from tests.support.mlflow_stores import OLDER_REVISION, empty_store, older_store, revision

STUDY = "5747d9"
RATES = (0.1, 0.2, 0.3)


def records() -> list[Record]:
    """A study of three trials, as its journal has it."""
    study = StudyRecord(
        study_key=STUDY,
        sweep="low_data",
        question="Is it so?",
        command="python sweeps/low_data.py",
        start_time_ms=1000,
        params={"depth": 1, "dataset": "digits"},
        cells=[{"data_fraction": list(RATES), "init_scheme": ["random"], "seed": [0]}],
        tags={v.TAG_TASK: v.TRAINING},
    )
    made: list[Record] = [study]
    for number, rate in enumerate(RATES):
        params = {"depth": 1, "dataset": "digits", "data_fraction": rate, "init_scheme": "random", "seed": 0}
        made += [
            TrialRecord(trial_key=f"trial{number}", study_key=STUDY, params=params, tags={}),
            PointsRecord(trial_key=f"trial{number}", points=[(v.TEST_ACCURACY, 4, rate, 2000 + number)]),
            EndRecord(trial_key=f"trial{number}", status=v.STATUS_OK, note="", time_ms=3000),
        ]
    return made


def copy(uri: str, sweep: str = "low_data") -> Tracker:
    tracker = Tracker(uri, sweep, {STUDY, *(f"trial{n}" for n in range(len(RATES)))}, records())
    assert tracker.close("FINISHED", timeout_s=60), tracker.error
    return tracker


class Store:
    """A store with the study in it, and what a person can do to it."""

    def __init__(self, folder: Path) -> None:
        self.uri, self.path = empty_store(folder), folder / "mlflow.db"
        copy(self.uri)
        self.client = MlflowClient(self.uri)
        experiment = self.client.get_experiment_by_name("low_data")
        assert experiment is not None
        self.experiment_id = experiment.experiment_id

    def runs(self) -> list[Any]:
        ids = [each.experiment_id for each in self.client.search_experiments()]
        return list(self.client.search_runs(ids, order_by=["attributes.start_time ASC"]))

    def study(self) -> Any:
        (run,) = [run for run in self.runs() if run.data.tags.get(v.TAG_ROLE) == v.ROLE_STUDY]
        return run

    def trial(self, number: int) -> Any:
        (run,) = [run for run in self.runs() if run.data.tags.get(v.TAG_TRIAL_KEY) == f"trial{number}"]
        return run

    def sql(self, query: str, *values: str) -> None:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            connection.execute(query, values)
            connection.commit()

    def remove_tag(self, run: Any, *tags: str) -> None:
        for tag in tags:
            self.client.delete_tag(run.info.run_id, tag)

    def everything(self) -> Any:
        """The runs with their status and parents, by key, and the measurements of trials."""
        keys = {run.info.run_id: run.data.tags.get(v.TAG_TRIAL_KEY, "study") for run in self.runs()}
        assert len(set(keys.values())) == len(keys), "a run is there twice"
        return {
            keys[run.info.run_id]: (run.info.status, keys.get(run.data.tags.get(PARENT, "")), run.data.metrics)
            for run in self.runs()
        }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Frames, Any]:
    store = Store(tmp_path_factory.mktemp("undisturbed"))
    return load_mlflow(store.uri), store.everything()


def rename(store: Store) -> None:
    store.client.rename_experiment(store.experiment_id, "my best idea")


def remove_roles(store: Store) -> None:
    for run in store.runs():
        store.remove_tag(run, v.TAG_ROLE)


def remove_study_keys_of_trials(store: Store) -> None:
    for number in range(len(RATES)):
        store.remove_tag(store.trial(number), v.TAG_STUDY_KEY, v.TAG_SWEEP)


def remove_study_key_of_study(store: Store) -> None:
    store.remove_tag(store.study(), v.TAG_STUDY_KEY, v.TAG_SWEEP, v.TAG_TASK, v.TAG_QUESTION, v.TAG_COMMAND)
    store.client.set_tag(store.study().info.run_id, v.TAG_QUESTION, "Is it so?")
    store.client.set_tag(store.study().info.run_id, v.TAG_COMMAND, "python sweeps/low_data.py")


def delete_parent(store: Store) -> None:
    store.client.delete_run(store.study().info.run_id)


def move_trial(store: Store) -> None:
    store.remove_tag(store.trial(0), PARENT)
    store.client.set_tag(store.trial(1).info.run_id, PARENT, store.trial(2).info.run_id)


def delete_parent_and_rename(store: Store) -> None:
    delete_parent(store)
    rename(store)


def edit_tags(store: Store) -> None:
    for number in range(len(RATES)):
        store.client.set_tag(store.trial(number).info.run_id, v.TAG_DIVERGED_STEP, "never")


HABITS = [
    rename,
    remove_roles,
    remove_study_keys_of_trials,
    remove_study_key_of_study,
    delete_parent,
    move_trial,
    delete_parent_and_rename,
    edit_tags,
]


@pytest.mark.parametrize("habit", HABITS)
def test_the_tables_find_everything_and_the_next_run_mends_it(
    store: Store, undisturbed: tuple[Frames, Any], habit: Callable[[Store], None]
) -> None:
    frames, everything = undisturbed
    habit(store)
    again = load_mlflow(store.uri)
    pd.testing.assert_frame_equal(again.studies, frames.studies)
    pd.testing.assert_frame_equal(again.trials, frames.trials)
    copy(store.uri)
    assert store.everything() == everything
    assert [e.name for e in store.client.search_experiments() if e.name != "Default"] == [
        "my best idea" if "rename" in habit.__name__ else "low_data"
    ]
    pd.testing.assert_frame_equal(load_mlflow(store.uri).trials, frames.trials)


def remove_trial_key(store: Store) -> None:
    store.remove_tag(store.trial(0), v.TAG_TRIAL_KEY)


def delete_trial(store: Store) -> None:
    store.client.delete_run(store.trial(0).info.run_id)


def remove_parameter(store: Store) -> None:
    store.sql("DELETE FROM params WHERE key = 'data_fraction' AND run_uuid = ?", store.trial(0).info.run_id)


def damage_parameter(store: Store) -> None:
    store.sql("UPDATE params SET value = 'x' WHERE key = 'data_fraction' AND run_uuid = ?", store.trial(0).info.run_id)


@pytest.mark.parametrize(
    ("habit", "reason"),
    [
        (remove_trial_key, "the tag cvit.trial_key is missing"),
        (delete_trial, ""),
        (remove_parameter, "the parameter data_fraction is missing"),
        (damage_parameter, "parameter data_fraction has the unreadable value 'x'"),
    ],
)
def test_a_trial_that_is_not_known_any_more_is_passed_over_with_a_line(
    store: Store, caplog: pytest.LogCaptureFixture, habit: Callable[[Store], None], reason: str
) -> None:
    habit(store)
    with caplog.at_level(logging.WARNING, logger="cvit.analysis.store.mlflow"):
        assert list(load_mlflow(store.uri).trials["trial_key"]) == ["trial1", "trial2"]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (reason != "")
    assert all(line.startswith("MLflow runs passed over: 1 (the first:") and line.endswith(reason) for line in lines)


@pytest.mark.parametrize("grid", ["", "not JSON", "{}", "[]", json.dumps([{"seed": 3}]), json.dumps([{"a": [1]}])])
def test_a_study_whose_grid_is_lost_is_passed_over_and_mended(
    store: Store, caplog: pytest.LogCaptureFixture, grid: str
) -> None:
    if grid:
        store.client.set_tag(store.study().info.run_id, v.TAG_GRID, grid)
    else:
        store.remove_tag(store.study(), v.TAG_GRID)
    with (
        caplog.at_level(logging.WARNING, logger="cvit.analysis.store.mlflow"),
        pytest.raises(LoadError, match="no study"),
    ):
        load_mlflow(store.uri)
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
        "the tag cvit.grid is missing or damaged",
        f"the run of study {STUDY} is gone or damaged; the sweep's next run mends it",
    ]
    copy(store.uri)
    assert len(load_mlflow(store.uri).trials) == len(RATES)


def test_what_is_in_the_trash_is_said_and_comes_back_with_the_next_run(
    store: Store, undisturbed: tuple[Frames, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    store.client.delete_experiment(store.experiment_id)
    assert make_tables.main(["--tracking-uri", store.uri]) == 2
    assert "holds no study but in its trash (low_data): restore it" in capsys.readouterr().err
    copy(store.uri)
    pd.testing.assert_frame_equal(load_mlflow(store.uri).trials, undisturbed[0].trials)
    for run in store.runs():
        store.client.delete_run(run.info.run_id)
    with pytest.raises(LoadError, match=r"in its trash \(low_data digits 5747d9\)"):
        load_mlflow(store.uri)
    copy(store.uri)
    pd.testing.assert_frame_equal(load_mlflow(store.uri).trials, undisturbed[0].trials)


def test_a_store_of_an_older_mlflow_is_read_and_stays_as_it_is(
    store: Store, undisturbed: tuple[Frames, Any], tmp_path: Path
) -> None:
    uri = older_store(tmp_path, store.uri)
    before = (tmp_path / "older.db").read_bytes()
    frames = load_mlflow(uri, lambda sweep: [v.TEST_ACCURACY])
    pd.testing.assert_frame_equal(frames.trials, undisturbed[0].trials)
    assert sorted(frames.curves["value"]) == list(RATES)
    assert (tmp_path / "older.db").read_bytes() == before and revision(uri) == OLDER_REVISION
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "older.db"]


def test_a_store_of_a_newer_mlflow_is_refused(store: Store) -> None:
    store.sql("UPDATE alembic_version SET version_num = '0123456789ab'")
    with pytest.raises(LoadError, match="was changed by a newer MLflow than"):
        load_mlflow(store.uri)
    assert revision(store.uri) == "0123456789ab"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("sqlite://mlflow.db", "three slashes"),
        ("mysql://me:s3cr3t@127.0.0.1:1/db", "cannot be reached"),
        ("http://host:port", "is not valid"),
        ("http://[::1", "is not valid"),
    ],
)
def test_what_cannot_be_read_is_refused_with_one_line(
    uri: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_tables.main(["--tracking-uri", uri]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1 and "s3cr3t" not in error


def test_a_server_that_cannot_be_reached_is_not_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(LoadError, match="Connection refused"):
        load_mlflow(uri)
    assert not caplog.records, "urllib3 says when it tries again"


def test_runs_without_any_tag_are_copied_again_and_none_is_deleted(
    store: Store, undisturbed: tuple[Frames, Any]
) -> None:
    before = {run.info.run_id for run in store.runs()}
    for run in store.runs():
        store.remove_tag(run, *(tag for tag in run.data.tags if tag.startswith("cvit.")))
    copy(store.uri)
    assert before < {run.info.run_id for run in store.runs()}
    pd.testing.assert_frame_equal(load_mlflow(store.uri).trials, undisturbed[0].trials)
