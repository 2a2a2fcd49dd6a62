"""Copies the journal to MLflow: one experiment per sweep, a parent run per study, a nested run per trial.

One thread of the driver does all the writing, off the training path. A server that cannot be reached delays the copy,
never the training; sending a record again adds nothing, so after any interruption the copy simply goes on.
"""

import contextlib
import json
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cvit import vocabulary as v
from sweeps.engine.journal import Record
from sweeps.engine.views import page, views

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
# An unreachable server is tried again by this module, in the background; MLflow's own retries would take minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

_BATCH_METRICS = 1000
_MAX_TAG_LENGTH = 5000
_FLUSH_INTERVAL_S = 1.0
_LONGEST_PAUSE_S = 30.0


@dataclass
class _Run:
    """What the journal says about one run, and how much of it MLflow has."""

    key: str
    params: dict[str, Any]
    tags: dict[str, str]
    study_key: str
    start_time_ms: int | None = None
    points: list[list[Any]] = field(default_factory=list)
    end: Record | None = None
    cells: list[dict[str, Any]] = field(default_factory=list)
    run_id: str | None = None
    opened: bool = False
    changed: bool = True

    @property
    def is_study(self) -> bool:
        return self.key == self.study_key

    def settle(self) -> None:
        """MLflow has everything that is known by now."""
        self.points, self.changed = [], False


