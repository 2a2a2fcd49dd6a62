"""Training without Ray: this process trains the stages itself, one pack after another (`--address local`).

The results equal those of a sweep with Ray, on a CPU bit for bit; the journal, the handling of faults and resuming are
the same. It serves debugging with pdb, tests, and benchmarks.
"""

import itertools
import time
from collections.abc import Iterator

import torch

from cvit.engine.execution.faults import fault_of_exception
from cvit.engine.execution.follower import Follower
from cvit.engine.execution.queue import StagePack, StageQueue
from cvit.engine.execution.recorder import Recorder
from cvit.engine.execution.site import Site
from cvit.engine.planning.progress import Outcome, Progress
from cvit.engine.recording.journal import Journal
from cvit.machine import Load
from cvit.results import Reports
from cvit.storage import StorageError
from cvit.tasks import task_named
from cvit.training.probe import threads

POLL_S = 0.05
"""Time between two looks at the queue, while all stages that are left rest after a fault."""


def train_stages(progress: Progress, journal: Journal, follower: Follower, site: Site) -> dict[str, Outcome]:
    """Trains the stages that the plan still needs, and records every result as it comes in.

    Returns:
        The outcome of each of these stages, by key.

    Raises:
        StorageError: the storage cannot be written any more; nothing that was reported is lost.
    """
    queue = StageQueue(progress, site.limits, site.workers.count, site.claims)
    recorder = Recorder(progress, journal, queue, follower)
    load = Load()
    idle_since: float | None = None
    for number in itertools.count():
        if queue.is_finished:
            break
        name = f"pack-{number}"
        if queue.next_pack(name) is None:
            if queue.waiting_line is not None:
                recorder.waiting(queue.waiting_line)
            time.sleep(POLL_S)
            site.timing.looked(queue.num_resting)
            idle_since = None  # a rest after a fault is lost, not waited
            continue
        site.timing.looked(queue.num_resting)
        recorder.started(name)
        site.timing.started(name)
        with threads(site.workers.threads):  # like a worker on a CPU, so that results are the same to the last bit
            idle_since = _train_pack(name, queue, recorder, site, load, idle_since)
    if queue.storage_fault is not None:
        raise StorageError(f"storage {site.storage.url!r} cannot be used: {queue.storage_fault}")
    return queue.outcomes()


def _train_pack(
    name: str, queue: StageQueue, recorder: Recorder, site: Site, load: Load, idle_since: float | None
) -> float:
    """Trains a pack to its end, or to an error.

    Args:
        idle_since: when the pack before ended; None for the first one.

    Returns:
        When this pack ended, by the monotonic clock.
    """
    training = _training(queue.pack_named(name), site)
    while True:
        started_at = time.monotonic()
        try:
            reports = next(training, None)
        # Any exception of the training concerns this pack alone; the sweep continues with the others.
        except Exception as error:  # noqa: BLE001
            queue.pack_ended(name)
            site.timing.failed(name)
            recorder.failed(name, fault_of_exception(error))
            return time.monotonic()
        waited_s = 0.0 if idle_since is None else started_at - idle_since
        idle_since = time.monotonic()
        site.timing.add(idle_since - started_at, waited_s)
        site.timing.reported(name)
        if reports is None:
            queue.pack_ended(name)
            site.timing.ended(name)
            recorder.ended(name)
            return idle_since
        recorder.reported(name, reports)
        recorder.measured(load.measure())


def _training(pack: StagePack, site: Site) -> Iterator[Reports]:
    """The training of a pack. It is a generator, so that every exception of the task is raised by `next`."""
    device = torch.device(site.workers.device)
    yield from task_named(pack[0].task).train(pack, site.dataset, site.storage, device, False)
