"""MLflow: one experiment per sweep, a parent run per study, a nested run per trial."""

import contextlib
import functools
import json
import logging
import re
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from cvit import vocabulary as v
from cvit.engine.environment import prepare
from cvit.engine.tracking import mlflow_sql
from cvit.engine.tracking.backend import FINISHED, RUNNING, Backend, Change, ExistingRun, NewRun, Refused
from cvit.engine.tracking.mlflow_check import check
from cvit.engine.tracking.mlflow_models import log_model
from cvit.engine.tracking.mlflow_views import MODE, TABLE, TAG_PREFIX, means_of, note, page, views
from cvit.engine.tracking.prepared_store import provide_store
from cvit.engine.tracking.run_facts import DataUse
from cvit.errors import one_line
from cvit.parameters import ConfigError, as_text
from cvit.records import StudyRecord
from cvit.results import Point
from cvit.tracking import MAX_TAG_LENGTH, PARENT, all_pages, is_trial, split_tag, study_keys, trial_key
from cvit.tracking_schema import sqlite_path

if TYPE_CHECKING:
    import torch

__all__ = ["SCHEMES", "MlflowBackend", "check", "imports", "open"]

SCHEMES = v.TRACKING_SCHEMES

_BATCH_METRICS = 1000
"""The most that MLflow takes at once, parameters and tags included."""
_FILES_FOLDER = "mlartifacts"
_LONGEST_DATASET, _LONGEST_DIGEST = 500, 36
"""The largest numbers of characters in the name and the digest of a data set."""
_REQUESTS_AT_ONCE = 8
"""The most requests that a server gets at a time: each waits for its answer, and on a busy one for others."""
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "BAD_REQUEST")


def open(uri: str) -> Backend:
    """The backend for an MLflow store.

    Raises:
        ConfigError: MLflow could not use it.
    """
    if "://" not in uri:
        raise ConfigError(f"tracking URI {uri!r} is not valid: it must begin with {uri.partition(':')[0]}://")
    if urlsplit(uri).scheme.partition("+")[0] == "sqlite":
        path = sqlite_path(uri)
        if path is None or not path.name:
            raise ConfigError(f"tracking URI {uri!r} is not valid: give sqlite:///FILE, with three slashes")
        if path.name == ":memory:":
            raise ConfigError(f"tracking URI {uri!r} is not valid: it keeps nothing; give {v.NO_TRACKING} or a file")
        folder = path.absolute().parent
        if not folder.is_dir():
            raise ConfigError(f"tracking URI {uri!r}: there is no folder {folder}")
    elif not _is_address(uri):
        raise ConfigError(
            f"tracking URI {uri!r} is not valid: give scheme://host:port, and in a password %20 for a blank, %2F for /"
        )
    return MlflowBackend(uri)


def imports(uri: str) -> Sequence[str]:
    """MLflow, and its modules for this kind of store, which it imports only when it opens one."""
    kind = "rest_store" if uri.startswith(("http://", "https://")) else "sqlalchemy_store"
    return ("mlflow", f"mlflow.store.tracking.{kind}")


def _is_address(uri: str) -> bool:
    """True for a URI without blanks; one of a web server also needs a host and a port that is a number."""
    server = urlsplit(uri)
    if re.search(r"\s", uri) or server.scheme not in ("http", "https"):
        return not re.search(r"\s", uri)
    try:
        return server.hostname is not None and (server.port is None or server.port > 0)
    except ValueError:
        return False


