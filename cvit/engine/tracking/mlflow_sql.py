"""Writes what is new of many runs to a database of MLflow's in one transaction.

MLflow's client has a call per run, with five transactions in it and an object for each measurement: 22 ms of processor
time a stage. Here the same rows are written, many runs at a time, through MLflow's own tables and sessions. It is used
only with a schema whose rows a test has compared with the client's; with any other, and for whatever is unusual, the
client writes.
"""

import math
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from cvit.engine.tracking.backend import RUNNING, NewRun
from cvit.results import Point

KNOWN_REVISIONS = frozenset({"dc11669786a5"})
"""The revisions of MLflow's schema whose rows a test compares with the client's: that of MLflow 3.17."""
_PLAIN_NAME = re.compile(r"\w[\w.\- ]*(/\w[\w.\- ]*)*")
"""Names that MLflow takes as they are."""
_LONGEST_NAME, _LONGEST_PARAM, _LONGEST_TAG = 250, 6000, 8000
_MOST_VARIABLES = 500
"""The most values that one query compares with: databases limit them."""
_RUN_NAME, _USER = "mlflow.runName", "mlflow.user"
_LARGEST = 1.7976931348623157e308
_CACHE_KIB = 65536
"""SQLite's cache of pages: its own 2 MB make a large store's indexes to be read again and again."""


@dataclass(frozen=True, kw_only=True)
class DatasetRow:
    """The data set that a run uses, as MLflow has it."""

    name: str
    digest: str
    source_type: str
    source: str
    profile: str
    tags: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class RunRows:
    """The news of one run, in MLflow's own words.

    Attributes:
        run_id: None for a run that is still to be created, which `new` then describes.
        status: None leaves it as it is.
    """

    run_id: str | None
    new: NewRun | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    points: Sequence[Point] = ()
    dataset: DatasetRow | None = None
    status: str | None = None
    end_time_ms: int | None = None


def database_of(client: Any) -> Any | None:
    """MLflow's store behind a client, if it is a database that this module knows how to write."""
    from mlflow.store.db.utils import _get_schema_version
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = client._tracking_client.store
    if type(store) is not SqlAlchemyStore or store.read_engine is not None:
        return None
    return store if _get_schema_version(store.engine) in KNOWN_REVISIONS else None


def is_plain(rows: RunRows) -> bool:
    """True if MLflow writes what is new of a run just as it is: no name or text that it would change or refuse."""
    tags = _tags(rows)
    names = {name for name, *_ in rows.points} | rows.params.keys() | tags.keys()
    return (
        (_RUN_NAME not in rows.tags and len(tags.get(_RUN_NAME, "")) <= _LONGEST_NAME)
        and all(len(name) <= _LONGEST_NAME and _PLAIN_NAME.fullmatch(name) for name in names)
        and all(len(text) <= _LONGEST_PARAM for text in rows.params.values())
        and all(len(text) <= _LONGEST_TAG for text in tags.values())
        and all(time_ms >= 0 for *_, time_ms in rows.points)
    )


def write_runs(store: Any, experiment_id: str, runs: Sequence[RunRows]) -> list[str | None]:
    """Writes what is new of runs, all of it or nothing.

    Returns:
        The ids of the runs. None stands for a run of which nothing was written, because it is not there, is deleted or
        has a parameter with another value: MLflow has to say what is wrong.

    Raises:
        MlflowException: the database cannot be reached, or did not take it.
    """
    from sqlalchemy import text

    with store.ManagedSessionMaker(read_only=False) as session:
        if store.db_type == "sqlite":
            session.execute(text(f"PRAGMA cache_size = -{_CACHE_KIB}"))
        return _Transaction(session, int(experiment_id)).write(runs)