class Tracker:
    """The copier. `feed` takes journal records and returns at once; `close` waits until MLflow has them all."""

    def __init__(self, uri: str, sweep: str, planned: set[str], records: list[Record]) -> None:
        """
        Args:
            uri: tracking URI.
            sweep: name of the sweep and of the MLflow experiment.
            planned: keys of this driver's study and trials.
            records: the journal so far.
        """
        self._uri, self._sweep, self._planned = uri, sweep, planned
        self._inbox: queue.SimpleQueue[list[Record] | None] = queue.SimpleQueue()
        self._runs: dict[str, _Run] = {}
        self._client: Any = None
        self._experiment_id = ""
        self._final_status: str | None = None
        self._deadline = float("inf")
        self.error: str | None = None
        for record in records:
            self._remember(record)
        self._thread = threading.Thread(target=self._copy, name="tracker", daemon=True)
        self._thread.start()

    def feed(self, records: list[Record]) -> None:
        """Takes records to copy."""
        self._inbox.put(records)

    def expect(self, planned: set[str]) -> None:
        """More keys of this driver's, before records of them are fed."""
        self._planned = self._planned | planned

    @property
    def page(self) -> str:
        """Where MLflow's UI compares this sweep's trials, below the server's address."""
        return page(self._experiment_id)

    def close(self, status: str, timeout_s: float) -> bool:
        """Ends the runs that are still open with a status of MLflow's (FINISHED, FAILED, KILLED).

        Returns:
            Whether everything was copied within the time; `error` says why not. What is missing is in the journal and
            is copied by the next run of the sweep.
        """
        self._final_status, self._deadline = status, time.monotonic() + timeout_s
        self._inbox.put(None)
        self._thread.join(timeout_s + 1)
        return not self._thread.is_alive() and self.error is None

    def _copy(self) -> None:
        pause, closing = _FLUSH_INTERVAL_S, False
        while True:
            closing |= self._take(0 if closing else pause)
            try:
                if self._client is None:
                    self._connect()
                for run in list(self._runs.values()):
                    if run.changed:
                        self._write(run)
                if closing:
                    self._end_open_runs()
                self.error, pause = None, _FLUSH_INTERVAL_S
                if closing:
                    return
            # Whatever the store raises (network, SQL, MLflow's own), training goes on and the copy is tried again.
            except Exception as error:  # noqa: BLE001
                self.error = " ".join(str(error).split())[:200] or type(error).__name__
                pause = min(2 * pause, _LONGEST_PAUSE_S)
                if closing:
                    if time.monotonic() > self._deadline:
                        return
                    time.sleep(min(pause, 2.0))

    def _take(self, timeout_s: float) -> bool:
        """Takes all records that have come in, waiting a while for the first; True once `close` was called."""
        deadline = time.monotonic() + timeout_s
        closing = False
        while True:
            try:
                records = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return closing
            if records is None:
                closing, deadline = True, 0.0
                continue
            for record in records:
                self._remember(record)

    def _remember(self, record: Record) -> None:
        kind = record["type"]
        if kind == v.RECORD_STUDY:
            key = record["study_key"]
            if key not in self._runs:
                tags = record["tags"] | {
                    v.TAG_ROLE: v.ROLE_STUDY,
                    v.TAG_STUDY_KEY: key,
                    v.TAG_SWEEP: record["sweep"],
                    v.TAG_QUESTION: record["question"],
                }
                self._runs[key] = _Run(key, record["params"], tags, key, record["start_time_ms"])
            run = self._runs[key]
            run.cells += [cells for cells in record["cells"] if cells not in run.cells]
            run.tags |= {
                v.TAG_COMMAND: record["command"],
                **_in_parts(v.TAG_GRID, json.dumps(run.cells)),
                v.TAG_NOTE: f"{record['question']}\n\n`{record['command']}`",
            }
            run.changed = True
            return
        key = record["trial_key"]
        if kind == v.RECORD_TRIAL:
            if key not in self._runs:
                tags = record["tags"] | {
                    v.TAG_ROLE: v.ROLE_TRIAL,
                    v.TAG_TRIAL_KEY: key,
                    v.TAG_STUDY_KEY: record["study_key"],
                    v.TAG_SWEEP: self._sweep,
                }
                self._runs[key] = _Run(key, record["params"], tags, record["study_key"], changed=False)
            return
        run = self._runs[key]
        if kind == v.RECORD_POINTS:
            run.points += record["points"]
            run.start_time_ms = run.start_time_ms or record["points"][0][3]
        elif kind == v.RECORD_END:
            run.end = record
            run.tags |= record["tags"] | {v.TAG_STATUS: record["status"], v.TAG_NOTE: record["note"]}
        run.changed = True

    def _connect(self) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        for name in ("mlflow", "alembic"):  # they report every table that they create
            logging.getLogger(name).setLevel(logging.WARNING)
        client = MlflowClient(tracking_uri=self._uri)
        experiment = client.get_experiment_by_name(self._sweep)
        if experiment is None:
            with contextlib.suppress(MlflowException):  # another driver was faster
                client.create_experiment(self._sweep)
            experiment = client.get_experiment_by_name(self._sweep)
            assert experiment is not None
        elif experiment.lifecycle_stage != "active":
            client.restore_experiment(experiment.experiment_id)
        # Otherwise MLflow's UI takes the experiment for one of generative AI.
        client.set_experiment_tag(experiment.experiment_id, "mlflow.experimentKind", "custom_model_development")
        study = next(run for run in self._runs.values() if run.is_study and run.key in self._planned)
        axes = [axis for axis in study.cells[0] if axis != "seed"]
        for tag, view in views(study.key, axes, study.start_time_ms or 0).items():
            client.set_experiment_tag(experiment.experiment_id, tag, view)
        self._experiment_id = experiment.experiment_id
        self._adopt(client)
        self._client = client

    def _adopt(self, client: Any) -> None:
        """Finds the runs of earlier drivers by their keys and decides what becomes of them.

        A run that has ended as the journal says is left alone. One that a dead driver left RUNNING is taken up again
        where this driver's plan has it, else ended as KILLED; a living driver's runs are its own business.
        """
        found = list(_all_runs(client, self._experiment_id))
        drivers = {
            r.data.tags[v.TAG_STUDY_KEY]: r.data.tags[v.TAG_DRIVER] for r in found if v.TAG_DRIVER in r.data.tags
        }
        for existing in found:
            tags, status = existing.data.tags, existing.info.status
            study_key = tags.get(v.TAG_STUDY_KEY, "")
            key = tags.get(v.TAG_TRIAL_KEY, study_key)
            run = self._runs.get(key)
            is_unfinished = run is None or run.end is None
            if run is not None:
                run.run_id, run.opened = existing.info.run_id, status == "RUNNING"
                is_copied = not is_unfinished and tags.get(v.TAG_STATUS) == run.tags[v.TAG_STATUS]
                if (is_copied and status in ("FINISHED", "FAILED")) or (is_unfinished and key not in self._planned):
                    run.settle()
            is_orphan = study_key in self._planned or not _is_alive(drivers.get(study_key, ""))
            if status == "RUNNING" and is_unfinished and key not in self._planned and is_orphan:
                client.set_terminated(existing.info.run_id, "KILLED")

    def _write(self, run: _Run) -> None:
        """Brings one run up to date. Each part may be repeated without harm."""
        from mlflow.entities import Metric, Param, RunTag

        if run.run_id is None:
            run.run_id = self._create(run)
        elif not run.opened and self._status(run) == "RUNNING":
            self._client.update_run(run.run_id, status="RUNNING")
        run.opened = True
        metrics = [Metric(name, value, time_ms, step) for name, step, value, time_ms in run.points]
        params = [Param(name, str(value)) for name, value in run.params.items()]
        tags = [RunTag(name, value[:_MAX_TAG_LENGTH]) for name, value in self._tags(run).items()]
        for start in range(0, len(metrics), _BATCH_METRICS):
            self._client.log_batch(run.run_id, metrics=metrics[start : start + _BATCH_METRICS])
        self._client.log_batch(run.run_id, params=params, tags=tags)
        if self._status(run) != "RUNNING":
            end_time_ms = run.end["time_ms"] if run.end is not None else None
            self._client.set_terminated(run.run_id, self._status(run), end_time_ms)
            run.opened = False
        run.params = {}
        run.settle()

    def _status(self, run: _Run) -> str:
        """MLflow's status for a run while this driver works."""
        if run.end is not None:
            return "FAILED" if run.end["status"] == v.STATUS_FAILED else "FINISHED"
        if run.key in self._planned:
            return "RUNNING"
        return "FINISHED" if run.is_study else "KILLED"

    def _tags(self, run: _Run) -> dict[str, str]:
        driver = {v.TAG_DRIVER: _this_driver()} if run.is_study and run.key in self._planned else {}
        return run.tags | driver

    def _create(self, run: _Run) -> str:
        tags = self._tags(run)
        if run.is_study:
            name = " ".join([self._sweep, *([run.params["dataset"]] if "dataset" in run.params else []), run.key[:8]])
        else:
            parent = self._runs[run.study_key]
            if parent.run_id is None:
                parent.run_id = self._create(parent)
            tags = tags | {"mlflow.parentRunId": parent.run_id}
            name = _run_name({axis: run.params[axis] for axis in parent.cells[0]})
        return self._client.create_run(self._experiment_id, run.start_time_ms, tags, name).info.run_id

    def _end_open_runs(self) -> None:
        assert self._final_status is not None
        for run in self._runs.values():
            if run.opened and run.run_id is not None and run.key in self._planned:
                self._client.set_terminated(run.run_id, self._final_status)
                run.opened = False


def _all_runs(client: Any, experiment_id: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _run_name(cell: dict[str, Any]) -> str:
    """The scheme first: the UI's column of names is narrow."""
    scheme = [str(cell["init_scheme"])] if "init_scheme" in cell else []
    return " ".join(scheme + [f"{axis}={value}" for axis, value in cell.items() if axis != "init_scheme"])


def _in_parts(tag: str, text: str) -> dict[str, str]:
    """A text that is too long for one tag, in several: tag, tag.1, tag.2, …"""
    parts = [text[start : start + _MAX_TAG_LENGTH] for start in range(0, len(text), _MAX_TAG_LENGTH)]
    return {tag if number == 0 else f"{tag}.{number}": part for number, part in enumerate(parts)}


def _this_driver() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _is_alive(driver: str) -> bool:
    """Whether a driver may still be running; one on another machine is taken to be."""
    host, _, pid = driver.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return bool(host)
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