class MlflowBackend:
    """The runs of one sweep in an MLflow store.

    A server may carry out a create whose answer is lost, so there may be two runs of one key for a while.
    """

    title = "MLflow"

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client: Any = None
        self._database: Any = None
        """MLflow's own store, where it can be written directly."""
        self.calls_at_once = _REQUESTS_AT_ONCE if uri.startswith(("http://", "https://")) else 1
        self._experiment_id = ""
        self._storage = ""
        self._study: StudyRecord | None = None
        self._used_ids: set[str] = set()
        self._unanswered: set[str] = set()
        """Keys whose create was sent and not answered."""
        self._without_study: dict[str, list[str]] = {}
        """The ids of the trials' runs whose study has no run, by study key: somebody has deleted it."""

    def connect(self, sweep: str, study: StudyRecord) -> None:
        prepare()
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        for name in ("mlflow", "alembic"):  # they report every table that they create
            logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of what is tried again
        provide_store(self._uri)
        client = MlflowClient(tracking_uri=self._uri)
        experiment = client.get_experiment_by_name(sweep) or _renamed_experiment(client, sweep)
        if experiment is None:
            with contextlib.suppress(MlflowException):  # another driver was faster
                client.create_experiment(sweep, _place_of_files(self._uri, self._storage, sweep))
            experiment = client.get_experiment_by_name(sweep)
            assert experiment is not None
        elif experiment.lifecycle_stage != "active":
            client.restore_experiment(experiment.experiment_id)
        # Otherwise MLflow's UI takes the experiment for one of generative AI.
        client.set_experiment_tag(experiment.experiment_id, "mlflow.experimentKind", "custom_model_development")
        shown = {**views(study), v.TAG_NOTE: note(study, experiment.experiment_id)}
        # The table has columns for an answer already, and somebody may have added to the description.
        kept = {TAG_PREFIX + TABLE, v.TAG_NOTE} & experiment.tags.keys()
        for tag in shown.keys() - kept:
            client.set_experiment_tag(experiment.experiment_id, tag, shown[tag])
        self._client, self._experiment_id, self._study = client, experiment.experiment_id, study
        self._database = mlflow_sql.database_of(client)

    def existing(self, own: Set[str]) -> Sequence[ExistingRun]:
        runs = list(all_pages(functools.partial(self._client.search_runs, [self._experiment_id])))
        num_children = Counter(run.data.tags.get(PARENT) for run in runs)

        def use(run: Any) -> tuple[bool, bool, int, int]:
            is_used = run.info.run_id in self._used_ids
            return is_used, run.info.status == FINISHED, len(run.data.metrics), num_children[run.info.run_id]

        by_key: dict[str, Any] = {}
        studies = study_keys(runs)
        for run in sorted(runs, key=use, reverse=True):
            key = trial_key(run) if is_trial(run) else studies.get(run.info.run_id)
            key = key or run.info.run_id
            if by_key.setdefault(key, run) is not run and key in own:
                self._client.delete_run(run.info.run_id)
        self._used_ids |= {run.info.run_id for run in by_key.values()}
        self._put_below_studies({key: run for key, run in by_key.items() if key in own}, studies)
        return [
            ExistingRun(
                run.info.run_id,
                key,
                run.info.status,
                run.data.tags,
                run.data.params,
                has_data=bool(run.inputs.dataset_inputs),
            )
            for key, run in by_key.items()
        ]

    def _put_below_studies(self, by_key: Mapping[str, Any], studies: Mapping[str, str]) -> None:
        """Puts the runs of trials below their study's, where somebody has moved them or has deleted their parent."""
        self._without_study.clear()
        for run in by_key.values():
            run_id = run.info.run_id
            if not is_trial(run) or run_id not in studies:
                continue
            study = by_key.get(studies[run_id])
            if study is None:
                self._without_study.setdefault(studies[run_id], []).append(run_id)
            elif run.data.tags.get(PARENT) != study.info.run_id:
                self._client.set_tag(run_id, PARENT, study.info.run_id)

    def create(self, run: NewRun) -> str:
        with self._refusals():
            run_id = self._find(run) if run.key in self._unanswered else None
            if run_id is None:
                tags = _tags_of_new(run)
                self._unanswered.add(run.key)
                created = self._client.create_run(self._experiment_id, run.start_time_ms, tags, run.name)
                run_id = str(created.info.run_id)
            for trial_id in self._without_study.get(run.key, ()):
                self._client.set_tag(trial_id, PARENT, run_id)
        self._without_study.pop(run.key, None)
        self._unanswered.discard(run.key)
        self._used_ids.add(run_id)
        return run_id

    def written_steps(self, run_id: str, metric: str) -> Set[int]:
        with self._refusals():
            return {point.step for point in self._client.get_metric_history(run_id, metric)}

    def write(
        self, run_id: str, params: Mapping[str, object], tags: Mapping[str, str], points: Sequence[Point]
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(name, value, time_ms, step) for name, step, value, time_ms in points]
        own_params = [Param(name, as_text(value)) for name, value in params.items()]
        own_tags = [RunTag(name, value) for name, value in _fitting(tags).items()]
        with self._refusals():
            while len(metrics) > _BATCH_METRICS - len(own_params) - len(own_tags):
                self._client.log_batch(run_id, metrics=metrics[:_BATCH_METRICS])
                metrics = metrics[_BATCH_METRICS:]
            if metrics or own_params or own_tags:
                self._client.log_batch(run_id, metrics=metrics, params=own_params, tags=own_tags)
            if self._study is not None and (means := means_of(points)):
                for tag, view in views(self._study, means).items():
                    self._client.set_experiment_tag(self._experiment_id, tag, view)

    def store_files_below(self, storage: str) -> None:
        self._storage = storage

    def use_data(self, run_id: str, data: DataUse) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        row = _dataset(data)
        dataset = Dataset(row.name, row.digest, row.source_type, row.source, profile=row.profile)
        tags = [InputTag(name, text) for name, text in row.tags.items()]
        with self._refusals():
            self._client.log_inputs(run_id, [DatasetInput(dataset, tags)])

    def write_together(self, changes: Sequence[Change]) -> Sequence[str | None]:
        if self._database is None:
            return [None] * len(changes)
        keys = [change.new.key if change.new is not None else None for change in changes]
        rows = [_rows(change) for change in changes]
        # One that was not answered may be there: it has to be looked for.
        places = [n for n, key in enumerate(keys) if key not in self._unanswered and mlflow_sql.is_plain(rows[n])]
        new = {key for n in places if (key := keys[n]) is not None}
        self._unanswered |= new
        ids = mlflow_sql.write_runs(self._database, self._experiment_id, [rows[n] for n in places])
        self._unanswered -= new
        self._used_ids |= {run_id for run_id in ids if run_id is not None}
        by_place = dict(zip(places, ids, strict=True))
        return [by_place.get(n) for n in range(len(changes))]

    def attach(self, run_id: str, files: Mapping[str, bytes]) -> None:
        with tempfile.TemporaryDirectory(prefix="cvit-") as folder, self._refusals():
            for name, content in files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self._client.log_artifacts(run_id, folder)

    def log_model(self, run_id: str, model: "torch.nn.Module", example: "torch.Tensor") -> None:
        with self._refusals():
            log_model(self._uri, run_id, model, example)

    def set_status(self, run_id: str, status: str, end_time_ms: int | None = None) -> None:
        with self._refusals():
            if status == RUNNING:
                self._client.update_run(run_id, status=status)
            else:
                self._client.set_terminated(run_id, status, end_time_ms)

    def how_to_look(self) -> list[str]:
        heading, address = "Runs in MLflow:      ", self._uri.rstrip("/")
        commands = []
        if not self._uri.startswith(("http://", "https://")):
            is_default = self._uri == v.DEFAULT_TRACKING_URI
            store = "" if is_default else f" --backend-store-uri {shlex.quote(self._uri)}"
            commands, address = [f"{heading}mlflow ui{store}"], "http://127.0.0.1:5000"
            heading = f"{'... and then:':<{len(heading)}}"
        hint = f"{'... or by a click:':<{len(heading)}}{MODE} at the upper left, once; then the experiment"
        return [*commands, f"{heading}{address}{page(self._experiment_id)}", hint]

    def _find(self, run: NewRun) -> str | None:
        """The id of a run that a create without an answer has made."""
        tag = v.TAG_STUDY_KEY if run.parent_id is None else v.TAG_TRIAL_KEY
        filter_text = f"tags.`{tag}` = '{run.key}' and tags.`{v.TAG_ROLE}` = '{run.tags[v.TAG_ROLE]}'"
        runs = self._client.search_runs([self._experiment_id], filter_text, max_results=1)
        return runs[0].info.run_id if runs else None

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """Tells MLflow's own refusals from its outages, and from the answers of a proxy before it."""
        from mlflow.exceptions import MlflowException, RestException

        try:
            yield
        except MlflowException as error:
            is_from_mlflow = isinstance(error, RestException) or not self._uri.startswith("http")
            if is_from_mlflow and error.error_code in _REFUSALS:
                raise Refused(one_line(error)) from error
            raise


