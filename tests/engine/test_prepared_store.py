"""A new MLflow store is a copy of a prepared one, and equals a store that MLflow has made by itself."""

import concurrent.futures
import contextlib
import os
import sqlite3
import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cvit.engine.tracking import prepared_store
from cvit.engine.tracking.backend import backend_for
from cvit.engine.tracking.prepared_store import provide_store
from cvit.tracking_schema import state_of
from tests.support.backend_contract import STUDY


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a prepared store, which took MLflow's migrations once."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        prepared_store.prepared_store()
    (store,) = (cache / "cvit").iterdir()
    return store


@pytest.fixture
def cache(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this test's own prepared store."""
    folder = tmp_path / "cache" / "cvit"
    folder.mkdir(parents=True)
    (folder / prepared.name).write_bytes(prepared.read_bytes())
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent))
    return folder


def contents(path: Path) -> set[tuple[str, ...]]:
    """Every table, index and row of a database, without the order of constraints in a table, which MLflow changes from
    store to store, and without the time and the place of its default experiment."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        statements = list(connection.iterdump())
    rows = {("rows", line) for line in statements if line.startswith("INSERT") and '"experiments"' not in line}
    schema = {
        tuple(sorted(part.strip().rstrip(",") for part in line.split("\n")))
        for line in statements
        if not line.startswith("INSERT")
    }
    return rows | schema


def forbid_migrations(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("MLflow's migrations run")

    monkeypatch.setattr("mlflow.store.db.utils._upgrade_db", refuse)


def test_a_copy_equals_a_store_that_mlflow_made(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MlflowClient(f"sqlite:///{tmp_path / 'theirs.db'}").search_experiments()
    forbid_migrations(monkeypatch)
    ours = f"sqlite:///{tmp_path / 'ours.db'}"
    provide_store(ours)
    assert state_of(ours) == "current"
    (experiment,) = MlflowClient(ours).search_experiments()
    assert experiment.name == "Default" and experiment.experiment_id == "0"
    assert contents(tmp_path / "ours.db") == contents(tmp_path / "theirs.db")
    assert (tmp_path / "ours.db").stat().st_mode == (tmp_path / "theirs.db").stat().st_mode
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"


def test_a_tracker_opens_a_new_store_without_migrations(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_migrations(monkeypatch)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    backend_for(uri).connect("low_data", STUDY)
    assert MlflowClient(uri).get_experiment_by_name("low_data") is not None


@pytest.mark.parametrize("name", ["sqlite:///nowhere/mlflow.db", "http://127.0.0.1:1", "sqlite:///:memory:"])
def test_only_a_file_that_is_not_there_yet_is_provided(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    provide_store(name)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    (tmp_path / "mlflow.db").write_bytes(b"")
    provide_store("sqlite:///mlflow.db")
    assert (tmp_path / "mlflow.db").read_bytes() == b"", "somebody's file stays as it is"
    (tmp_path / "mlflow.db").unlink()
    provide_store("sqlite:///mlflow.db?timeout=20")
    assert state_of("sqlite:///mlflow.db") == "current"


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_prepared_store_is_made_anew(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    (store,) = cache.iterdir()
    whole = store.read_bytes()
    middle = len(whole) // 2
    broken = {"cut": whole[:middle], "changed": whole[:middle] + b"?" + whole[middle + 1 :], "empty": b""}[damage]
    store.write_bytes(broken)
    monkeypatch.setattr(prepared_store, "_new_store", lambda: whole)
    provide_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert (tmp_path / "mlflow.db").read_bytes() == whole
    assert [path.read_bytes() for path in cache.iterdir()] == [whole]


def test_where_nothing_can_be_prepared_mlflow_makes_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    def fail() -> bytes:
        raise RuntimeError("a migration fails")

    monkeypatch.setattr(prepared_store, "_new_store", fail)
    provide_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert not (tmp_path / "mlflow.db").exists()
    monkeypatch.setattr(prepared_store, "_new_store", lambda: b"content")
    provide_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert (tmp_path / "mlflow.db").read_bytes() == b"content", "a cache that cannot be written is no obstacle"


def test_many_drivers_at_once_make_one_store(cache: Path, tmp_path: Path) -> None:
    """Threads race for the file; whoever comes second leaves what is there, which may have runs already."""
    path = tmp_path / "mlflow.db"
    inodes: set[int] = set()

    def provide(_: int) -> None:
        provide_store(f"sqlite:///{path}")
        inodes.add(os.stat(path).st_ino)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(provide, range(64)))
    assert len(inodes) == 1 and state_of(f"sqlite:///{path}") == "current"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["cache", "mlflow.db"]


def test_drivers_that_prepare_it_at_the_same_time_all_have_a_whole_one(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may have made one; whichever is found later is whole."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = [prepared.read_bytes() + bytes([number]) for number in range(4)]
    barrier, left = threading.Barrier(4), list(made)

    def new_store() -> bytes:
        barrier.wait()
        return left.pop()

    monkeypatch.setattr(prepared_store, "_new_store", new_store)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(lambda _: prepared_store.prepared_store(), range(4))) == sorted(made)
    assert prepared_store.prepared_store() in made
    assert {path.read_bytes() for path in (tmp_path / "cache" / "cvit").iterdir()} == set(made)
