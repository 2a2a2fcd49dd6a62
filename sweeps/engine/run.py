"""The main flow of every sweep: request → plan → stages → results."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from cvit.config import ConfigError
from cvit.data.datasets import DataError, DatasetInfo, describe, load
from cvit.storage import Storage, StorageError
from cvit.training.loop import Report
from cvit.vocabulary import STATUS_FAILED, TAG_CODE_VERSION, TAG_DATA_FINGERPRINT
from sweeps.engine.cli import Request, parse
from sweeps.engine.declaration import Sweep
from sweeps.engine.journal import Journal
from sweeps.engine.plan import Plan
from sweeps.engine.report import print_answer, print_plan
from sweeps.engine.results import record
from sweeps.engine.tracking import Tracker, check_tracking_uri

EXIT_FAILED_TRIALS = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

CLOSE_TIMEOUT_S = 60.0
"""How long the end of a sweep waits for MLflow; what is missing then is copied by the next run."""


def main(sweep: Sweep) -> None:
    """Runs a sweep script. Bad input ends it with one line and exit code 2 before anything starts."""
    try:
        sys.exit(run(sweep, sys.argv[1:]))
    except (ConfigError, DataError, StorageError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)


def run(sweep: Sweep, argv: list[str]) -> int:
    """Plans, trains what is missing, records and answers. Returns the exit code."""
    request = parse(sweep, argv)
    if request is None:
        return 0
    console = Console(soft_wrap=True)
    check_tracking_uri(request.tracking_uri)
    storage = Storage.open(request.storage)
    storage.exists()
    info = describe(
        request.dataset,
        request.data_dir,
        download=request.download and not request.dry_run,
        image_size=request.image_size,
    )
    plan = Plan.make(sweep, request, info, storage)
    print_plan(console, plan, request)
    if request.dry_run:
        return 0
    storage.check_writable()
    journal = Journal(storage, sweep.name)
    tags = {TAG_CODE_VERSION: _code_version(), TAG_DATA_FINGERPRINT: info.fingerprint}
    journal.record_plan(plan.study, plan.trials, tags)
    _record_known_results(plan, journal)
    planned = {plan.study.key, *(trial.key for trial in plan.trials)}
    tracker = Tracker(request.tracking_uri, sweep.name, planned, list(journal.records))
    journal.listen(tracker.feed)
    interrupted = False
    try:
        with _sigterm_as_interrupt():
            if plan.todo:
                _train(plan, info, request, storage, journal, console)
    except KeyboardInterrupt:
        interrupted = True
    failed = any(journal.status(trial.key) == STATUS_FAILED for trial in plan.trials)
    copied = tracker.close("KILLED" if interrupted else "FAILED" if failed else "FINISHED", CLOSE_TIMEOUT_S)
    print_answer(console, plan, storage, request, None if copied else tracker.error or "timed out", interrupted)
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED_TRIALS if failed else 0


def _record_known_results(plan: Plan, journal: Journal) -> None:
    """Completes the journal with results that the storage has: of stages shared with earlier sweeps, or finished just
    before a driver was killed."""
    for key, result in plan.results.items():
        record(plan, journal, key, Report(result.points, plan.stages[key].steps, result))


def _train(
    plan: Plan, info: DatasetInfo, request: Request, storage: Storage, journal: Journal, console: Console
) -> None:
    # Ray is imported only where there is something to train.
    from sweeps.engine.cluster import ray_session
    from sweeps.engine.display import Display
    from sweeps.engine.execute import execute

    dataset = load(info)
    with ray_session(request.address, request.device) as workers, Display(plan, console) as display:
        execute(plan, dataset, storage.url, workers, journal, display)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """A polite kill (a batch system's, say) stops a sweep as cleanly as Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _code_version() -> str:
    """The package's version and, in a checkout, the commit."""
    root = Path(__file__).parents[2]
    git = ["git", "-C", os.fspath(root), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return version("cvit")
    return f"{version('cvit')}+{commit}"
