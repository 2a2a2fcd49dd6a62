"""The main flow of a sweep: plan → stages → journal → answer."""

import contextlib
import functools
import os
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import ray
from rich.console import Console

from cvit.data.datasets import Dataset, DatasetInfo, load
from cvit.results import Report
from cvit.storage import Storage, StorageError
from cvit.vocabulary import STATUS_PRUNED, TAG_CODE_VERSION, TAG_DATA_FINGERPRINT, TAG_TASK, VAL_ACCURACY
from sweeps.engine.execution.cluster import Workers
from sweeps.engine.execution.execute import execute
from sweeps.engine.execution.head_watch import watching
from sweeps.engine.execution.pack_size import pack_limits
from sweeps.engine.execution.timing import Timing
from sweeps.engine.main import EXIT_INTERRUPTED
from sweeps.engine.planning.plan import Plan
from sweeps.engine.planning.request import Request
from sweeps.engine.recording.journal import Journal
from sweeps.engine.recording.record import record
from sweeps.engine.terminal.display import Display
from sweeps.engine.terminal.report import print_answer, print_growth, print_lost_head, print_plan, print_storage_error
from sweeps.engine.tracking.tracker import Tracker

EXIT_FAILED_TRIALS = 1

CLOSE_TIMEOUT_S = 60.0
"""How long the end of a sweep waits for MLflow; what is missing then is copied by the next run."""


def run(
    plan: Plan,
    info: DatasetInfo | None,
    request: Request,
    storage: Storage,
    workers: Callable[[], Workers],
    started_at: float,
) -> int:
    """Trains what is missing, records and answers.

    Args:
        workers: starts Ray, once, and only if there is anything to train.
        started_at: when this sweep began, by the monotonic clock.

    Returns:
        The exit code: 0, 1 where trials failed, 130 after Ctrl-C.

    Raises:
        ConfigError: there is no such cluster.
        DataError: an image cannot be decoded.
    """
    console = Console(soft_wrap=True)
    journal = Journal(storage, plan.study.sweep)
    _take_up_pruned(plan, journal)
    print_plan(console, plan, request)
    if request.dry_run:
        return 0
    timing = Timing(started_at)

    @functools.cache
    def dataset() -> Dataset | None:
        return load(info) if info is not None else None

    def train(plan: Plan) -> None:
        limits = pack_limits(plan.todo, workers(), request.max_pack)
        with Display(plan, console) as display, _watched_head(console, plan, request):
            execute(plan, dataset(), storage.url, workers(), limits, journal, display, timing)

    try:
        if plan.todo:
            dataset()  # bad images end it before anything is recorded
            workers()
        return _record_and_answer(plan, info, request, storage, journal, console, timing, train)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _record_and_answer(
    plan: Plan,
    info: DatasetInfo | None,
    request: Request,
    storage: Storage,
    journal: Journal,
    console: Console,
    timing: Timing,
    train: Callable[[Plan], None],
) -> int:
    """Opens the tracker, trains, and answers from what was recorded, however the training ends."""
    tags = {TAG_CODE_VERSION: _code_version(), TAG_TASK: plan.study.task}
    if info is not None:
        tags[TAG_DATA_FINGERPRINT] = info.fingerprint
    _record_plan(plan, journal, tags)
    done_before = {trial.key for trial in plan.trials if plan.status(trial) is not None}
    tracker = Tracker(request.tracking_uri, plan.study.sweep, _keys(plan), journal.records)
    journal.listen(tracker.feed)
    outcome, exit_code, storage_error = "FAILED", EXIT_FAILED_TRIALS, None
    try:
        if plan.todo:
            train(plan)
        while (grown := _next_plan(plan, storage)) is not None:
            plan = grown
            _take_up_pruned(plan, journal)
            tracker.expect(_keys(plan))
            _record_plan(plan, journal, tags)
            print_growth(console, plan)
            if plan.todo:
                train(plan)
        if all(plan.status(trial) is not None for trial in plan.trials):
            outcome, exit_code = "FINISHED", 0
    except KeyboardInterrupt:
        outcome, exit_code = "KILLED", EXIT_INTERRUPTED
    except StorageError as error:
        storage_error = str(error)
    finally:
        copied = tracker.close(outcome, CLOSE_TIMEOUT_S)
    try:
        journal.flush()
    except StorageError as error:
        storage_error = storage_error or str(error)
    error = None if copied else tracker.error or f"not done within {CLOSE_TIMEOUT_S:.0f} s"
    if storage_error is not None:
        print_storage_error(console, plan, request, storage_error)
        return exit_code
    ended = sum(plan.status(trial) is not None and trial.key not in done_before for trial in plan.trials)
    time_line = timing.line(ended)
    is_interrupted = exit_code == EXIT_INTERRUPTED
    print_answer(console, plan, storage, request, time_line, error, tracker.how_to_look(), is_interrupted)
    return exit_code


def _next_plan(plan: Plan, storage: Storage) -> Plan | None:
    if plan.search is None:
        return None
    from sweeps.engine.planning.search import next_plan  # Optuna is not needed otherwise

    return next_plan(plan, storage)


def _keys(plan: Plan) -> set[str]:
    return {plan.study.key, *(trial.key for trial in plan.trials)}


def _record_plan(plan: Plan, journal: Journal, tags: dict[str, str]) -> None:
    journal.record_plan(plan.study, plan.trials, tags)
    _record_known_results(plan, journal)


def _take_up_pruned(plan: Plan, journal: Journal) -> None:
    """What an earlier session stopped early stays stopped, as long as trials are to be stopped at all."""
    if plan.search is not None and plan.search.asha:
        stopped = {trial.key for trial in plan.trials if journal.status(trial.key) == STATUS_PRUNED}
        values = journal.last_values(VAL_ACCURACY) if stopped else {}
        plan.pruned.update({key: values.get(key, 0.0) for key in stopped})


def _record_known_results(plan: Plan, journal: Journal) -> None:
    """Completes the journal with results that the storage has: of stages shared with earlier sweeps, or finished just
    before a driver was killed."""
    for key, result in plan.results.items():
        record(plan, journal, key, Report(result.points, plan.stages[key].steps, result))


def _watched_head(console: Console, plan: Plan, request: Request) -> contextlib.AbstractContextManager[None]:
    """Says how to go on should the head of a cluster be lost; Ray ends this process then."""
    if request.address is None or request.address.startswith("ray://"):  # a client knows its proxy only
        return contextlib.nullcontext()
    address = ray.get_runtime_context().gcs_address
    return watching(address, lambda: print_lost_head(console, plan, request, address))


def _code_version() -> str:
    """The package's version and, in a checkout, the commit."""
    root = Path(__file__).parents[2]
    git = ["git", "-C", os.fspath(root), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return version("cvit")
    return f"{version('cvit')}+{commit}"
