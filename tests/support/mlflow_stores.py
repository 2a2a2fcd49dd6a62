"""Empty MLflow stores without the wait: MLflow takes seconds to make the tables of each."""

import functools
import tempfile
from pathlib import Path

from mlflow import MlflowClient


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
