"""From a tracking store to frames: the same from the journal alone and from MLflow alone."""

import contextlib
import itertools
import json
import logging
import math
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from analysis.store.frames import CURVES, Frames, LoadError, Raw
from cvit import vocabulary as names
from cvit.errors import one_line
from cvit.redaction import redacted
from cvit.storage import Storage, StorageError, decode_records

RUNS_PER_PAGE = 1000
"""Runs asked of MLflow at once."""

HISTORIES_AT_ONCE = 8
"""Metric histories asked of a server at the same time: it is waited for, not worked for."""

History = list[tuple[int, float]]
"""Steps and values, ascending by step."""


def load_journal(storage: Storage, sweep: str | None = None) -> Frames:
    """Reads the journals of a storage, or that of one sweep.

    Raises:
        LoadError: the storage cannot be read, has no journal, or no study in it.
    """
    raw, shown = Raw(), redacted(f"storage {storage.url!r}")
    try:
        sweeps = [sweep] if sweep is not None else storage.names(names.JOURNAL_FOLDER)
        for name in sweeps:
            folder = f"{names.JOURNAL_FOLDER}/{name}"
            for segment in storage.names(folder):
                if segment.endswith(".jsonl"):
                    raw.add_records(name, decode_records(storage.read(f"{folder}/{segment}")))
    except (OSError, StorageError) as error:
        raise LoadError(f"{shown} cannot be read: {one_line(error)}") from error
    if not sweeps:
        raise LoadError(f"{shown} has no journal: no folder {names.JOURNAL_FOLDER!r} with sweeps in it")
    return raw.frames(shown)


