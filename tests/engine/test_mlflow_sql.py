"""What is written to MLflow's database at once equals, row by row, what MLflow's client writes."""

import contextlib
import math
import random
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from cvit import vocabulary as v
from cvit.engine.tracking import mlflow_sql
from cvit.engine.tracking.backend import FAILED, FINISHED, RUNNING, Change, NewRun, Refused
from cvit.engine.tracking.mlflow import MlflowBackend
from cvit.engine.tracking.run_facts import DataUse
from cvit.engine.tracking.tracker import Tracker
from cvit.results import Point
from tests.support.backend_contract import STUDY
from tests.support.fake_runs import history, journal_of, keys, points, trial_runs
from tests.support.mlflow_stores import empty_store, revision
from tests.support.plans import SMALL, make_plan

NUMBERS = (0.0, -0.0, 0.25, 1e300, math.nan, math.inf, -math.inf)
METRICS = (v.VAL_ACCURACY, v.TRAIN_LOSS, "a name/with parts")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def connected(folder: Path, monkeypatch: pytest.MonkeyPatch, by_client: bool) -> tuple[MlflowBackend, str]:
    """A backend of an empty store, and the store's file."""
    folder.mkdir()
    uri = empty_store(folder)
    backend = MlflowBackend(uri)
    with monkeypatch.context() as patch:
        if by_client:
            patch.setattr(mlflow_sql, "KNOWN_REVISIONS", frozenset())
        backend.connect("low_data", STUDY)
    return backend, uri


def write_alone(backend: MlflowBackend, change: Change) -> str:
    """Writes a change as the tracker does to a backend that takes runs one by one."""
    run_id = change.run_id
    if run_id is None:
        assert change.new is not None
        run_id = backend.create(change.new)
    elif change.status == RUNNING:
        backend.set_status(run_id, RUNNING)
    backend.write(run_id, change.params, change.tags, change.points)
    if change.data is not None:
        backend.use_data(run_id, change.data)
    if change.status not in (None, RUNNING):
        backend.set_status(run_id, change.status, change.end_time_ms)
    return run_id


def random_rounds(seed: int) -> Iterator[list[dict[str, Any]]]:
    """What is new of ten runs in each of five rounds: measurements in any order, some of them twice, values that are
    not finite, tags that change, parameters, data sets, ends and beginnings anew."""
    draw = random.Random(seed)
    measured: dict[str, list[Point]] = {}
    for number in range(5):
        changes: list[dict[str, Any]] = []
        for key in draw.sample([f"trial{n}" for n in range(10)], 7):
            drawn: list[Point] = [
                (draw.choice(METRICS), draw.randrange(6), draw.choice(NUMBERS), 1000 + draw.randrange(3))
                for _ in range(draw.randrange(12))
            ]
            before = measured.setdefault(key, [])
            new = [point for point in drawn if not any(same(point, old) for old in before)]
            before += new
            share = draw.choice(["5 %", "20 %"])
            data = DataUse(f"digits {share}", "f00d", "digits", {"image_size": 8}, {"data_fraction": share})
            status = draw.choice([None, FINISHED, FAILED, RUNNING])
            changes.append(
                {
                    "key": key,
                    "params": {f"param{draw.randrange(4)}": True, f"round{number}": 0.1},
                    "tags": {draw.choice([v.TAG_NOTE, v.TAG_STATUS]): draw.choice(["", "ein Wörtchen", "x" * 9000])},
                    "points": new + new[:1],
                    "data": data if draw.random() < 0.5 else None,
                    "status": status,
                    "end_time_ms": 5000 + number if status in (FINISHED, FAILED) else None,
                }
            )
        yield changes


def same(one: Point, other: Point) -> bool:
    """Whether a database takes two measurements for the same: it has 0 for what is not a number."""
    return one == other or (one[:2] == other[:2] and one[3] == other[3] and all(map(math.isnan, (one[2], other[2]))))


def as_change(run_ids: dict[str, str], study_id: str, key: str, **news: Any) -> Change:
    tags = {v.TAG_ROLE: v.ROLE_TRIAL, v.TAG_TRIAL_KEY: key, "mlflow.user": "somebody"}
    new = NewRun(key=key, name=f"run {key}", parent_id=study_id, start_time_ms=1000, tags=tags)
    return Change(run_id=run_ids.get(key), new=None if key in run_ids else new, **news)