class _Transaction:
    """One transaction, in which a step writes a table's rows of all runs."""

    def __init__(self, session: Any, experiment_id: int) -> None:
        from mlflow.store.tracking.dbmodels import models

        self._session, self._models, self._experiment_id = session, models, experiment_id

    def write(self, runs: Sequence[RunRows]) -> list[str | None]:
        taken = self._taken({rows.run_id: rows for rows in runs if rows.run_id is not None})
        ids = [uuid.uuid4().hex if r.run_id is None else r.run_id if r.run_id in taken else None for r in runs]
        by_id = {run_id: rows for run_id, rows in zip(ids, runs, strict=True) if run_id is not None}
        known = [run_id for run_id, rows in by_id.items() if rows.run_id is not None]
        self._create(by_id)
        self._update_statuses(by_id)
        self._add_params(by_id, known)
        self._set_tags(by_id, known)
        self._add_points(by_id, known)
        self._use_datasets(by_id, known)
        return ids

    def _taken(self, runs: Mapping[str, RunRows]) -> set[str]:
        """The ids of the runs that can be written: those that are there, with no other value of a parameter."""
        run, param = self._models.SqlRun, self._models.SqlParam
        active = {
            run_id
            for run_id, stage in self._rows((run.run_uuid, run.lifecycle_stage), run.run_uuid, runs)
            if stage == "active"
        }
        with_params = [run_id for run_id in active if runs[run_id].params]
        columns = (param.run_uuid, param.key, param.value)
        contradicted = {
            run_id
            for run_id, name, text in self._rows(columns, param.run_uuid, with_params)
            if runs[run_id].params.get(name, text) != text
        }
        return active - contradicted

    def _create(self, by_id: Mapping[str, RunRows]) -> None:
        from mlflow.utils.uri import append_to_uri_path

        created = {run_id: rows.new for run_id, rows in by_id.items() if rows.new is not None}
        if not created:
            return
        experiment = self._session.get(self._models.SqlExperiment, self._experiment_id)
        self._insert(
            self._models.SqlRun,
            [
                {
                    "run_uuid": run_id,
                    "name": new.name,
                    "artifact_uri": append_to_uri_path(experiment.artifact_location, run_id, "artifacts"),
                    "experiment_id": self._experiment_id,
                    "source_type": "UNKNOWN",
                    "source_name": "",
                    "entry_point_name": "",
                    "user_id": new.tags.get(_USER, "unknown"),
                    "status": by_id[run_id].status or RUNNING,
                    "start_time": new.start_time_ms or _now_ms(),
                    "end_time": by_id[run_id].end_time_ms,
                    "deleted_time": None,
                    "source_version": "",
                    "lifecycle_stage": "active",
                }
                for run_id, new in created.items()
            ],
        )

    def _update_statuses(self, by_id: Mapping[str, RunRows]) -> None:
        run = self._models.SqlRun
        known = {run_id: rows for run_id, rows in by_id.items() if rows.new is None and rows.status is not None}
        opened = [{"of": run_id, "status": rows.status} for run_id, rows in known.items() if rows.end_time_ms is None]
        ended = [
            {"of": run_id, "status": rows.status, "end_time": rows.end_time_ms}
            for run_id, rows in known.items()
            if rows.end_time_ms is not None
        ]
        for changes in (opened, ended):
            self._update(run, {"run_uuid": "of"}, changes)

    def _add_params(self, by_id: Mapping[str, RunRows], known: Sequence[str]) -> None:
        param = self._models.SqlParam
        with_params = [run_id for run_id in known if by_id[run_id].params]
        there = set(self._rows((param.run_uuid, param.key), param.run_uuid, with_params))
        self._insert(
            param,
            [
                {"run_uuid": run_id, "key": name, "value": text}
                for run_id, rows in by_id.items()
                for name, text in rows.params.items()
                if (run_id, name) not in there
            ],
        )

    def _set_tags(self, by_id: Mapping[str, RunRows], known: Sequence[str]) -> None:
        tag = self._models.SqlTag
        with_tags = [run_id for run_id in known if by_id[run_id].tags]
        columns = (tag.run_uuid, tag.key, tag.value)
        there = {(run_id, name): text for run_id, name, text in self._rows(columns, tag.run_uuid, with_tags)}
        texts = {(run_id, name): text for run_id, rows in by_id.items() for name, text in _tags(rows).items()}
        added = {place: text for place, text in texts.items() if place not in there}
        changed = {place: text for place, text in texts.items() if there.get(place, text) != text}
        self._insert(tag, [{"run_uuid": run_id, "key": name, "value": text} for (run_id, name), text in added.items()])
        self._update(
            tag,
            {"run_uuid": "of", "key": "named"},
            [{"of": run_id, "named": name, "value": text} for (run_id, name), text in changed.items()],
        )

    def _add_points(self, by_id: Mapping[str, RunRows], known: Sequence[str]) -> None:
        latest = self._models.SqlLatestMetric
        measured = {run_id: _measurements(run_id, rows.points) for run_id, rows in by_id.items() if rows.points}
        rows = [row for of_run in measured.values() for row in of_run]
        # In the order of the primary key, so that a large index is not read here and there.
        rows.sort(key=lambda row: (row["key"], row["timestamp"], row["step"]))
        self._insert(self._models.SqlMetric, rows)
        columns = (latest.run_uuid, latest.key, latest.step, latest.timestamp, latest.value)
        with_points = [run_id for run_id in known if run_id in measured]
        there = {(run_id, name): tuple(age) for run_id, name, *age in self._rows(columns, latest.run_uuid, with_points)}
        newest: dict[tuple[str, str], dict[str, Any]] = {}
        for run_id, of_run in measured.items():
            for row in of_run:
                place = run_id, row["key"]
                if place not in newest or _age(row) > _age(newest[place]):
                    newest[place] = row
        self._insert(latest, [row for place, row in newest.items() if place not in there])
        self._update(
            latest,
            {"run_uuid": "of", "key": "named"},
            [
                {"of": run_id, "named": name, **{column: row[column] for column in _MEASURED}}
                for (run_id, name), row in newest.items()
                if (run_id, name) in there and _age(row) > there[run_id, name]
            ],
        )

    def _use_datasets(self, by_id: Mapping[str, RunRows], known: Sequence[str]) -> None:
        use, tag = self._models.SqlInput, self._models.SqlInputTag
        with_data = [run_id for run_id in known if by_id[run_id].dataset is not None]
        columns = (use.destination_id, use.source_id, use.source_type, use.destination_type)
        there = set(self._rows(columns, use.destination_id, with_data))
        ids = self._datasets({(d.name, d.digest): d for rows in by_id.values() if (d := rows.dataset) is not None})
        used = [
            (uuid.uuid4().hex, run_id, ids[data.name, data.digest], data)
            for run_id, rows in by_id.items()
            if (data := rows.dataset) is not None
            and (run_id, ids[data.name, data.digest], "DATASET", "RUN") not in there
        ]
        self._insert(
            use,
            [
                {
                    "input_uuid": input_id,
                    "source_type": "DATASET",
                    "source_id": dataset_id,
                    "destination_type": "RUN",
                    "destination_id": run_id,
                }
                for input_id, run_id, dataset_id, _ in used
            ],
        )
        self._insert(
            tag,
            [
                {"input_uuid": input_id, "name": name, "value": text}
                for input_id, _, _, data in used
                for name, text in data.tags.items()
            ],
        )

    def _datasets(self, wanted: Mapping[tuple[str, str], DatasetRow]) -> dict[tuple[str, str], str]:
        """The ids of data sets by name and digest; those that the experiment does not have yet are added."""
        if not wanted:
            return {}
        dataset = self._models.SqlDataset
        names = {name for name, _ in wanted}
        query = self._session.query(dataset.name, dataset.digest, dataset.dataset_uuid)
        found = query.filter(dataset.experiment_id == self._experiment_id, dataset.name.in_(names)).all()
        ids = {(name, digest): dataset_id for name, digest, dataset_id in found}
        added = {place: uuid.uuid4().hex for place in wanted if place not in ids}
        self._insert(
            dataset,
            [
                {
                    "dataset_uuid": dataset_id,
                    "experiment_id": self._experiment_id,
                    "name": place[0],
                    "digest": place[1],
                    "dataset_source_type": wanted[place].source_type,
                    "dataset_source": wanted[place].source,
                    "dataset_profile": wanted[place].profile,
                }
                for place, dataset_id in added.items()
            ],
        )
        return ids | added

    def _rows(self, columns: Sequence[Any], of: Any, run_ids: Iterable[str]) -> Iterator[tuple[Any, ...]]:
        """The rows of runs, a part at a time."""
        remaining = iter(run_ids)
        while part := list(islice(remaining, _MOST_VARIABLES)):
            yield from (tuple(row) for row in self._session.query(*columns).filter(of.in_(part)))

    def _insert(self, model: Any, rows: list[dict[str, Any]]) -> None:
        if rows:
            self._session.execute(model.__table__.insert(), rows)

    def _update(self, model: Any, where: Mapping[str, str], changes: list[dict[str, Any]]) -> None:
        """Updates rows; `where` has the names under which the changes hold the values of key columns."""
        from sqlalchemy import bindparam

        if changes:
            table = model.__table__
            conditions = [table.c[column] == bindparam(name) for column, name in where.items()]
            values = {name: bindparam(name) for name in changes[0] if name not in where.values()}
            self._session.execute(table.update().where(*conditions).values(values), changes)


_MEASURED = ("value", "step", "timestamp", "is_nan")


def _measurements(run_id: str, points: Sequence[Point]) -> list[dict[str, Any]]:
    """The rows of a run's measurements, each once. A database takes no value that is not finite, so MLflow marks one
    that is not a number, and puts the largest number for infinity."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, step, number, time_ms in points:
        is_nan = math.isnan(number)
        value = 0.0 if is_nan else max(-_LARGEST, min(_LARGEST, number))
        rows.setdefault(
            (name, step, value, time_ms, is_nan),
            {"run_uuid": run_id, "key": name, "value": value, "timestamp": time_ms, "step": step, "is_nan": is_nan},
        )
    return list(rows.values())


def _age(row: Mapping[str, Any]) -> tuple[int, int, float]:
    """The larger, the later a measurement counts as."""
    return row["step"], row["timestamp"], row["value"]


def _tags(rows: RunRows) -> dict[str, str]:
    """The tags of a run; a new one has those of its creation too."""
    if rows.new is None:
        return dict(rows.tags)
    return {**rows.new.tags, **rows.tags, _RUN_NAME: rows.new.name}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