def load_mlflow(uri: str) -> Frames:
    """Reads all studies of an MLflow store; a local store that does not exist is not created.

    Raises:
        LoadError: the store does not exist, cannot be read, or has no study in it.
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
        return _read_mlflow(MlflowClient(uri), uri).frames(f"MLflow store {redacted(uri)}")
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        raise LoadError(redacted(f"MLflow store {uri} cannot be read: {one_line(error)}")) from error


def _read_mlflow(client: Any, uri: str) -> Raw:
    raw = Raw()
    experiments = {
        experiment.experiment_id: experiment.name
        for experiment in _paged(lambda token: client.search_experiments(max_results=RUNS_PER_PAGE, page_token=token))
    }

    def runs(role: str) -> Iterator[Any]:
        if not experiments:
            return iter(())
        filter_string = f"tags.`{names.TAG_ROLE}` = '{role}'"
        return _paged(
            lambda token: client.search_runs(
                list(experiments),
                filter_string,
                max_results=RUNS_PER_PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
        )

    for run in runs(names.ROLE_STUDY):
        tags = run.data.tags
        raw.add_study(
            experiments[run.info.experiment_id],
            {
                "study_key": tags[names.TAG_STUDY_KEY],
                "question": tags.get(names.TAG_QUESTION, ""),
                "start_time_ms": run.info.start_time,
                "command": tags.get(names.TAG_COMMAND, ""),
                "cells": json.loads(_joined(tags, names.TAG_GRID)),
                "params": run.data.params,
                "tags": tags,
            },
        )
    # Should a trial have two runs, the first that has ended counts.
    ended_first = sorted(runs(names.ROLE_TRIAL), key=lambda run: names.TAG_STATUS not in run.data.tags)
    run_of: dict[str, Any] = {}
    for run in ended_first:
        tags = run.data.tags
        trial_key = tags[names.TAG_TRIAL_KEY]
        run_of.setdefault(trial_key, run)
        record = {"study_key": tags[names.TAG_STUDY_KEY], "trial_key": trial_key, "tags": tags}
        raw.add_trial(experiments[run.info.experiment_id], record | {"params": run.data.params})

    for trial_key, run in run_of.items():
        if names.TAG_STATUS in run.data.tags:
            raw.add_end(trial_key, run.data.tags[names.TAG_STATUS], run.data.tags)
        for metric, value in run.data.metrics.items():
            raw.add_final(trial_key, metric, 0, value)
    wanted = [
        (trial_key, run.info.run_id, metric)
        for trial_key, run in run_of.items()
        for metric in CURVES.get(experiments[run.info.experiment_id], ())
        if metric in run.data.metrics
    ]
    path = _sqlite_path(uri)
    histories = _histories_of_server(client, wanted) if path is None else _histories_of_sqlite(path, wanted)
    for (trial_key, _, metric), points in zip(wanted, histories, strict=True):
        for step, value in points:
            raw.add_to_curve(trial_key, metric, step, value)
    return raw


def _histories_of_server(client: Any, wanted: Sequence[tuple[str, str, str]]) -> list[History]:
    """One per (trial key, run id, metric)."""

    def history(run_id: str, metric: str) -> History:
        points = client.get_metric_history(run_id, metric)
        return [(point.step, point.value) for point in sorted(points, key=lambda p: (p.step, p.timestamp))]

    with ThreadPoolExecutor(HISTORIES_AT_ONCE) as pool:
        return list(pool.map(lambda place: history(*place[1:]), wanted))


def _histories_of_sqlite(path: Path, wanted: Sequence[tuple[str, str, str]]) -> list[History]:
    """The same in a query per metric: through the client, each of a thousand histories would cost one."""
    by_place: dict[tuple[str, str], History] = {(run_id, metric): [] for _, run_id, metric in wanted}
    with contextlib.closing(_open_sqlite(path)) as connection:
        for metric in {metric for _, _, metric in wanted}:
            query = "SELECT run_uuid, step, value, is_nan FROM metrics WHERE key = ? ORDER BY step, timestamp"
            for run_id, step, value, is_nan in connection.execute(query, (metric,)):
                if (run_id, metric) in by_place:
                    by_place[run_id, metric].append((step, math.nan if is_nan else value))
    return [by_place[run_id, metric] for _, run_id, metric in wanted]


def _paged(search: Callable[[str | None], Any]) -> Iterator[Any]:
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def _require_existing_store(uri: str) -> None:
    """MLflow creates the local store that it is asked to read, and fills a database that is not its own."""
    shown = f"MLflow store {redacted(uri)}"
    if (path := _sqlite_path(uri)) is not None:
        if not path.is_file():
            raise LoadError(f"{shown} does not exist: no file {str(path)!r}")
        try:
            with contextlib.closing(_open_sqlite(path)) as connection:
                tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except sqlite3.Error as error:
            raise LoadError(f"{shown} cannot be read: {one_line(error)}") from error
        if not {"experiments", "runs", "metrics"} <= tables:
            raise LoadError(f"{shown} is not an MLflow store: {str(path)!r} has none of its tables")
    elif uri.startswith("file:") or "://" not in uri:
        path = Path(unquote(re.sub(r"^file:(//)?", "", uri)))
        if not any(path.glob("*/meta.yaml")):
            raise LoadError(f"{shown} does not exist: no experiment in the folder {str(path)!r}")
    elif urlparse(uri).scheme.partition("+")[0] not in names.TRACKING_SCHEMES:
        raise LoadError(f"{shown} is not valid: it must begin with one of {', '.join(names.TRACKING_SCHEMES)}, or file")


def _sqlite_path(uri: str) -> Path | None:
    match = re.match(r"sqlite(?:\+\w+)?:///([^?]*)", uri)
    return Path(unquote(match[1])) if match else None


def _open_sqlite(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def _joined(tags: Mapping[str, str], tag: str) -> str:
    """The text of a tag that, being long, may go on in `tag.1`, `tag.2`, …"""
    further = itertools.takewhile(tags.__contains__, (f"{tag}.{number}" for number in itertools.count(1)))
    return "".join(tags[part] for part in (tag, *further))
