"""Workers that are forked from the warm process: the driver gives them packs, and replaces those that die or hang."""

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Self

from cvit.engine.execution import without_ray
from cvit.engine.execution.faults import Fault
from cvit.engine.execution.follower import Follower
from cvit.engine.execution.forked_worker import GPUS_OF_PROCESS, Settings, work
from cvit.engine.execution.pruning import may_prune
from cvit.engine.execution.queue import StagePack, named
from cvit.engine.execution.shared import share
from cvit.engine.execution.site import Site
from cvit.engine.execution.steps import Step
from cvit.engine.execution.warm import Forked, WarmProcess
from cvit.engine.execution.watch import Watch
from cvit.engine.execution.without_ray import Hang
from cvit.engine.planning.progress import Outcome, Progress
from cvit.engine.recording.journal import Journal
from cvit.engine.wording import duration
from cvit.machine import num_gpus
from cvit.provenance import code_version, source_hash

LOOK_INTERVAL_S = 1.0
"""Time between two looks whether workers hang."""
COUNTERS_OF_KERNEL = Path("/proc/vmstat")


def train_stages(
    progress: Progress, journal: Journal, follower: Follower, site: Site, warm: WarmProcess
) -> dict[str, Outcome]:
    """Trains by forked workers; see `without_ray.train_stages`."""
    settings = Settings(
        sweep=progress.plan.study.sweep,
        storage=site.storage.url,
        device=site.workers.device,
        threads=site.workers.threads,
        may_be_stopped=may_prune(progress),
        code=(source_hash(), code_version()),
    )
    with ForkedCrew(warm, site, settings) as crew:
        return without_ray.train_stages(progress, journal, follower, site, crew)


@dataclass
class _Worker:
    """A worker.

    Attributes:
        gpu: the GPU that it has, as CUDA_VISIBLE_DEVICES names it; empty on a CPU.
        name, pack: the pack that it has; empty while it is free.
        hung_s: for how long it had not moved when it was killed for that; else 0.
    """

    process: Forked
    gpu: str
    name: str = ""
    pack: StagePack = ()
    hung_s: float = 0.0


