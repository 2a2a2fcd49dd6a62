"""Copies the journal to MLflow: one experiment per sweep, a parent run per study, a nested run per trial.

One thread of the driver does all the writing, off the training path. A server that cannot be reached delays the copy,
never the training; sending a record again adds nothing, so after any interruption the copy simply goes on.
"""

import contextlib
import json
import logging
import queue
import shlex
import threading
import time
from collections import Counter
from typing import Any

from cvit import vocabulary as v
from cvit.config import as_text
from cvit.errors import one_line
from sweeps.engine.recording.journal import Record
from sweeps.engine.recording.process_identity import is_dead, is_here, this_process
from sweeps.engine.tracking.mlflow_runs import MAX_TAG_LENGTH, TrackedRun, all_runs, in_parts, key_of, run_name
from sweeps.engine.tracking.mlflow_views import page, views

_BATCH_METRICS = 1000
_FLUSH_INTERVAL_S = 1.0
_LONGEST_PAUSE_S = 30.0
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "BAD_REQUEST")


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
        self._runs: dict[str, TrackedRun] = {}
        self._client: Any = None
        self._experiment_id = ""
        self._final_status: str | None = None
        self._deadline = float("inf")
        self._may_have_doubles = False
        self._refusal: str | None = None
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

    def how_to_look(self) -> list[str]:
        """Where this sweep's trials can be compared in MLflow's UI, in lines for a person."""
        heading, address = "Runs in MLflow:      ", self._uri.rstrip("/")
        commands = []
        if not self._uri.startswith(("http://", "https://")):
            store = "" if self._uri == v.DEFAULT_TRACKING_URI else f" --backend-store-uri {shlex.quote(self._uri)}"
            commands, address = [f"{heading}mlflow ui{store}"], "http://127.0.0.1:5000"
            heading = f"{'... and then:':<{len(heading)}}"
        return [*commands, f"{heading}{address}{page(self._experiment_id)}"]

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
                    if run.changed and run.study_key in self._runs:
                        self._write_unless_refused(run)
                if closing:
                    self._end_open_runs()
                self.error, pause = self._refusal, _FLUSH_INTERVAL_S
                if closing:
                    return
            # Whatever the store raises (network, SQL, MLflow's own), training goes on and the copy is tried again.
            except Exception as error:  # noqa: BLE001
                self.error = one_line(error)[:200]
                self._may_have_doubles |= any(run.may_exist for run in self._runs.values())
                pause = min(2 * pause, _LONGEST_PAUSE_S)
                if closing:
                    if time.monotonic() > self._deadline:
                        return
                    time.sleep(min(pause, 2.0))

    def _write_unless_refused(self, run: TrackedRun) -> None:
        """Brings a run up to date; one that MLflow refuses, as when somebody has deleted it, holds up no other."""
        from mlflow.exceptions import MlflowException, RestException

        try:
            self._write(run)
        except MlflowException as error:
            is_from_mlflow = isinstance(error, RestException) or not self._uri.startswith(
                "http"
            )  # and not from a proxy
            if error.error_code not in _REFUSALS or not is_from_mlflow:
                raise
            run.settle()
            run.opened = False
            self._refusal = f"run of {run.key}: {one_line(error)[:200]}"

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
        key = record["study_key"] if kind == v.RECORD_STUDY else record["trial_key"]
        run = self._runs.setdefault(key, TrackedRun(key))
        if kind == v.RECORD_STUDY:
            self._remember_study(run, record)
        elif kind == v.RECORD_TRIAL:
            if not run.study_key:
                run.study_key, run.params = record["study_key"], record["params"]
                run.tags |= record["tags"] | {
                    v.TAG_ROLE: v.ROLE_TRIAL,
                    v.TAG_TRIAL_KEY: key,
                    v.TAG_STUDY_KEY: run.study_key,
                    v.TAG_SWEEP: self._sweep,
                }
            return  # nothing to copy until something is measured
        elif kind == v.RECORD_POINTS:
            run.points += record["points"]
            run.start_time_ms = run.start_time_ms or record["points"][0][3]
        elif kind == v.RECORD_END:
            run.status, run.end_time_ms = record["status"], record["time_ms"]
            run.tags |= record["tags"] | {v.TAG_STATUS: record["status"], v.TAG_NOTE: record["note"]}
        run.changed = True

    def _remember_study(self, run: TrackedRun, record: Record) -> None:
        if not run.study_key:
            run.study_key, run.params, run.start_time_ms = run.key, record["params"], record["start_time_ms"]
            run.tags |= record["tags"] | {
                v.TAG_ROLE: v.ROLE_STUDY,
                v.TAG_STUDY_KEY: run.key,
                v.TAG_SWEEP: record["sweep"],
                v.TAG_QUESTION: record["question"],
            }
            if run.key in self._planned:
                run.tags[v.TAG_DRIVER] = this_process()
        run.cells += [cells for cells in record["cells"] if cells not in run.cells]
        run.tags |= {
            v.TAG_COMMAND: record["command"],
            **in_parts(v.TAG_GRID, json.dumps(run.cells)),
            v.TAG_NOTE: f"{record['question']}\n\n`{record['command']}`",
        }

    def _connect(self) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        for name in ("mlflow", "alembic"):  # they report every table that they create
            logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of what is tried again
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
        found = self._without_doubles(client)
        drivers = {
            r.data.tags[v.TAG_STUDY_KEY]: r.data.tags[v.TAG_DRIVER] for r in found if v.TAG_DRIVER in r.data.tags
        }
        for existing in found:
            tags, status = existing.data.tags, existing.info.status
            key, study_key = key_of(existing), tags.get(v.TAG_STUDY_KEY, "")
            run = self._runs.get(key)
            is_unfinished = run is None or run.status is None
            if run is not None:
                run.run_id, run.opened, run.taken_up = existing.info.run_id, status == "RUNNING", True
                is_copied = not is_unfinished and tags.get(v.TAG_STATUS) == run.status
                if (is_copied and status in ("FINISHED", "FAILED")) or (is_unfinished and key not in self._planned):
                    run.settle()
            is_orphan = study_key in self._planned or self._is_gone(drivers.get(study_key, ""), study_key)
            if status == "RUNNING" and is_unfinished and key not in self._planned and is_orphan:
                client.set_terminated(existing.info.run_id, "KILLED")

    def _is_gone(self, driver: str, study_key: str) -> bool:
        """Whether a study's driver is dead. Who runs a study of this journal holds its lease, and that is this driver:
        unless the same study is run from another storage too, on this machine, an earlier driver is dead."""
        return not driver or is_dead(driver) or (study_key in self._runs and not is_here(driver))

    def _without_doubles(self, client: Any) -> list[Any]:
        """The experiment's runs, one for each key. Where a server created a run but its answer was lost, there may be
        two; the one that is in use stays."""
        runs = list(all_runs(client, self._experiment_id))
        num_children = Counter(run.data.tags.get("mlflow.parentRunId") for run in runs)

        def use(run: Any) -> tuple[bool, bool, int, int]:
            known = self._runs.get(key_of(run))
            is_known = known is not None and known.run_id == run.info.run_id
            return is_known, run.info.status == "FINISHED", len(run.data.metrics), num_children[run.info.run_id]

        found: dict[str, Any] = {}
        for run in sorted(runs, key=use, reverse=True):
            if found.setdefault(key_of(run), run) is not run and key_of(run) in self._planned:
                client.delete_run(run.info.run_id)
        return list(found.values())

    def _write(self, run: TrackedRun) -> None:
        """Brings one run up to date. Each part may be repeated without harm."""
        from mlflow.entities import Metric, Param, RunTag

        if run.run_id is None:
            self._create(run)
        elif not run.opened and self._status(run) == "RUNNING":
            self._client.update_run(run.run_id, status="RUNNING")
        run.opened = True
        if run.taken_up and run.points:
            self._leave_out_copied(run)
        metrics = [Metric(name, value, time_ms, step) for name, step, value, time_ms in run.points]
        params = [Param(name, as_text(value)) for name, value in run.params.items()]
        tags = [RunTag(name, value[:MAX_TAG_LENGTH]) for name, value in run.tags.items()]
        while len(metrics) > _BATCH_METRICS - len(params) - len(tags):
            self._client.log_batch(run.run_id, metrics=metrics[:_BATCH_METRICS])
            metrics = metrics[_BATCH_METRICS:]
        if metrics or params or tags:
            self._client.log_batch(run.run_id, metrics=metrics, params=params, tags=tags)
        if self._status(run) != "RUNNING":
            self._client.set_terminated(run.run_id, self._status(run), run.end_time_ms)
            run.opened = False
        run.settle()

    def _leave_out_copied(self, run: TrackedRun) -> None:
        """A step measured twice, because a checkpoint and the journal were damaged, must not be there twice: to
        MLflow, one time stamp more is one measurement more."""
        for metric in {name for name, *_ in run.points} - run.copied.keys():
            history = self._client.get_metric_history(run.run_id, metric)
            run.copied[metric] = {point.step for point in history}
        run.points = [point for point in run.points if point[1] not in run.copied[point[0]]]

    def _status(self, run: TrackedRun) -> str:
        """MLflow's status for a run while this driver works."""
        if run.status is not None:
            return "FAILED" if run.status == v.STATUS_FAILED else "FINISHED"
        if run.key in self._planned:
            return "RUNNING"
        return "FINISHED" if run.is_study else "KILLED"

    def _create(self, run: TrackedRun) -> None:
        """Gives a run its id in MLflow, once; a server that was slow to answer may have done so before."""
        if run.may_exist and (run_id := self._find(run)) is not None:
            run.run_id, run.may_exist = run_id, False
            return
        tags = {name: value[:MAX_TAG_LENGTH] for name, value in run.tags.items()}
        if run.is_study:
            name = " ".join([self._sweep, *([run.params["dataset"]] if "dataset" in run.params else []), run.key[:8]])
        else:
            parent = self._runs[run.study_key]
            if parent.run_id is None:
                self._create(parent)
            tags = tags | {"mlflow.parentRunId": parent.run_id}
            name = run_name({axis: run.params[axis] for axis in parent.cells[0]})
        run.may_exist = True
        run.run_id = self._client.create_run(self._experiment_id, run.start_time_ms, tags, name).info.run_id
        run.may_exist = False

    def _find(self, run: TrackedRun) -> str | None:
        tag, role = (v.TAG_STUDY_KEY, v.ROLE_STUDY) if run.is_study else (v.TAG_TRIAL_KEY, v.ROLE_TRIAL)
        filter_text = f"tags.`{tag}` = '{run.key}' and tags.`{v.TAG_ROLE}` = '{role}'"
        found = self._client.search_runs([self._experiment_id], filter_text, max_results=1)
        return found[0].info.run_id if found else None

    def _end_open_runs(self) -> None:
        assert self._final_status is not None
        for run in self._runs.values():
            if run.opened and run.run_id is not None and run.key in self._planned:
                self._client.set_terminated(run.run_id, self._final_status)
                run.opened = False
        if self._may_have_doubles:
            self._without_doubles(self._client)
