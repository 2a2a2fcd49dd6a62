"""MLflow stores without the wait for MLflow, which takes seconds to make the tables of each: empty ones, and ones as an
older MLflow has left them."""

import contextlib
import functools
import sqlite3
import tempfile
from pathlib import Path

import mlflow.store.db.utils as mlflow_schema
from alembic import command
from mlflow import MlflowClient
from mlflow.store.tracking.dbmodels.initial_models import Base

OLDER_REVISION = "acf3f17fdcc7"
"""The schema of MLflow 2.9 (2023)."""


def empty_store(folder: Path) -> str:
    """The URI of a new SQLite store in a folder, with MLflow's tables in it."""
    path = folder / "mlflow.db"
    path.write_bytes(_empty_database())
    return f"sqlite:///{path}"


@functools.cache
def _empty_database() -> bytes:
    with tempfile.TemporaryDirectory(prefix="cvit-") as name:
        path = Path(name) / "mlflow.db"
        MlflowClient(f"sqlite:///{path}").search_experiments()
        return path.read_bytes()


def older_store(folder: Path, uri: str = "") -> str:
    """The URI of a new SQLite store in a folder as MLflow 2.9 made it, with the rows of another store."""
    path = folder / "older.db"
    path.write_bytes(_older_database())
    if uri:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("ATTACH ? AS later", (uri.removeprefix("sqlite:///"),))
            for table in ("experiments", "experiment_tags", "runs", "params", "metrics", "latest_metrics", "tags"):
                columns = ", ".join(_columns(connection, table) & _columns(connection, f"later.{table}"))
                connection.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM later.{table}")
            connection.commit()
    return f"sqlite:///{path}"


def revision(uri: str) -> str:
    """The revision of a SQLite store's schema."""
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        return connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
    schema, _, name = table.rpartition(".")
    return {row[0] for row in connection.execute("SELECT name FROM pragma_table_info(?, ?)", (name, schema or "main"))}


@functools.cache
def _older_database() -> bytes:
    with tempfile.TemporaryDirectory(prefix="cvit-") as name:
        path = Path(name) / "mlflow.db"
        engine = mlflow_schema.create_sqlalchemy_engine(f"sqlite:///{path}")
        Base.metadata.create_all(engine)
        config = mlflow_schema._get_alembic_config(f"sqlite:///{path}")
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, OLDER_REVISION)
        engine.dispose()
        return path.read_bytes()
