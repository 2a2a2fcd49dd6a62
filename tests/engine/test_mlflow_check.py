"""A tracking store that can never work is refused before a sweep trains, and one of an older MLflow is not changed
without the user's word."""

import contextlib
import http.server
import shutil
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import mlflow.store.db.utils as mlflow_schema
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from cvit.engine.sync import sync
from cvit.engine.tracking import mlflow_check
from cvit.engine.tracking.backend import backend_for, check_store
from cvit.errors import short_line
from cvit.parameters import ConfigError
from cvit.tracking_schema import _following, state_of
from tests.support.mlflow_stores import OLDER_REVISION, empty_store, older_store, revision
from tests.support.scripts import TINY, call, mlflow_runs, sweep

ONE_TRIAL = (*TINY, "--data-fraction", "0.1", "--seeds", "1", "--init-scheme", "random")


def refusal(uri: str, may_upgrade: bool = False) -> str:
    try:
        backend_for(uri)
        check_store(uri, may_upgrade)
    except ConfigError as error:
        return str(error)
    return "is taken"


def test_the_newest_schema_is_the_one_that_mlflow_expects() -> None:
    assert [name for name, following in _following().items() if not following] == [
        mlflow_schema._get_latest_schema_revision()
    ]
    assert _following()[OLDER_REVISION]


def test_a_sweep_leaves_a_store_of_an_older_mlflow_alone_unless_told_otherwise(tmp_path: Path) -> None:
    """MLflow itself would change it while it opens it."""
    uri = older_store(tmp_path)
    before = (tmp_path / "older.db").read_bytes()
    ended = call(tmp_path, *ONE_TRIAL, "--tracking-uri", uri)
    assert ended.exit_code == 2 and not (tmp_path / "storage").exists()
    (line,) = ended.errors.splitlines()
    assert "was made by an older MLflow" in line and "--upgrade-store" in line
    assert (tmp_path / "older.db").read_bytes() == before
    with pytest.raises(ConfigError, match="--upgrade-store"):
        sync(storage=str(tmp_path), tracking_uri=uri)
    assert revision(uri) == OLDER_REVISION
    output = sweep(tmp_path, *ONE_TRIAL, "--tracking-uri", uri, "--upgrade-store")
    assert "incomplete" not in output and state_of(uri) == "current"
    shutil.copy(tmp_path / "older.db", tmp_path / "mlflow.db")
    assert len(mlflow_runs(tmp_path, "trial")) == 1


def test_a_store_of_a_newer_mlflow_is_refused(tmp_path: Path) -> None:
    uri = empty_store(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
        connection.commit()
    for may_upgrade in (False, True):
        assert "changed by a newer MLflow" in refusal(uri, may_upgrade)
    assert revision(uri) == "0123456789ab"


def test_a_store_that_another_driver_is_making_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes through all earlier schemas, which takes seconds."""
    uri, newest = empty_store(tmp_path), mlflow_schema._get_latest_schema_revision()

    def set_revision(name: str) -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
            connection.execute("DELETE FROM alembic_version")
            connection.executemany("INSERT INTO alembic_version VALUES (?)", [(name,)] if name else [])
            connection.commit()

    set_revision("")
    assert state_of(uri) == "unfinished"
    later = [OLDER_REVISION, *sorted(_following()[OLDER_REVISION]), newest]
    monkeypatch.setattr(mlflow_check.time, "sleep", lambda seconds: set_revision(later.pop(0)))
    check_store(uri, may_upgrade=False)
    assert later == []


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("sqlite://mlflow.db", "three slashes"),
        ("sqlite:///", "three slashes"),
        ("sqlite:///:memory:", "keeps nothing"),
        ("sqlite:///folder", "is a folder"),
        ("sqlite:///text.db", "file is not a database"),
        ("sqlite:///foreign.db", "tables of another kind"),
        ("sqlite+nosuch:///mlflow.db", "Can't load plugin"),
        ("postgresql+nosuch://h/db", "Can't load plugin"),
        ("mssql+pyodbc://h/db", "driver is not installed"),
        ("mysql://me:s3cr3t@h/db", "driver is not installed"),
        ("postgresql+asyncpg://h/db", "driver is not installed"),
        ("file:mlruns", "must begin with"),
        ("mlruns", "must begin with"),
        ("http://", "is not valid"),
        ("http://host:port", "is not valid"),
        ("http://me:s3cr3t/x@host", "is not valid"),
        ("http://[::1", "is not valid"),
        ("postgresql://me:s3 cr3t@host/db", "%20 for a blank"),
    ],
)
def test_a_store_that_can_never_work_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.db").write_text("This is no database, but a text that is longer than its header.\n" * 10)
    with contextlib.closing(sqlite3.connect("foreign.db")) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
    names = sorted(path.name for path in tmp_path.iterdir())
    text = refusal(uri)
    assert reason in text and "\n" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    ended = call(tmp_path, *ONE_TRIAL, "--tracking-uri", uri)
    assert ended.exit_code == 2 and len(ended.errors.splitlines()) == 1 and "s3cr3t" not in ended.errors
    assert not (tmp_path / "storage").exists()


@contextlib.contextmanager
def server_that_answers(status: int, body: bytes) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (401, b"", "401 Unauthorized: set MLFLOW_TRACKING_USERNAME"),
        (403, b"Invalid Host header", "403 Forbidden"),
        (404, b"{}", "404 Not Found: is this the address"),
        (200, b"<html>Sign in</html>", "no MLflow server"),
    ],
)
def test_a_server_that_will_never_take_the_runs_is_refused(status: int, body: bytes, reason: str) -> None:
    with server_that_answers(status, body) as uri:
        assert reason in refusal(uri)


@pytest.mark.parametrize("status", [200, 429, 500, 503])
def test_a_server_that_may_take_them_later_is_let_pass(status: int) -> None:
    with server_that_answers(status, b'{"experiments": []}') as uri:
        check_store(uri, may_upgrade=False)


def test_a_server_that_cannot_be_reached_or_is_silent_is_let_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_check, "_ANSWER_TIMEOUT_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        check_store(f"http://127.0.0.1:{silent.getsockname()[1]}", may_upgrade=False)
        silent.listen()
        check_store(f"http://127.0.0.1:{silent.getsockname()[1]}", may_upgrade=False)


def test_a_locked_store_is_let_pass(tmp_path: Path) -> None:
    uri = empty_store(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        check_store(uri, may_upgrade=False)


def error_of(uri: str) -> Exception:
    try:
        MlflowClient(uri).get_experiment_by_name("a sweep whose name is so long that the line has to be shortened")
    except MlflowException as error:
        return error
    raise AssertionError("there is no error")


def test_a_line_that_is_shortened_keeps_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
        refused = error_of(nobody)
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, nobody)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "")
        proxy = error_of("http://mlflow.example.org:5000")
        check_store("http://mlflow.example.org:5000", may_upgrade=False)  # a proxy that is down may be up later
    for error, reasons in ((refused, ["Connection refused"]), (proxy, ["ProxyError", "Connection refused"])):
        assert len(str(error)) > 200
        line = short_line(error, 200)
        assert len(line) <= 200 and line.startswith("API request to http://")
        assert all(reason in line for reason in reasons), line
    assert short_line(ValueError("a\nb"), 200) == "a b"
    assert short_line(ValueError("x" * 300 + " [SQL: SELECT " + "y" * 300), 400) == "x" * 300