class ForkedCrew:
    """A crew of forked workers. With the context all of them end, with what they have not stored yet."""

    def __init__(self, warm: WarmProcess, site: Site, settings: Settings) -> None:
        self._warm, self._settings, self._count = warm, settings, site.workers.count
        self._gpus = _visible_gpus() if site.workers.device == "cuda" else [""]
        self._layout, self._data = share(site.dataset)
        self._workers: dict[Connection, _Worker] = {}
        self._watch, self._looked_at = Watch(), time.monotonic()
        self._num_killed_for_memory = _num_killed_for_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.process.kill()
        for worker in list(self._workers.values()):
            self._end(worker)
        self._data.close()

    @property
    def has_room(self) -> bool:
        return len(self._busy) < self._count

    @property
    def _busy(self) -> dict[str, _Worker]:
        """The workers that have a pack, by its name."""
        return {worker.name: worker for worker in self._workers.values() if worker.name}

    def give(self, name: str, pack: StagePack) -> None:
        worker = self._free_worker()
        worker.name, worker.pack = name, pack
        self._watch.started(name, pack[0].shape, worker)
        with contextlib.suppress(OSError):  # if it has died meanwhile, the end of its connection says so
            worker.process.connection.send(pack)

    def _free_worker(self) -> _Worker:
        for worker in [each for each in self._workers.values() if not each.name]:
            if not worker.process.connection.poll():
                return worker
            self._end(worker)  # it has said nothing but that it is gone
        used = Counter(worker.gpu for worker in self._workers.values())
        gpu = min(self._gpus, key=lambda gpu: used[gpu])
        process = self._warm.fork(work, self._settings, gpu, self._layout, files=[self._data.fileno()])
        worker = self._workers[process.connection] = _Worker(process, gpu)
        return worker

    def news(self, most_s: float) -> Iterable[tuple[str, Step | Fault | Hang]]:
        busy = {connection: worker for connection, worker in self._workers.items() if worker.name}
        for connection in wait(list(busy), most_s):
            yield self._news_of(busy[connection])  # pyright: ignore[reportArgumentType]
        if time.monotonic() - self._looked_at >= LOOK_INTERVAL_S:
            self._looked_at = time.monotonic()
            yield from self._hanging()

    def _news_of(self, worker: _Worker) -> tuple[str, Step | Fault]:
        """The step or the fault of a worker that has sent one, or has died."""
        name = worker.name
        try:
            news = worker.process.connection.recv()
        except (OSError, EOFError):
            news = None
        if isinstance(news, Step) and news.reports is not None:
            self._watch.moved(name)
            return name, news
        self._set_free(worker)
        if isinstance(news, Step):
            return name, news
        exit_code = self._end(worker)
        return name, news or self._fault_of(worker, exit_code)

    def answer(self, name: str, goes_on: bool) -> None:
        worker = self._busy[name]
        with contextlib.suppress(OSError):  # if it has died meanwhile, the end of its connection says so
            worker.process.connection.send(goes_on)
        if not goes_on:
            self._set_free(worker)

    def _set_free(self, worker: _Worker) -> None:
        self._watch.ended(worker.name)
        worker.name, worker.pack = "", ()

    def _hanging(self) -> Iterable[tuple[str, Hang]]:
        """Kills the workers that have not moved for too long, whose end is news later, and names others."""
        for silence in self._watch.look():
            worker: _Worker = silence.worker
            if silence.is_over:
                worker.hung_s = silence.seconds
                worker.process.kill()
            else:
                time_s, limit = duration(silence.seconds), duration(silence.most_s)
                work = f"{time_s} in {named(worker.pack)}; after {limit} it is killed"
                yield silence.name, Hang(f"pid {worker.process.pid} has not moved for {work}")

    def _fault_of(self, worker: _Worker, exit_code: int | None) -> Fault:
        """The fault of a worker that has died, by the exit code of its process."""
        place = f"pid {worker.process.pid}"
        if worker.hung_s:
            line = f"its worker hung for {duration(worker.hung_s)}, and was killed ({place})"
            return Fault("machine", line, worker_died=True)
        num_killed_for_memory = _num_killed_for_memory()
        if exit_code == -signal.SIGKILL and num_killed_for_memory > self._num_killed_for_memory:
            self._num_killed_for_memory = num_killed_for_memory
            line = f"killed for memory ({place}); try --max-pack or fewer workers"
            return Fault("machine", line, worker_died=True, for_memory=True)
        printed = f": {line}" if (line := self._warm.last_line()) else ""
        return Fault("machine", f"its worker died: {_ending(exit_code)} ({place}){printed}", worker_died=True)

    def _end(self, worker: _Worker) -> int | None:
        """Ends a worker for good, if it has not ended by itself; returns its exit code."""
        del self._workers[worker.process.connection]
        worker.process.kill()
        worker.process.connection.close()
        return self._warm.end_of(worker.process)


def _ending(exit_code: int | None) -> str:
    if exit_code is None:
        return "with the process that it was forked from"
    if exit_code < 0:
        return f"ended by {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"


def _visible_gpus() -> list[str]:
    """The GPUs of this process, by the names that CUDA_VISIBLE_DEVICES has for them."""
    count = num_gpus()
    names = [name.strip() for name in os.environ.get(GPUS_OF_PROCESS, "").split(",") if name.strip()]
    return names[:count] or [str(number) for number in range(count)]


def _num_killed_for_memory() -> int:
    """The number of processes that the system has killed for memory since its start; 0 if it does not say."""
    try:
        counters = dict(line.split() for line in COUNTERS_OF_KERNEL.read_text().splitlines())
    except OSError:  # another system
        return 0
    return int(counters.get("oom_kill", 0))
