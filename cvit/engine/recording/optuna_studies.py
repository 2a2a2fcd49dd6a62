"""The trials of a search as Optuna studies, one per init scheme, in a storage that optuna-dashboard opens.

The storage is a copy: the search itself depends on the results alone. A trial is added once it has ended, and found
again by its key, so that a resumed sweep adds what is missing. Optuna cannot change a trial that has ended: one that
failed, or was stopped early, and is trained after all is added as another trial with the same key.
"""

import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from cvit.engine.planning.progress import Progress
from cvit.engine.planning.scheme_settings import SCHEME
from cvit.engine.planning.search import contains, distribution, space_of, validation_accuracy
from cvit.engine.planning.trials import Trial
from cvit.errors import one_line
from cvit.parameters import ConfigError
from cvit.records import EndRecord, PointsRecord, Record
from cvit.redaction import redacted
from cvit.results import Point
from cvit.tasks import task_named
from cvit.vocabulary import (
    ATTRIBUTE_FINALISTS,
    ATTRIBUTE_STAGE_KEYS,
    ATTRIBUTE_WINNER,
    FINALIST_SEED,
    SEARCH_SEED,
    STATUS_DIVERGED,
    STATUS_FAILED,
    STATUS_OK,
    STATUS_PRUNED,
    TAG_QUESTION,
    TAG_STATUS,
    TAG_STUDY_KEY,
    TAG_SWEEP,
    TAG_TRIAL_KEY,
)

_DATABASES = ("sqlite", "postgresql", "mysql")
_VALID = "give sqlite:///FILE, postgresql://…, mysql://…, or the path of a journal file"
_BEGINNING_OF_SQLITE = b"SQLite format 3\0"
# A diverged trial is a result: it counts as 0 in the search, and so it does here.
_STATES = {
    STATUS_OK: TrialState.COMPLETE,
    STATUS_DIVERGED: TrialState.COMPLETE,
    STATUS_PRUNED: TrialState.PRUNED,
    STATUS_FAILED: TrialState.FAIL,
}


def check_optuna_storage(url: str, may_write: bool) -> None:
    """Checks a storage before a sweep trains.

    Args:
        may_write: it may be created, with the tables of Optuna in it.

    Raises:
        ConfigError: it is none, or cannot be used.
    """
    reason = _reason_not_valid(url)
    if reason is None and may_write:
        try:
            _open(url)
        # SQLAlchemy, the drivers of databases and Optuna raise errors of any kind.
        except Exception as error:  # noqa: BLE001
            reason = one_line(error)
    if reason is not None:
        raise ConfigError(f"optuna_storage {redacted(url)!r} is not valid: {redacted(reason)}")


def _reason_not_valid(url: str) -> str | None:
    """The reason why a storage cannot be used, as far as it can be known without creating anything."""
    if "://" not in url:
        return _reason_no_journal(url)
    if url.partition("://")[0].partition("+")[0] not in _DATABASES:
        return _VALID
    try:
        engine = sqlalchemy.create_engine(url)  # it does not connect yet
        database = engine.url.database
        if engine.dialect.name == "sqlite":
            if not database or database == ":memory:":
                return "give sqlite:///FILE, with three slashes"
            if not os.path.exists(database):
                return _reason_no_folder(database)
        tables = sqlalchemy.inspect(engine).get_table_names()
        if tables and "studies" not in tables:
            return "it is a database of something else; give one of its own"
    except (SQLAlchemyError, ImportError, ValueError) as error:
        return one_line(error)
    return None


def _reason_no_journal(path: str) -> str | None:
    if not os.path.lexists(path):
        return _reason_no_folder(path)
    try:
        with open(path, "rb") as file:
            line = file.readline(2**20)
    except OSError as error:
        return error.strerror or one_line(error)
    if line.startswith(_BEGINNING_OF_SQLITE):
        return f"it is a database: give sqlite:///{path}"
    try:
        is_journal = not line or "op_code" in json.loads(line)
    except (ValueError, TypeError):
        is_journal = False
    return None if is_journal else f"it is a file of something else; {_VALID}"


def _reason_no_folder(path: str) -> str | None:
    folder = os.path.dirname(path) or "."
    return None if os.path.isdir(folder) else f"there is no folder {folder!r}"


def _open(url: str) -> BaseStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return RDBStorage(url) if "://" in url else JournalStorage(JournalFileBackend(url))


@dataclass(frozen=True)
class _Recorded:
    """The part of a journal that concerns trials: their measurements of one metric, and their ends, by trial key."""

    points: Mapping[str, Sequence[Point]]
    ends: Mapping[str, EndRecord]


def export_search(progress: Progress, records: Iterable[Record], url: str) -> None:
    """Adds the trials of a search that have ended to the studies of their init schemes. What a study says about
    finalists and the winner is brought up to date.

    Args:
        records: the records of the sweep's journal.

    Raises:
        Exception: of any kind, if the storage cannot be written.
    """
    storage, recorded = _open(url), _recorded(records, task_named(progress.plan.study.task).selection_metric)
    for scheme in progress.plan.study.grid[SCHEME]:
        _export_scheme(progress, scheme, recorded, storage)


