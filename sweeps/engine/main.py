"""The entry point of every sweep script: requests → plans → runs."""

import contextlib
import functools
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cvit.config import ConfigError
from cvit.data.datasets import DatasetInfo, describe
from cvit.data.images import DataError
from cvit.redaction import Redacting
from cvit.storage import Storage, StorageError
from cvit.tasks import task_named
from sweeps.engine.declaration import Sweep
from sweeps.engine.planning.plan import Plan
from sweeps.engine.planning.request import Request
from sweeps.engine.recording.lease import lease
from sweeps.engine.terminal.cli import parse, parts_asked_for
from sweeps.engine.terminal.preflight import check_address, check_device, check_tracking_uri

if TYPE_CHECKING:
    from sweeps.engine.execution.cluster import Workers

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main(*sweeps: Sweep) -> None:
    """Runs a sweep script, its sweeps one after another. Bad input ends it with one line and exit code 2 before
    anything is created or started. Nothing printed shows the passwords and keys of URLs."""
    sys.stdout, sys.stderr = Redacting(sys.stdout), Redacting(sys.stderr)
    # A polite kill (a batch system's, say) stops a sweep as cleanly as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        requests: list[tuple[Sweep, Request]] = []
        for sweep in parts_asked_for(sweeps, sys.argv[1:]):
            request = parse(sweep, sys.argv[1:], sweeps if len(sweeps) > 1 else ())
            if request is None:
                sys.exit(0)
            requests.append((sweep, request))
        sys.exit(_plan_and_run(requests))
    except (ConfigError, DataError, StorageError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:  # before anything was started
        sys.exit(EXIT_INTERRUPTED)


def _plan_and_run(requests: list[tuple[Sweep, Request]]) -> int:
    """The worst exit code of the sweeps; all of them are planned before the first one starts."""
    request = requests[0][1]  # where and how to run is the same for all
    check_tracking_uri(request.tracking_uri)
    check_address(request.address)
    check_device(request.device, request.address)
    storage = Storage.open(request.storage)
    if not request.dry_run:
        storage.check_writable()
    may_download = request.download and not request.dry_run
    prepared: list[tuple[Plan, DatasetInfo | None, Request]] = []
    for sweep, request in requests:
        info = None
        if task_named(sweep.task).needs_data:
            info = describe(request.dataset, request.data_dir, download=may_download, image_size=request.image_size)
        plan = Plan.make(sweep, request, info, storage)
        if plan.search is not None:
            from sweeps.engine.planning.search import next_plan

            plan = next_plan(plan, storage) or plan
        prepared.append((plan, info, request))
    with contextlib.ExitStack() as leases:
        for plan, _, request in prepared:
            if not request.dry_run:
                leases.enter_context(lease(storage, plan.study.sweep, _say))
        return _run_all(prepared, storage)


def _run_all(prepared: list[tuple[Plan, DatasetInfo | None, Request]], storage: Storage) -> int:
    started_at = time.monotonic()
    request = prepared[0][2]
    with contextlib.ExitStack() as session:

        @functools.cache
        def workers() -> "Workers":
            """Those of Ray, which is started or attached to when they are first asked for, once for all sweeps."""
            from sweeps.engine.execution.cluster import ray_session

            return session.enter_context(ray_session(request.address, request.device))

        # Help and bad input are answered before anything that takes seconds. Then Ray starts processes for its workers,
        # while this one imports torch and pandas.
        if not request.dry_run and any(plan.todo for plan, _, _ in prepared):
            workers()
        from sweeps.engine.run import run

        exit_code = 0
        for plan, info, request in prepared:
            exit_code = max(exit_code, run(plan, info, request, storage, workers, started_at))
            if exit_code == EXIT_INTERRUPTED:
                break
            started_at = time.monotonic()
        return exit_code


def _say(line: str) -> None:
    print(line, file=sys.stderr)
