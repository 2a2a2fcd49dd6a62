"""Looks at an MLflow store before a sweep trains: one that can never work is refused, one of an older MLflow is changed
only with the user's word. A store that cannot be reached now is let pass, since the journal is copied later."""

import logging
import os
import re
import sqlite3
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cvit.engine.environment import prepare
from cvit.errors import one_line, short_line
from cvit.parameters import ConfigError
from cvit.tracking import why_unreachable
from cvit.tracking_schema import State, sqlite_path, state_and_revision

UPGRADE = "--upgrade-store"
"""The option that lets a sweep bring a store of an older MLflow to the installed one's schema."""
_ANSWER_TIMEOUT_S = 5
_LONGEST_ERROR = 200
_ANOTHER_MAKES_IT_S = 20.0
"""The longest that another driver may take to make the tables of a new store."""
_LOOK_INTERVAL_S = 2.0
"""It passes through all schemas since the first; none takes it that long."""
_REFUSED = re.compile(
    r"(?i)authentication failed|access denied|does not exist|unknown database|no pg_hba|login failed|no password"
)
"""The answers of database servers that stay the same when asked again."""
_LATER = (408, 425, 429)
"""The answers of web servers, beside those of 500 and more, that may be others the next time."""


def check(uri: str, may_upgrade: bool) -> None:
    """Looks at the store of a valid URI, and upgrades one of an older MLflow if that is allowed.

    Raises:
        ConfigError: the store can never be used.
    """
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme in ("http", "https"):
        _check_server(uri)
    elif scheme != "databricks":
        _check_database(uri, may_upgrade)


def _check_database(uri: str, may_upgrade: bool) -> None:
    if (path := sqlite_path(uri)) is not None:
        _check_file(uri, path)
    try:
        if not uri.startswith("sqlite:"):
            _load_driver(uri)
        if path is None and why_unreachable(uri) is not None:
            return
        state = _settled_state(uri)
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return
        raise _refusal(uri, one_line(error)) from error
    except sqlite3.DatabaseError as error:
        raise _refusal(uri, one_line(error)) from error
    except ImportError as error:
        raise _refusal(uri, f"its driver is not installed ({one_line(error)})") from error
    except Exception as error:
        # Whatever a driver raises: only what it will raise again ends the sweep.
        if _is_final(error):
            raise _refusal(uri, short_line(error, _LONGEST_ERROR)) from error
        return
    if state == "foreign":
        raise _refusal(uri, "it is a database with tables of another kind; MLflow would add its own")
    if state == "newer":
        raise _refusal(uri, f"it was changed by a newer MLflow than {version('mlflow')}: install that one")
    if state in ("older", "unfinished"):
        if not may_upgrade:
            raise _refusal(
                uri,
                f"it was made by an older MLflow than {version('mlflow')}, which could not open it any more after this "
                f"sweep: give {UPGRADE} to change it all the same, or another store",
            )
        try:
            _upgrade(uri)
        except Exception as error:  # whatever a migration raises
            raise _refusal(uri, f"it cannot be upgraded: {short_line(error, _LONGEST_ERROR)}") from error


def _load_driver(uri: str) -> None:
    """Raises ImportError if a database's driver is not installed, and SQLAlchemy's ArgumentError if it has no such."""
    import sqlalchemy

    sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)


def _check_file(uri: str, path: Path) -> None:
    if path.is_dir():
        raise _refusal(uri, f"{path} is a folder")
    for place in (path, path.absolute().parent):
        if place.exists() and not os.access(place, os.W_OK):
            raise _refusal(uri, f"{place} cannot be written")


def _settled_state(uri: str) -> State:
    """The state of a database, once no other driver is making its tables."""
    (state, revision), deadline = state_and_revision(uri), time.monotonic() + _ANOTHER_MAKES_IT_S
    while state in ("unfinished", "older") and time.monotonic() < deadline:
        time.sleep(_LOOK_INTERVAL_S)
        before = revision
        state, revision = state_and_revision(uri)
        if state == "older" and revision == before:
            break
    return state


def _is_final(error: Exception) -> bool:
    from sqlalchemy.exc import ArgumentError

    return isinstance(error, ArgumentError | ValueError) or _REFUSED.search(str(error)) is not None


def _upgrade(uri: str) -> None:
    """Does what `mlflow db upgrade` does, which would show the URI's password in the list of processes."""
    prepare()
    from mlflow.store.db import utils

    for name in ("mlflow", "alembic"):  # they report every step
        logging.getLogger(name).setLevel(logging.WARNING)
    engine = utils.create_sqlalchemy_engine_with_retry(uri)
    utils._upgrade_db(engine)
    engine.dispose()


def _check_server(uri: str) -> None:
    """Asks a server for its experiments, as the tracker will, with the same names, passwords and certificates."""
    if why_unreachable(uri) is not None:
        return
    prepare()
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    place = "/api/2.0/mlflow/experiments/search"
    try:
        answer: Any = http_request(
            get_default_host_creds(uri),
            place,
            "POST",
            json={"max_results": 1},
            max_retries=0,
            timeout=_ANSWER_TIMEOUT_S,
            raise_on_status=False,
        )
    except MlflowException as error:
        if re.search(r"Invalid url|SSLError|SSL:", str(error)):
            raise _refusal(uri, short_line(error, _LONGEST_ERROR)) from error
        return
    if answer.status_code in _LATER or answer.status_code >= 500:
        return
    if answer.status_code != 200:
        raise _refusal(uri, f"the server answers {answer.status_code} {answer.reason}{_hint(answer.status_code)}")
    if not _is_json(answer):
        raise _refusal(uri, "what answers there is no MLflow server")


def _hint(status: int) -> str:
    if status not in (401, 403):
        return ": is this the address of an MLflow server?"
    return ": set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"


def _is_json(answer: Any) -> bool:
    try:
        return isinstance(answer.json(), dict)
    except ValueError:
        return False


def _refusal(uri: str, reason: str) -> ConfigError:
    return ConfigError(f"tracking store {uri} cannot be used: {reason}")
