"""Tells by which version of MLflow a database was last changed, without changing it and without importing MLflow.

MLflow brings a database that it opens to its own schema, if tables are missing. An older MLflow cannot open it any more
after that, so both the engine and the analysis look before they let MLflow open a store.
"""

import contextlib
import functools
import importlib.util
import re
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

State = Literal["absent", "empty", "foreign", "unfinished", "older", "current", "newer"]
"""The state of a database as an MLflow store: `foreign` has other tables only, `unfinished` has MLflow's first tables
and no version yet, as while it is made."""
_TABLES = {"experiments", "runs", "metrics"}
_VERSION_TABLE = "alembic_version"


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other URI."""
    match = re.match(r"(?i)sqlite(?:\+\w+)?:///([^?]*)", uri)
    return Path(unquote(match[1])) if match else None


def open_read_only(path: Path) -> sqlite3.Connection:
    """A connection to a SQLite file that cannot change it."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0)


def state_of(uri: str) -> State:
    """The state of a database; the errors are those of `state_and_revision`."""
    return state_and_revision(uri)[0]


def state_and_revision(uri: str) -> tuple[State, str | None]:
    """The state of a database, and the revision of its schema.

    Raises:
        sqlite3.Error: a file cannot be read as a database.
        ImportError: the driver of a server's database is not installed.
        sqlalchemy.exc.SQLAlchemyError: a server's database cannot be read.
    """
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        return "absent", None
    tables, revision = _contents_of_server(uri) if path is None else _contents_of_file(path)
    return _state(tables, revision), revision


def _state(tables: set[str], revision: str | None) -> State:
    if not tables:
        return "empty"
    if not tables >= _TABLES:
        return "foreign"
    if revision is None:
        return "unfinished"
    following = _following()
    if revision not in following:
        return "newer"
    return "older" if following[revision] else "current"


def _contents_of_file(path: Path) -> tuple[set[str], str | None]:
    """The names of a database's tables and the revision of its schema."""
    with contextlib.closing(open_read_only(path)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        row = (
            connection.execute(f"SELECT version_num FROM {_VERSION_TABLE}").fetchone()
            if _VERSION_TABLE in tables
            else None
        )
    return tables - {_VERSION_TABLE}, row[0] if row else None


def _contents_of_server(uri: str) -> tuple[set[str], str | None]:
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        tables = set(sqlalchemy.inspect(connection).get_table_names())
        query = sqlalchemy.text(f"SELECT version_num FROM {_VERSION_TABLE}")
        revision = connection.execute(query).scalar() if _VERSION_TABLE in tables else None
    return tables - {_VERSION_TABLE}, revision


@functools.cache
def _following() -> Mapping[str, set[str]]:
    """Every revision of the schema that the installed MLflow knows, with those that follow it; none the newest one.

    They are read from the texts of its migrations: importing these takes 4.5 s.
    """
    package = importlib.util.find_spec("mlflow")
    if package is None or package.origin is None:
        raise ImportError("No module named 'mlflow'")
    following: dict[str, set[str]] = {}
    for path in (Path(package.origin).parent / "store" / "db_migrations" / "versions").glob("[0-9a-f]*.py"):
        text = path.read_text()
        revisions = {
            name: re.findall(r"['\"](\w+)['\"]", line)
            for name, line in re.findall(r"(?m)^(revision|down_revision)\b[^=\n]*=(.*)$", text)
        }
        (revision,) = revisions["revision"]
        following.setdefault(revision, set())
        for before in revisions["down_revision"]:
            following.setdefault(before, set()).add(revision)
    return following
