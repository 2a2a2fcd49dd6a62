"""The entry point of every sweep script: from the command line to requests, plans and runs."""

import contextlib
import itertools
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cvit.config import ConfigError
from cvit.cores import usable_cores
from cvit.data.datasets import DatasetInfo, describe
from cvit.data.images import DataError
from cvit.engine import environment, exit_codes
from cvit.engine.declaration import Sweep
from cvit.engine.planning.progress import Progress
from cvit.engine.planning.request import IN_PROCESS, Request
from cvit.engine.planning.rounds import first_round
from cvit.engine.recording.lease import Lease, LeaseLost, lease
from cvit.engine.terminal.cli import parse, parts_asked_for
from cvit.engine.terminal.preflight import check_request
from cvit.engine.tracking.backend import check_store
from cvit.redaction import Redacting
from cvit.storage import Storage, StorageError, without_waiting
from cvit.streams import make_streams_last
from cvit.tasks import task_named

if TYPE_CHECKING:
    from cvit.engine.execution.cluster import Cluster


@dataclass(frozen=True)
class Planned:
    """A sweep that is ready to be run."""

    progress: Progress
    info: DatasetInfo | None
    request: Request


@without_waiting()
def main(*sweeps: Sweep) -> None:
    """Runs the sweeps of a script one after another. Bad input ends it with one line and exit code 2, before anything
    is created or started. The output never shows the passwords and keys of URLs."""
    environment.prepare()
    make_streams_last()
    sys.stdout, sys.stderr = Redacting(sys.stdout), Redacting(sys.stderr)
    # SIGTERM, as from a batch system, stops a sweep as cleanly as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(_run_script(sweeps, sys.argv[1:]))
    except LeaseLost as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(exit_codes.LEASE_LOST)
    except (ConfigError, DataError, StorageError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(exit_codes.BAD_INPUT)
    except KeyboardInterrupt:  # before anything was started
        sys.exit(exit_codes.INTERRUPTED)


def _run_script(sweeps: Sequence[Sweep], argv: Sequence[str]) -> int:
    """Plans all sweeps, then runs them; returns the worst of their exit codes."""
    started_at = time.monotonic()
    requests: list[tuple[Sweep, Request]] = []
    for sweep in parts_asked_for(sweeps, argv):
        request = parse(sweep, argv, sweeps if len(sweeps) > 1 else ())
        if request is None:
            return exit_codes.FINISHED  # the help is printed
        requests.append((sweep, request))
    common = requests[0][1]  # storage, cluster and tracking are the same for all
    check_request(common)
    storage = Storage.open(common.storage)
    if common.dry_run:
        storage.check_readable()
    else:
        storage.check_writable()
        check_store(common.tracking_uri, common.upgrade_store)
    planned = [_plan(sweep, request, storage) for sweep, request in requests]
    if common.dry_run:
        return _run_all(planned, [], storage, None, started_at)
    needs_ray = common.address != IN_PROCESS and any(each.progress.todo for each in planned)
    with contextlib.ExitStack() as stack:
        cluster = None if common.address == IN_PROCESS else stack.enter_context(_cluster(common))
        if cluster is not None and needs_ray:
            cluster.reach()  # before the leases, so that a wrong address leaves nothing in the storage
        leases = [stack.enter_context(lease(storage, each.progress.plan.study.sweep, _say)) for each in planned]
        if cluster is not None and needs_ray:
            stack.enter_context(cluster)  # once more, so that its workers end before the leases do
            _ = cluster.workers
        exit_code = _run_all(planned, leases, storage, cluster, started_at)
        for own_lease in leases:
            own_lease.raise_if_lost()  # that of a sweep that was still to come
        return exit_code


def _plan(sweep: Sweep, request: Request, storage: Storage) -> Planned:
    info = None
    if task_named(sweep.task).needs_data:
        may_download = request.download and not request.dry_run
        info = describe(request.dataset, request.data_dir, download=may_download, image_size=request.image_size)
    return Planned(first_round(sweep, request, info, storage), info, request)


def _cluster(request: Request) -> "Cluster":
    """The Ray cluster, which is imported after help and bad input are answered. Ray then starts its worker processes
    while this process imports torch and pandas."""
    from cvit.engine.execution.cluster import Cluster

    return Cluster(request.address, request.device, request.resources)


def _run_all(
    planned: Sequence[Planned],
    leases: Sequence[Lease],
    storage: Storage,
    cluster: "Cluster | None",
    started_at: float,
) -> int:
    import torch
    from rich.console import Console

    from cvit.engine.execution.timing import Timing
    from cvit.engine.run import Session, run_sweep

    # torch by itself sees the cores of the machine, less those that affinity excludes.
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    exit_code = exit_codes.FINISHED
    for each, own_lease in itertools.zip_longest(planned, leases):
        console, timing = Console(soft_wrap=True), Timing(started_at)
        session = Session(each.request, each.info, storage, console, cluster, timing, own_lease)
        exit_code = max(exit_code, run_sweep(each.progress, session))
        if exit_code == exit_codes.INTERRUPTED:
            break
        started_at = time.monotonic()
    return exit_code


def _say(line: str) -> None:
    print(line, file=sys.stderr)
