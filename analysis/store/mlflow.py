"""Reads an MLflow store into frames, the same as from the journals of its sweeps. Only this module knows MLflow."""

import contextlib
import functools
import json
import logging
import math
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from analysis.store.frames import CurvesOf, Frames, LoadError, Raw, no_curves
from cvit import vocabulary as names
from cvit.errors import one_line
from cvit.records import EndRecord, StudyRecord, TrialRecord
from cvit.redaction import redacted
from cvit.tracking import all_pages, joined_tag

HISTORIES_AT_ONCE = 8
"""The number of metric histories requested from a server at the same time: most of the time is waiting."""

History = list[tuple[int, float]]
"""Steps and values, ascending by step."""


def load_mlflow(uri: str, curves_of: CurvesOf = no_curves) -> Frames:
    """Reads all studies of an MLflow store; a local store that does not exist is not created.

    Raises:
        LoadError: the store does not exist, cannot be read, or has no study.
    """
    _require_existing_store(uri)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    logging.getLogger("alembic").setLevel(logging.ERROR)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return _read(MlflowClient(uri), uri, curves_of).frames(f"MLflow store {redacted(uri)}")
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        raise LoadError(redacted(f"MLflow store {uri} cannot be read: {one_line(error)}")) from error


def _read(client: Any, uri: str, curves_of: CurvesOf) -> Raw:
    raw = Raw(curves_of)
    experiments = {each.experiment_id: each.name for each in all_pages(client.search_experiments)}
    for run in _runs(client, list(experiments), names.ROLE_STUDY):
        sweep = experiments[run.info.experiment_id]
        raw.add_study(sweep, _study_record(sweep, run))
    # If a trial has two runs, the first that has ended counts.
    runs = sorted(
        _runs(client, list(experiments), names.ROLE_TRIAL), key=lambda run: names.TAG_STATUS not in run.data.tags
    )
    run_of: dict[str, Any] = {}
    for run in runs:
        tags = run.data.tags
        trial_key, study_key = tags[names.TAG_TRIAL_KEY], tags[names.TAG_STUDY_KEY]
        run_of.setdefault(trial_key, run)
        record = TrialRecord(trial_key=trial_key, study_key=study_key, params=run.data.params, tags=tags)
        raw.add_trial(experiments[run.info.experiment_id], record)

    for trial_key, run in run_of.items():
        tags = run.data.tags
        if (status := tags.get(names.TAG_STATUS)) is not None:
            time_ms = run.info.end_time or 0
            raw.add_end(EndRecord(trial_key=trial_key, status=status, note="", time_ms=time_ms, tags=tags))
        for metric, value in run.data.metrics.items():
            raw.add_final(trial_key, metric, 0, value)
    wanted = [
        (trial_key, run.info.run_id, metric)
        for trial_key, run in run_of.items()
        for metric in curves_of(experiments[run.info.experiment_id])
        if metric in run.data.metrics
    ]
    path = _sqlite_path(uri)
    histories = _histories_of_server(client, wanted) if path is None else _histories_of_sqlite(path, wanted)
    for (trial_key, _, metric), points in zip(wanted, histories, strict=True):
        for step, value in points:
            raw.add_to_curve(trial_key, metric, step, value)
    return raw


def _runs(client: Any, experiment_ids: list[str], role: str) -> Iterator[Any]:
    """The runs of studies or of trials, in the order of their starts."""
    if not experiment_ids:
        return iter(())
    filter_string = f"tags.`{names.TAG_ROLE}` = '{role}'"
    order = ["attributes.start_time ASC"]
    return all_pages(functools.partial(client.search_runs, experiment_ids, filter_string, order_by=order))


def _study_record(sweep: str, run: Any) -> StudyRecord:
    tags = run.data.tags
    return StudyRecord(
        study_key=tags[names.TAG_STUDY_KEY],
        sweep=sweep,
        question=tags.get(names.TAG_QUESTION, ""),
        command=tags.get(names.TAG_COMMAND, ""),
        start_time_ms=run.info.start_time,
        params=run.data.params,
        cells=json.loads(joined_tag(names.TAG_GRID, tags)),
        tags=tags,
    )


def _histories_of_server(client: Any, wanted: Sequence[tuple[str, str, str]]) -> list[History]:
    """The histories of the wanted (trial key, run id, metric), from a server."""

    def history(run_id: str, metric: str) -> History:
        points = client.get_metric_history(run_id, metric)
        return [(point.step, point.value) for point in sorted(points, key=lambda p: (p.step, p.timestamp))]

    with ThreadPoolExecutor(HISTORIES_AT_ONCE) as pool:
        return list(pool.map(lambda place: history(*place[1:]), wanted))


def _histories_of_sqlite(path: Path, wanted: Sequence[tuple[str, str, str]]) -> list[History]:
    """The histories from SQLite, with one query per metric; the client would need a query per run and metric."""
    by_place: dict[tuple[str, str], History] = {(run_id, metric): [] for _, run_id, metric in wanted}
    with contextlib.closing(_open_sqlite(path)) as connection:
        for metric in {metric for _, _, metric in wanted}:
            query = "SELECT run_uuid, step, value, is_nan FROM metrics WHERE key = ? ORDER BY step, timestamp"
            for run_id, step, value, is_nan in connection.execute(query, (metric,)):
                if (run_id, metric) in by_place:
                    by_place[run_id, metric].append((step, math.nan if is_nan else value))
    return [by_place[run_id, metric] for _, run_id, metric in wanted]


def _require_existing_store(uri: str) -> None:
    """Raises LoadError for a local store that does not exist, because MLflow would create it, or add its tables to a
    database of another kind."""
    source = f"MLflow store {redacted(uri)}"
    if (path := _sqlite_path(uri)) is not None:
        if not path.is_file():
            raise LoadError(f"{source} does not exist: no file {str(path)!r}")
        try:
            with contextlib.closing(_open_sqlite(path)) as connection:
                tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except sqlite3.Error as error:
            raise LoadError(f"{source} cannot be read: {one_line(error)}") from error
        if not {"experiments", "runs", "metrics"} <= tables:
            raise LoadError(f"{source} is not an MLflow store: {str(path)!r} has none of its tables")
    elif uri.startswith("file:") or "://" not in uri:
        path = Path(unquote(re.sub(r"^file:(//)?", "", uri)))
        if not any(path.glob("*/meta.yaml")):
            raise LoadError(f"{source} does not exist: no experiment in the folder {str(path)!r}")
    elif urlparse(uri).scheme.partition("+")[0] not in names.TRACKING_SCHEMES:
        raise LoadError(
            f"{source} is not valid: it must begin with one of {', '.join(names.TRACKING_SCHEMES)}, or file"
        )


def _sqlite_path(uri: str) -> Path | None:
    match = re.match(r"sqlite(?:\+\w+)?:///([^?]*)", uri)
    return Path(unquote(match[1])) if match else None


def _open_sqlite(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
