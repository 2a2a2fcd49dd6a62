"""A new SQLite store of MLflow, copied from an empty one that is prepared once per version of MLflow.

MLflow makes the tables of a new store by all its migrations since the first, which takes a second of the processor and
longer on a busy machine. The prepared store lies in the user's cache. `make` prepares it, else the first sweep does:
`python -m cvit.engine.tracking.prepared_store`.
"""

import contextlib
import hashlib
import logging
import os
import tempfile
import uuid
from importlib.metadata import version
from pathlib import Path

from cvit import folders
from cvit.engine.environment import prepare
from cvit.tracking_schema import sqlite_path

_DIGITS = 16
"""The number of characters of the checksum in the name of a prepared store."""
_MODE = 0o644
"""The permissions that SQLite gives a new file, less those that the user's mask takes away."""


def provide_store(uri: str) -> None:
    """Puts an empty store with MLflow's tables where a SQLite store is to be and no file is yet. For any other URI, and
    wherever that fails, nothing happens: MLflow then makes the store by itself."""
    path = sqlite_path(uri)
    if path is None or path.exists() or path.name == ":memory:" or not path.absolute().parent.is_dir():
        return
    # A disk that is full or has no hard links, and whatever a migration raises.
    with contextlib.suppress(Exception):
        _lay_unless_there(path, prepared_store())


def prepared_store() -> bytes:
    """The content of the prepared store, which is made if there is none or a damaged one. Its name has a checksum."""
    start = f"mlflow-{version('mlflow')}-sqlalchemy-{version('sqlalchemy')}-"
    cache = _cache()
    for candidate in sorted(cache.glob(f"{start}*.db")) if cache is not None else []:
        content = candidate.read_bytes()
        if candidate.name == f"{start}{_checksum(content)}.db":
            return content
        candidate.unlink(missing_ok=True)
    content = _new_store()
    if cache is not None:
        with contextlib.suppress(OSError):  # a disk that is full or read-only: the next sweep tries again
            folders.write(str(cache), f"{start}{_checksum(content)}.db", content)
    return content


def _lay_unless_there(path: Path, content: bytes) -> None:
    """Makes a file that appears whole, unless another driver has made it meanwhile: that raises OSError."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _cache() -> Path | None:
    """The folder of the prepared stores; None for a user without a home."""
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "cvit"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ".cache" / "cvit" if home.is_dir() else None


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


def _new_store() -> bytes:
    """The content of a store with MLflow's tables and nothing in them. MLflow adds its default experiment when it opens
    a copy, since that has a place of its own."""
    prepare()
    from mlflow.store.db import utils

    for name in ("mlflow", "alembic"):  # they report every step
        logging.getLogger(name).setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="cvit-") as folder:
        path = Path(folder) / "mlflow.db"
        engine = utils.create_sqlalchemy_engine_with_retry(f"sqlite:///{path}")
        try:
            utils._initialize_tables(engine)
        finally:
            engine.dispose()
        return path.read_bytes()


if __name__ == "__main__":
    prepared_store()