def _recorded(records: Iterable[Record], metric: str | None) -> _Recorded:
    points: dict[str, list[Point]] = {}
    ends: dict[str, EndRecord] = {}
    for record in records:
        if isinstance(record, PointsRecord):
            points.setdefault(record.trial_key, []).extend(point for point in record.points if point[0] == metric)
        elif isinstance(record, EndRecord):
            ends[record.trial_key] = record
    return _Recorded(points, ends)


def _export_scheme(progress: Progress, scheme: str, recorded: _Recorded, storage: BaseStorage) -> None:
    study = progress.plan.study
    name = f"{study.sweep} {scheme} {study.key}"
    # create_study(load_if_exists=True) would write to a journal each time.
    is_there = name in optuna.get_all_study_names(storage)
    exported = (
        optuna.load_study(study_name=name, storage=storage)
        if is_there
        else optuna.create_study(study_name=name, storage=storage, direction="maximize")
    )
    own = [trial for trial in progress.plan.trials if trial.cell[SCHEME] == scheme]
    numbers = {_identity(trial): trial.number for trial in exported.get_trials(deepcopy=False)}
    for trial in own:
        if trial.cell["seed"] != SEARCH_SEED:
            continue
        frozen = _frozen(progress, scheme, trial, recorded)
        if frozen is not None and _identity(frozen) not in numbers:
            numbers[_identity(frozen)] = len(numbers)
            exported.add_trial(frozen)
    by_key = {key: number for (key, state), number in numbers.items() if state != TrialState.FAIL}
    about = {TAG_SWEEP: study.sweep, TAG_STUDY_KEY: study.key, TAG_QUESTION: study.question, SCHEME: scheme}
    about |= _outcome(progress, own, by_key)
    for attribute, value in about.items():
        if exported.user_attrs.get(attribute) != value:
            exported.set_user_attr(attribute, value)


def _identity(trial: FrozenTrial) -> tuple[Any, TrialState]:
    return trial.user_attrs.get(TAG_TRIAL_KEY), trial.state


def _frozen(progress: Progress, scheme: str, trial: Trial, recorded: _Recorded) -> FrozenTrial | None:
    """A trial as Optuna has it; None if it has not ended."""
    status = STATUS_FAILED if trial.key in progress.failed else progress.status(trial)
    end = recorded.ends.get(trial.key)
    if status is None or end is None:
        return None
    space = space_of(progress.plan, scheme)
    # The settings that a scheme has already may lie outside of the space, where Optuna allows no parameter.
    inside = {name: trial.cell[name] for name, within in space.items() if contains(within, trial.cell[name])}
    outside = {name: trial.cell[name] for name in space.keys() - inside.keys()}
    points = sorted(recorded.points.get(trial.key, ()), key=lambda point: point[1])
    started_ms = min((time_ms for *_, time_ms in points), default=end.time_ms)
    return FrozenTrial(
        number=-1,  # the storage gives it both numbers
        trial_id=-1,
        state=_STATES[status],
        value=None if status == STATUS_FAILED else validation_accuracy(progress, trial),
        datetime_start=datetime.fromtimestamp(started_ms / 1000),
        datetime_complete=datetime.fromtimestamp(max(started_ms, end.time_ms) / 1000),
        params=inside,
        distributions={name: distribution(space[name]) for name in inside},
        user_attrs={
            TAG_TRIAL_KEY: trial.key,
            ATTRIBUTE_STAGE_KEYS: [stage.key for stage in trial.stages],
            TAG_STATUS: status,
            "seed": trial.cell["seed"],
            **end.tags,
            **outside,
        },
        system_attrs={},
        intermediate_values={step: value for _, step, value, _ in points},
    )


def _outcome(progress: Progress, trials: Sequence[Trial], numbers: Mapping[Any, int]) -> dict[str, Any]:
    """The finalists, with their mean validation accuracy on the seeds of the final, and the winner, by the number of
    their trial in the study: Optuna's own best trial is that of one seed."""
    tried = {_settings(trial): trial for trial in reversed(trials) if trial.cell["seed"] == SEARCH_SEED}
    final: dict[int, list[float]] = {}
    winner: dict[str, Any] = {}
    for trial in trials:
        number = numbers.get(tried[_settings(trial)].key)
        if number is None or progress.status(trial) is None or trial.cell["seed"] == SEARCH_SEED:
            continue
        if trial.cell["seed"] >= FINALIST_SEED:
            final.setdefault(number, []).append(validation_accuracy(progress, trial))
        else:
            winner = {ATTRIBUTE_WINNER: number}
    means = [[number, statistics.fmean(accuracies)] for number, accuracies in final.items()]
    return ({ATTRIBUTE_FINALISTS: means} if means else {}) | winner


def _settings(trial: Trial) -> tuple[Any, ...]:
    """The values of all axes but the seed."""
    return tuple(value for axis, value in trial.cell.items() if axis != "seed")