def contents(uri: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of a store, by table, with names in the place of what is drawn at random."""
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        names -= {"alembic_version"}
        columns = {table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")] for table in names}
        called = dict(
            connection.execute(
                "SELECT run_uuid, 'run ' || value FROM tags WHERE key IN (?, ?)", (v.TAG_TRIAL_KEY, v.TAG_STUDY_KEY)
            )
        )
        called |= dict(connection.execute("SELECT dataset_uuid, name || digest FROM datasets"))
        called |= {
            use: f"{called[source]} in {called[run]}"
            for use, source, run in connection.execute("SELECT input_uuid, source_id, destination_id FROM inputs")
        }
        times = ("creation_time", "last_update_time")
        folder = str(Path(uri.removeprefix("sqlite:///")).parent)

        def named(value: Any) -> Any:
            if not isinstance(value, str):
                return repr(value)
            for drawn, name in called.items():
                value = value.replace(drawn, name)
            return value.replace(folder, "folder")

        return {
            table: sorted(
                tuple(named(value) for name, value in zip(columns[table], row, strict=True) if name not in times)
                for row in connection.execute(f"SELECT * FROM {table}")
            )
            for table in names
        }


@pytest.mark.parametrize("seed", range(3))
def test_every_row_is_that_of_the_client(folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    stores = {}
    for by_client in (True, False):
        backend, uri = connected(folder / str(by_client), monkeypatch, by_client)
        study_tags = {v.TAG_ROLE: v.ROLE_STUDY, v.TAG_STUDY_KEY: STUDY.study_key}
        study = NewRun(key=STUDY.study_key, name="study", parent_id=None, start_time_ms=1000, tags=study_tags)
        study_id, run_ids = backend.create(study), dict[str, str]()
        for news in random_rounds(seed):
            changes = [as_change(run_ids, study_id, **new) for new in news]
            one_by_one = (write_alone(backend, change) for change in changes)
            ids = list(one_by_one if by_client else backend.write_together(changes))
            assert None not in ids
            run_ids |= {new["key"]: run_id for new, run_id in zip(news, ids, strict=True) if run_id is not None}
        stores[by_client] = contents(uri)
    assert {name: len(rows) for name, rows in stores[True].items() if rows}.keys() >= {
        *("runs", "tags", "params", "metrics", "latest_metrics", "datasets", "inputs", "input_tags", "experiments"),
    }
    for table, rows in stores[True].items():
        assert stores[False][table] == rows, table


def copied(uri: str, folder: Path, last_step: int) -> None:
    """Copies a journal of eight trials to a store."""
    plan = make_plan(folder, *SMALL)
    tracker = Tracker(uri, "low_data", keys(plan), journal_of(folder, plan, last_step, ended=True).records)
    assert tracker.close("FINISHED", timeout_s=60), tracker.error


def are_all_there(uri: str, last_step: int) -> bool:
    expected = sorted((step, value, time_ms) for _, step, value, time_ms in points(last_step))
    of_runs = trial_runs(uri, "low_data")
    return len(of_runs) == 8 and all(history(uri, run) == expected for run in of_runs)


def test_the_schema_of_the_installed_mlflow_is_known(folder: Path) -> None:
    """If this fails after an upgrade of MLflow: once the test above passes with the new revision, it is known."""
    assert revision(empty_store(folder)) in mlflow_sql.KNOWN_REVISIONS


def test_a_schema_that_is_not_known_is_left_to_the_client(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_runs(*_: object) -> None:
        raise AssertionError("not to be used")

    monkeypatch.setattr(mlflow_sql, "KNOWN_REVISIONS", frozenset({"0123456789ab"}))
    monkeypatch.setattr(mlflow_sql, "write_runs", write_runs)
    uri = empty_store(folder)
    copied(uri, folder / "storage", 3)
    assert are_all_there(uri, 3)


def test_a_transaction_whose_answer_is_lost_leaves_each_run_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_runs, calls = mlflow_sql.write_runs, list[int]()

    def without_answer(store: Any, experiment_id: str, runs: Sequence[mlflow_sql.RunRows]) -> None:
        write_runs(store, experiment_id, runs)
        calls.append(len(runs))
        raise ConnectionError("the connection is lost")

    monkeypatch.setattr(mlflow_sql, "write_runs", without_answer)
    uri = empty_store(folder)
    copied(uri, folder / "storage", 3)
    assert calls == [8]
    assert are_all_there(uri, 3)


def test_a_run_that_is_deleted_or_contradicts_holds_up_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, uri = connected(folder / "store", monkeypatch, by_client=False)
    study = NewRun(key=STUDY.study_key, name="study", parent_id=None, start_time_ms=1000, tags={})
    study_id = backend.create(study)
    nothing: dict[str, Any] = {"tags": {}, "data": None, "status": None, "end_time_ms": None}
    names = ("deleted", "contradicting", "good", "unusual")
    first = [as_change({}, study_id, name, params={"seed": 0}, points=[], **nothing) for name in names]
    run_ids = {name: run_id for name, run_id in zip(names, backend.write_together(first), strict=True) if run_id}
    assert set(run_ids) == set(names)
    MlflowClient(uri).delete_run(run_ids["deleted"])
    measured = [(v.VAL_ACCURACY, 1, 0.5, 1000)]
    params = {"contradicting": {"seed": 1}, "unusual": {"a / b": "2", "//": "3"}}
    again = [
        as_change(run_ids, study_id, name, params=params.get(name, {"seed": 0}), points=measured, **nothing)
        for name in names
    ]
    assert backend.write_together(again) == [None, None, run_ids["good"], None]
    for change in again[:2]:
        with pytest.raises(Refused):
            write_alone(backend, change)
    client = MlflowClient(uri)
    counts = {name: len(client.get_metric_history(run_ids[name], v.VAL_ACCURACY)) for name in names}
    assert counts == {"deleted": 0, "contradicting": 0, "good": 1, "unusual": 0}


def test_a_transaction_with_a_measurement_that_is_there_writes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, uri = connected(folder / "store", monkeypatch, by_client=False)
    study = NewRun(key=STUDY.study_key, name="study", parent_id=None, start_time_ms=1000, tags={})
    study_id = backend.create(study)
    nothing: dict[str, Any] = {"params": {}, "tags": {}, "data": None, "status": None, "end_time_ms": None}
    point: Point = (v.VAL_ACCURACY, 1, 0.5, 1000)
    (run_id,) = backend.write_together([as_change({}, study_id, "one", points=[point], **nothing)])
    assert run_id is not None
    again = [as_change({"one": run_id}, study_id, key, points=[point], **nothing) for key in ("two", "one")]
    with pytest.raises(MlflowException):
        backend.write_together(again)
    assert {run.key for run in backend.existing(set())} == {study_id, "one"}
    write_alone(backend, again[1])
    assert len(MlflowClient(uri).get_metric_history(run_id, v.VAL_ACCURACY)) == 1
