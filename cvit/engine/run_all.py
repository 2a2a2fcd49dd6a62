"""Runs sweeps one after another, with one storage, one tracking store and one Ray. The command line and the Python
interface both end here; nothing in it exits, replaces streams or prints errors."""

import contextlib
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from cvit.cores import usable_cores
from cvit.data.datasets import DatasetInfo, describe
from cvit.engine import exit_codes
from cvit.engine.ahead import imported_meanwhile
from cvit.engine.declaration import Sweep
from cvit.engine.execution.forecast import Forecast, likely_workers
from cvit.engine.execution.pack_size import is_worth_measuring
from cvit.engine.execution.speed import Speed
from cvit.engine.execution.warm import WarmProcess
from cvit.engine.planning.progress import Progress
from cvit.engine.planning.request import LOCAL, Request, named_address
from cvit.engine.planning.rounds import first_round
from cvit.engine.recording.journal import Journal
from cvit.engine.recording.lease import Lease, lease
from cvit.engine.recording.record import take_up_pruned
from cvit.engine.terminal.plan_text import print_plan, print_stopped
from cvit.engine.terminal.preflight import check_request
from cvit.engine.terminal.spinner import spinner
from cvit.engine.terminal.surroundings import needed_for_files
from cvit.engine.tracking.backend import check_store
from cvit.engine.tracking.tracker_process import Spare
from cvit.parameters import ConfigError
from cvit.storage import Storage
from cvit.tasks import task_named

if TYPE_CHECKING:
    from cvit.engine.execution.cluster import Cluster
    from cvit.engine.session import Ending


@dataclass(frozen=True)
class Planned:
    """A sweep that is ready to be run."""

    progress: Progress
    info: DatasetInfo | None
    request: Request
    forecast: Forecast


@dataclass(frozen=True)
class Ended:
    """A sweep that was run: what has become of its trials, and how it ended."""

    progress: Progress
    ending: "Ending"


def run_sweeps(asked: Sequence[tuple[Sweep, Request]], console: Console, started_at: float) -> list[Ended]:
    """Plans all sweeps, then runs them. The first request says where and how: storage, tracking store, Ray, device and
    dry run are the same for all.

    Args:
        console: where plan, progress and answers are printed.
        started_at: when the user started the command, by the monotonic clock.

    Returns:
        The sweeps that were run: all of them, or up to one that Ctrl-C stopped, whose ending says so.

    Raises:
        ConfigError, DataError, StorageError: bad input; nothing was created or started.
        LeaseLost: another driver has taken a sweep over.
        KeyboardInterrupt: Ctrl-C, before anything was trained.
    """
    common = asked[0][1]
    storage, planned = _plan_all(asked)
    first, session = planned[0], _Common(storage, console, started_at)
    if common.dry_run:
        print_plan(console, first.progress, first.request, first.forecast)
        return _run_each(planned, [], session)
    try:
        return _run_under_leases(planned, session)
    except KeyboardInterrupt:
        print_stopped(console, first.progress, first.request)
        raise


def _run_under_leases(planned: Sequence[Planned], common: "_Common") -> list[Ended]:
    """Prints the first plan, once everything is checked that can be without Ray, starts Ray if there is anything to
    train, and runs the sweeps under their leases."""
    first = planned[0]
    address, names = first.request.address, [each.progress.plan.study.sweep for each in planned]
    with contextlib.ExitStack() as stack:

        def taken() -> list[Lease]:
            return [stack.enter_context(lease(common.storage, name, _say)) for name in names]

        warm = stack.enter_context(WarmProcess()) if _forks(planned) else None
        if warm is not None:
            warm.start()  # it imports torch and the training, while this process does other things
        spare = stack.enter_context(_spare_tracker(first)) if _trains(planned) else None
        cluster = None if address == LOCAL else stack.enter_context(_cluster(first.request))
        needs_ray = cluster is not None and _trains(planned)
        if cluster is not None and needs_ray:
            cluster.check()
        attaches = needs_ray and address is not None
        leases = [] if attaches else taken()
        print_plan(common.console, first.progress, first.request, first.forecast)
        if cluster is not None and needs_ray:
            start = "starting Ray" if address is None else f"attaching to {named_address(address)}"
            with spinner(common.console, start, first.forecast):
                if attaches:  # before the leases, so that a cluster without room leaves nothing in the storage
                    _ = cluster.workers
                    leases = taken()
                stack.enter_context(cluster)  # once more, so that its workers end before the leases do
                with imported_meanwhile("torch") if _measures(first) else contextlib.nullcontext():
                    _ = cluster.workers
        ended = _run_each(planned, leases, common, cluster, warm, spare)
        for own_lease in leases:
            own_lease.raise_if_lost()  # that of a sweep that was still to come
        return ended


