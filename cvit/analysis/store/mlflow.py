"""Reads an MLflow store into frames, the same as from the journals of its sweeps. Only this module knows MLflow."""

import contextlib
import functools
import json
import logging
import math
import os
import re
import sqlite3
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import unquote

from cvit import vocabulary as names
from cvit.analysis.store.axes import SEED
from cvit.analysis.store.frames import CurvesOf, Frames, LoadError, Raw, no_curves
from cvit.errors import one_line
from cvit.records import EndRecord, StudyRecord, TrialRecord
from cvit.redaction import redacted
from cvit.tracking import all_pages, is_study, is_trial, joined_tag, study_keys, trial_key, why_unreachable
from cvit.tracking_schema import State, open_read_only, sqlite_path, state_of

_log = logging.getLogger(__name__)

HISTORIES_AT_ONCE = 8
"""The number of metric histories requested from a server at the same time: most of the time is waiting."""
VIEW_TAG_PREFIX = "mlflow.sharedViewState.cvit-"
"""The beginning of a tag that the engine gives its experiments."""
ACTIVE_ONLY = 1
"""MLflow's view of what is not deleted: `ViewType.ACTIVE_ONLY`."""
_SERVERS = ("http", "https", "databricks")

History = list[tuple[int, float]]
"""Steps and values, ascending by step."""


def load_mlflow(uri: str, curves_of: CurvesOf = no_curves) -> Frames:
    """Reads all studies of an MLflow store, and changes nothing: a local store that does not exist is not created, and
    of one that an older MLflow has made, a copy is read.

    Raises:
        LoadError: the store does not exist, cannot be read, or has no study.
    """
    state = _state_of_existing(uri)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    logging.getLogger("alembic").setLevel(logging.ERROR)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with _copy_of(uri) if state == "older" else contextlib.nullcontext(uri) as readable:
            client = MlflowClient(readable)
            raw = _read(client, readable, curves_of)
            if not raw.studies and (trash := _names_in_trash(client)):
                raise LoadError(
                    f"MLflow store {redacted(uri)} holds no study but in its trash ({', '.join(trash)}): restore it in "
                    "MLflow, or read the journal with --storage"
                )
            return raw.frames(f"MLflow store {redacted(uri)}")
    except (MlflowException, SQLAlchemyError, OSError, ImportError, sqlite3.Error) as error:
        raise LoadError(redacted(f"MLflow store {uri} cannot be read: {one_line(error)}")) from error


def _read(client: Any, uri: str, curves_of: CurvesOf) -> Raw:
    raw, runs = Raw(curves_of), _Runs(client)
    left_out: dict[str, list[Any]] = {}
    """The runs that are passed over, by the reason."""
    for run in runs.studies:
        try:
            raw.add_study(runs.sweep_of(run), _study_record(runs, run))
        except LoadError as error:
            left_out.setdefault(str(error), []).append(run)
    run_of: dict[str, Any] = {}
    for run in runs.trials:
        try:
            record = _trial_record(runs, run, raw)
            raw.add_trial(runs.sweep_of(run), record)
            run_of.setdefault(record.trial_key, run)
        except LoadError as error:
            left_out.setdefault(str(error), []).append(run)
    _report(left_out, run_of)
    for key, run in run_of.items():
        tags = run.data.tags
        if (status := tags.get(names.TAG_STATUS)) is not None:
            time_ms = run.info.end_time or 0
            note = tags.get(names.TAG_NOTE, "")
            raw.add_end(EndRecord(trial_key=key, status=status, note=note, time_ms=time_ms, tags=tags))
        for metric, value in run.data.metrics.items():
            raw.add_final(key, metric, 0, value)
    wanted = [
        (key, run.info.run_id, metric)
        for key, run in run_of.items()
        for metric in _wanted(curves_of(runs.sweep_of(run)), run)
        if metric in run.data.metrics
    ]
    path = sqlite_path(uri)
    histories = _histories_of_server(client, wanted) if path is None else _histories_of_sqlite(path, wanted)
    for (key, _, metric), points in zip(wanted, histories, strict=True):
        for step, value in points:
            raw.add_to_curve(key, metric, step, value)
    return raw


def _wanted(metrics: Collection[str] | None, run: Any) -> Collection[str]:
    return sorted(run.data.metrics) if metrics is None else metrics


def _report(left_out: Mapping[str, list[Any]], run_of: Mapping[str, Any]) -> None:
    """Prints a line per reason for which runs are left out, but for trials that have another run."""
    for reason, runs in left_out.items():
        lost = [run for run in runs if trial_key(run) not in run_of]
        if lost:
            first = f"{lost[0].info.run_name}, {lost[0].info.run_id}"
            _log.warning("MLflow runs passed over: %d (the first: %s): %s", len(lost), first, reason)


