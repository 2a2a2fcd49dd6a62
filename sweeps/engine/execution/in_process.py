"""Training without Ray: this process trains the stages itself, one pack after another (`--address local`).

The results equal those of a sweep with Ray, on a CPU bit for bit; the journal, the handling of faults and resuming are
the same. It serves debugging with pdb, tests, and benchmarks.
"""

import itertools
import time
from collections.abc import Iterator

import torch

from cvit.results import Reports
from cvit.storage import StorageError
from cvit.tasks import task_named
from cvit.training.probe import one_thread
from sweeps.engine.execution.faults import fault_of_exception
from sweeps.engine.execution.follower import Follower
from sweeps.engine.execution.queue import StagePack, StageQueue
from sweeps.engine.execution.recorder import Recorder
from sweeps.engine.execution.site import Site
from sweeps.engine.planning.progress import Outcome, Progress
from sweeps.engine.recording.journal import Journal

POLL_S = 0.05
"""Time between two looks at the queue, while all stages that are left rest after a fault."""


def train_stages(progress: Progress, journal: Journal, follower: Follower, site: Site) -> dict[str, Outcome]:
    """Trains the stages that the plan still needs, and records every result as it comes in.

    Returns:
        The outcome of each of these stages, by key.

    Raises:
        StorageError: the storage cannot be written any more; nothing that was reported is lost.
    """
    queue = StageQueue(progress, site.limits, site.workers.count)
    recorder = Recorder(progress, journal, queue, follower)
    for number in itertools.count():
        if queue.is_finished:
            break
        name = f"pack-{number}"
        if queue.next_pack(name) is None:
            time.sleep(POLL_S)
            continue
        recorder.started(name)
        with one_thread():  # like a worker on a CPU, so that results are the same to the last bit
            _train_pack(name, queue, recorder, site)
    if queue.storage_fault is not None:
        raise StorageError(f"storage {site.storage.url!r} cannot be written: {queue.storage_fault}")
    return queue.outcomes()


def _train_pack(name: str, queue: StageQueue, recorder: Recorder, site: Site) -> None:
    training, ended_at = _training(queue.pack_named(name), site), None
    while True:
        started_at = time.monotonic()
        try:
            reports = next(training, None)
        # Any exception of the training concerns this pack alone; the sweep continues with the others.
        except Exception as error:  # noqa: BLE001
            queue.pack_ended(name)
            recorder.failed(name, fault_of_exception(error))
            return
        waited_s = 0.0 if ended_at is None else started_at - ended_at
        ended_at = time.monotonic()
        site.timing.add(ended_at - started_at, waited_s)
        if reports is None:
            queue.pack_ended(name)
            recorder.ended(name)
            return
        recorder.reported(name, reports)


def _training(pack: StagePack, site: Site) -> Iterator[Reports]:
    """The training of a pack. It is a generator, so that every exception of the task is raised by `next`."""
    device = torch.device(site.workers.device)
    yield from task_named(pack[0].task).train(pack, site.dataset, site.storage, device, False)