def plans_as_json(asked: Sequence[tuple[Sweep, Request]]) -> str:
    """The plans of sweeps as JSON, for programs; nothing is trained or written.

    Raises:
        ConfigError, DataError, StorageError: bad input.
    """
    _, planned = _plan_all(asked)
    from cvit.engine.terminal.plan_json import plans_text

    return plans_text([(each.progress, each.request, each.forecast) for each in planned])


def exit_code_of(ended: Sequence[Ended]) -> int:
    """The worst of the exit codes of sweeps."""
    return max(each.ending.exit_code for each in ended)


def _plan_all(asked: Sequence[tuple[Sweep, Request]]) -> tuple[Storage, list[Planned]]:
    names = [sweep.name for sweep, _ in asked]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(f"sweep {twice[0]!r} is asked for twice")
    common = asked[0][1]
    check_request(common)
    storage = Storage.open(common.storage)
    if common.dry_run:
        storage.check_readable()
    else:
        storage.check_writable()
        check_store(common.tracking_uri, common.upgrade_store)
    for url in {request.optuna_storage for _, request in asked if request.optuna_storage is not None}:
        from cvit.engine.recording.optuna_studies import check_optuna_storage  # Optuna is not needed otherwise

        check_optuna_storage(url, may_write=not common.dry_run)
    return storage, [_plan(sweep, request, storage) for sweep, request in asked]


def _plan(sweep: Sweep, request: Request, storage: Storage) -> Planned:
    info = None
    if task_named(sweep.task).needs_data:
        may_download = request.download and not request.dry_run
        info = describe(
            request.dataset,
            request.data_dir,
            download=may_download,
            image_size=request.image_size,
            label_pattern=request.label_pattern,
            test_pattern=request.test_pattern,
        )
    progress = first_round(sweep, request, info, storage)
    take_up_pruned(progress, Journal(storage, sweep.name))
    workers = likely_workers(request)
    speed = Speed.recall(storage, workers.device, with_ray=request.address != LOCAL)
    return Planned(progress, info, request, Forecast(progress, workers, speed))


def _cluster(request: Request) -> "Cluster":
    """The Ray cluster, which is imported after help and bad input are answered. Ray then starts its worker processes
    while this process imports Ray Tune and pandas."""
    from cvit.engine.execution.cluster import Cluster

    return Cluster(request.address, request.device, request.resources)


def _spare_tracker(first: Planned) -> Spare:
    """The tracker's process. It gets what Ray's start leaves of the processor: that takes both cores of a small
    machine."""
    request, needed = first.request, needed_for_files(first.progress.plan.study.sweep)
    return Spare(request.tracking_uri, needed, is_patient=request.address != LOCAL)


def _measures(first: Planned) -> bool:
    """True if this process is going to measure pack sizes, beside Ray."""
    forecast = first.forecast
    return first.request.max_pack is None and is_worth_measuring(forecast.workers, forecast.work_s)


def _trains(planned: Sequence[Planned]) -> bool:
    """True if there is anything to train."""
    return any(each.progress.todo for each in planned)


def _forks(planned: Sequence[Planned]) -> bool:
    """True if workers are to be forked on this machine."""
    request = planned[0].request
    return request.address == LOCAL and not request.is_in_process and _trains(planned)


@dataclass(frozen=True)
class _Common:
    """The facts that all sessions share."""

    storage: Storage
    console: Console
    started_at: float


def _run_each(
    planned: Sequence[Planned],
    leases: Sequence[Lease],
    common: _Common,
    cluster: "Cluster | None" = None,
    warm: WarmProcess | None = None,
    spare: Spare | None = None,
) -> list[Ended]:
    with contextlib.ExitStack() as stack:
        is_in_process = warm is None and cluster is None  # else this process may do without torch
        with (
            spinner(common.console, "loading torch", planned[0].forecast)
            if is_in_process and not planned[0].request.dry_run
            else contextlib.nullcontext()
        ):
            if is_in_process:
                stack.enter_context(_threads_of_torch())
            from cvit.engine.execution.timing import Timing
            from cvit.engine.run import run_sweep
            from cvit.engine.session import Session

        started_at = common.started_at
        ended: list[Ended] = []
        for each, own_lease in itertools.zip_longest(planned, leases):
            timing = Timing(started_at)
            if ended:
                each.forecast.begin_later()
                print_plan(common.console, each.progress, each.request, each.forecast)
            where = (common.storage, common.console, cluster, warm)
            is_last = each is planned[-1]
            session = Session(each.request, each.info, *where, timing, each.forecast, own_lease, spare, is_last)
            ended.append(Ended(each.progress, run_sweep(each.progress, session)))
            if ended[-1].ending.exit_code == exit_codes.INTERRUPTED:
                break
            started_at = time.monotonic()
        return ended


@contextlib.contextmanager
def _threads_of_torch() -> Iterator[None]:
    """Within the context, torch has a thread for each core that this process may use. By itself it sees those of the
    machine, less those that affinity excludes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(before, usable_cores()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