class _Runs:
    """The runs of studies and of trials in a store, in the order of their starts; people may have renamed, moved and
    deleted things in MLflow's UI.

    Attributes:
        studies: a study whose run is deleted is among them as long as it has trials.
        trials: if a trial has two runs, the one that has ended comes first.
    """

    def __init__(self, client: Any) -> None:
        experiments = list(all_pages(client.search_experiments))
        self._names = {each.experiment_id: each.name for each in experiments}
        # In an experiment of the engine's, every run counts: one whose role somebody has removed is still known.
        own = {e.experiment_id for e in experiments if any(tag.startswith(VIEW_TAG_PREFIX) for tag in e.tags)}
        others = sorted(self._names.keys() - own)
        runs = [
            *_runs(client, sorted(own), ""),
            *_runs(client, others, f"tags.`{names.TAG_ROLE}` = '{names.ROLE_STUDY}'"),
            *_runs(client, others, f"tags.`{names.TAG_ROLE}` = '{names.ROLE_TRIAL}'"),
        ]
        runs.sort(key=lambda run: run.info.start_time or 0)
        self.studies = [run for run in runs if is_study(run)]
        self.trials = sorted(filter(is_trial, runs), key=lambda run: names.TAG_STATUS not in run.data.tags)
        self.study_key = study_keys(runs)
        self._add_deleted_studies(client)

    def _add_deleted_studies(self, client: Any) -> None:
        known = {self.study_key.get(run.info.run_id) for run in self.studies}
        lost = {self.study_key.get(run.info.run_id) for run in self.trials} - known - {None}
        if not lost:
            return
        from mlflow.entities import ViewType

        filter_text = f"tags.`{names.TAG_ROLE}` = '{names.ROLE_STUDY}'"
        deleted = list(_runs(client, sorted(self._names), filter_text, ViewType.DELETED_ONLY))
        keys = study_keys(deleted)
        self.studies += [run for run in deleted if keys.get(run.info.run_id) in lost]
        self.study_key |= keys

    def sweep_of(self, run: Any) -> str:
        """The sweep of a run: the name that its experiment had, unless somebody has renamed it."""
        return run.data.tags.get(names.TAG_SWEEP) or self._names[run.info.experiment_id]


def _runs(client: Any, experiment_ids: list[str], filter_string: str, view: int = ACTIVE_ONLY) -> Iterator[Any]:
    """The runs of experiments that fit a filter."""
    if not experiment_ids:
        return iter(())
    return all_pages(functools.partial(client.search_runs, experiment_ids, filter_string, run_view_type=view))


def _study_record(runs: _Runs, run: Any) -> StudyRecord:
    """The record of a study. Raises LoadError if its tags do not say enough."""
    tags, study_key = run.data.tags, runs.study_key.get(run.info.run_id)
    if study_key is None:
        raise LoadError(f"the tag {names.TAG_STUDY_KEY} is missing")
    try:
        cells = json.loads(joined_tag(names.TAG_GRID, tags)) if names.TAG_GRID in tags else None
    except ValueError:
        cells = None
    if not _are_grids(cells):
        raise LoadError(f"the tag {names.TAG_GRID} is missing or damaged")
    return StudyRecord(
        study_key=study_key,
        sweep=runs.sweep_of(run),
        question=tags.get(names.TAG_QUESTION, ""),
        command=tags.get(names.TAG_COMMAND, ""),
        start_time_ms=run.info.start_time,
        params=run.data.params,
        cells=cells,
        tags=tags,
    )


def _are_grids(cells: Any) -> TypeGuard[list[dict[str, list[Any]]]]:
    return (
        isinstance(cells, list)
        and len(cells) > 0
        and all(isinstance(grid, dict) and SEED in grid for grid in cells)
        and all(isinstance(values, list) for grid in cells for values in grid.values())
    )


def _trial_record(runs: _Runs, run: Any, raw: Raw) -> TrialRecord:
    """The record of a trial. Raises LoadError if its run does not say enough, or its study is not known."""
    key, study_key = trial_key(run), runs.study_key.get(run.info.run_id)
    if key is None or study_key is None:
        raise LoadError(f"the tag {names.TAG_STUDY_KEY if key else names.TAG_TRIAL_KEY} is missing")
    if (study := raw.studies.get(study_key)) is None:
        raise LoadError(f"the run of study {study_key} is gone or damaged; the sweep's next run mends it")
    tags, params = run.data.tags, run.data.params
    if missing := [axis for grid in study["cells"] for axis in grid if axis not in params]:
        raise LoadError(f"the parameter {missing[0]} is missing")
    return TrialRecord(trial_key=key, study_key=study_key, params=params, tags=tags)