def _place_of_files(uri: str, storage: str, sweep: str) -> str | None:
    """The place for the files of an experiment, whatever the working folder: beside a SQLite file; in the storage for
    another database, which several machines may write. None leaves it to a server."""
    path, name = sqlite_path(uri), quote(sweep, safe="")
    if path is not None:
        return (path.absolute().parent / _FILES_FOLDER / name).as_uri()
    if uri.startswith(("http://", "https://", "databricks")) or not storage:
        return None
    return f"{storage}/{_FILES_FOLDER}/{name}" if "://" in storage else (Path(storage) / _FILES_FOLDER / name).as_uri()


def _renamed_experiment(client: Any, sweep: str) -> Any | None:
    """The experiment that has the runs of a sweep under another name, if there is one."""
    ids = [experiment.experiment_id for experiment in all_pages(client.search_experiments)]
    filter_text = f"tags.`{v.TAG_SWEEP}` = '{sweep}' and tags.`{v.TAG_ROLE}` = '{v.ROLE_TRIAL}'"
    runs = client.search_runs(ids, filter_text, max_results=1) if ids else []
    return client.get_experiment(runs[0].info.experiment_id) if runs else None


def _fitting(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags as MLflow takes them: a long grid in several parts; any other text is cut."""
    fitting = {name: text[:MAX_TAG_LENGTH] for name, text in tags.items()}
    return fitting | (split_tag(v.TAG_GRID, tags[v.TAG_GRID]) if v.TAG_GRID in tags else {})


def _tags_of_new(run: NewRun) -> dict[str, str]:
    """The tags with which a run is created."""
    return _fitting(run.tags) | ({PARENT: run.parent_id} if run.parent_id is not None else {})


def _dataset(data: DataUse) -> mlflow_sql.DatasetRow:
    """The data set of a run as MLflow takes it."""
    return mlflow_sql.DatasetRow(
        name=data.name[:_LONGEST_DATASET],
        digest=data.digest[:_LONGEST_DIGEST],
        source_type="cvit",
        source=json.dumps({"dataset": data.source}),
        profile=json.dumps(data.profile),
        tags={"mlflow.data.context": "training", **data.tags},
    )


def _rows(change: Change) -> mlflow_sql.RunRows:
    """The news of a run as MLflow takes them."""
    return mlflow_sql.RunRows(
        run_id=change.run_id,
        new=replace(change.new, tags=_tags_of_new(change.new)) if change.new is not None else None,
        params={name: as_text(value) for name, value in change.params.items()},
        tags=_fitting(change.tags),
        points=change.points,
        dataset=_dataset(change.data) if change.data is not None else None,
        status=change.status,
        end_time_ms=change.end_time_ms,
    )