def _names_in_trash(client: Any) -> list[str]:
    """The names of the deleted experiments of the engine's, and of deleted studies."""
    from mlflow.entities import ViewType

    experiments = list(all_pages(functools.partial(client.search_experiments, view_type=ViewType.ALL)))
    deleted = [e.name for e in experiments if e.lifecycle_stage != "active" and VIEW_TAG_PREFIX in " ".join(e.tags)]
    filter_text = f"tags.`{names.TAG_ROLE}` = '{names.ROLE_STUDY}'"
    active = [e.experiment_id for e in experiments if e.lifecycle_stage == "active"]
    return [*deleted, *(run.info.run_name for run in _runs(client, active, filter_text, ViewType.DELETED_ONLY))]


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
    with contextlib.closing(open_read_only(path)) as connection:
        for metric in {metric for _, _, metric in wanted}:
            query = "SELECT run_uuid, step, value, is_nan FROM metrics WHERE key = ? ORDER BY step, timestamp"
            for run_id, step, value, is_nan in connection.execute(query, (metric,)):
                if (run_id, metric) in by_place:
                    by_place[run_id, metric].append((step, math.nan if is_nan else value))
    return [by_place[run_id, metric] for _, run_id, metric in wanted]


def _state_of_existing(uri: str) -> State:
    """The state of a store that MLflow can open: `current`, or `older` for a file of which a copy must be read.

    Raises:
        LoadError: there is no store, or none that this MLflow can read without changing it. MLflow would create it, or
            add its tables to a database of another kind.
    """
    source, scheme = f"MLflow store {redacted(uri)}", uri.partition(":")[0].partition("+")[0].lower()
    if uri.startswith("file:") or "://" not in uri:
        path = Path(unquote(re.sub(r"^file:(//)?", "", uri)))
        if not any(path.glob("*/meta.yaml")):
            raise LoadError(f"{source} does not exist: no experiment in the folder {str(path)!r}")
        return "current"
    if scheme not in names.TRACKING_SCHEMES:
        raise LoadError(
            f"{source} is not valid: it must begin with one of {', '.join(names.TRACKING_SCHEMES)}, or file"
        )
    if scheme == "sqlite" and sqlite_path(uri) is None:
        raise LoadError(f"{source} is not valid: give sqlite:///FILE, with three slashes")
    try:
        reason = why_unreachable(uri)
    except ValueError as error:
        raise LoadError(f"{source} is not valid: give scheme://host:port") from error
    if reason is not None:
        raise LoadError(f"{source} cannot be read: {reason}")
    return "current" if scheme in _SERVERS else _state_of_database(uri, source)


def _state_of_database(uri: str, source: str) -> State:
    path = sqlite_path(uri)
    if path is not None and not path.is_file():
        raise LoadError(f"{source} does not exist: no file {str(path)!r}")
    try:
        state = state_of(uri)
    except Exception as error:  # whatever a driver raises
        raise LoadError(redacted(f"{source} cannot be read: {one_line(error)}")) from error
    if state in ("empty", "foreign"):
        place = "the database" if path is None else repr(str(path))
        raise LoadError(f"{source} is not an MLflow store: {place} has none of its tables")
    if state == "newer":
        raise LoadError(f"{source} was changed by a newer MLflow than {version('mlflow')}: read it with that one")
    if state != "current" and path is None:
        raise LoadError(
            f"{source} was made by an older MLflow than {version('mlflow')}, which would have to change it to read it: "
            "read the journal with --storage"
        )
    return "current" if state == "current" else "older"


@contextlib.contextmanager
def _copy_of(uri: str) -> Iterator[str]:
    """A copy of a SQLite store, brought to the schema of the installed MLflow; MLflow can open no other."""
    from mlflow.store.db import utils

    path = sqlite_path(uri)
    assert path is not None
    with tempfile.TemporaryDirectory(prefix="cvit-") as folder:
        copy = Path(folder) / "mlflow.db"
        with contextlib.closing(open_read_only(path)) as old, contextlib.closing(sqlite3.connect(copy)) as new:
            old.backup(new)
        engine = utils.create_sqlalchemy_engine(f"sqlite:///{copy}")
        try:
            utils._upgrade_db(engine)
        except Exception as error:  # whatever a migration raises
            raise LoadError(f"MLflow store {redacted(uri)}: its copy cannot be upgraded: {one_line(error)}") from error
        engine.dispose()
        yield f"sqlite:///{copy}"
