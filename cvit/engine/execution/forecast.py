"""The forecast of a sweep: the time that it still takes, expected from its plan until steps have been measured.

The plan expects seconds of every stage (`Task.expected_seconds`). The pace is the seconds that stages took, divided by
those expected; before the first report, it is that of earlier sessions, or follows from how busy the machine is. Later
it is that of the last minute, so that the forecast follows a machine that becomes busy or idle.
"""

import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path

from cvit.cores import usable_cores
from cvit.engine.execution.queue import StagePack
from cvit.engine.execution.speed import Speed
from cvit.engine.execution.workers import THIS_MACHINE, Machine, Workers, workers_on
from cvit.engine.planning.progress import Progress
from cvit.engine.planning.request import LOCAL, Request, Resources
from cvit.stages import Stage
from cvit.storage import Storage
from cvit.tasks import task_named

WINDOW_S = 60.0
"""The pace is measured over so long a time, and over so many reports at least."""
LEAST_REPORTS = 8
PRIOR_S = 5.0
"""The pace that is expected counts like so many expected seconds of measurements."""
SHARE_OF_PACK = 0.95
"""The largest share of a running pack that counts as trained before it is reported."""
CLOSING_S = 1.5
"""The time from the last report to the end, on an idle machine: tracking store, answer, the end of Ray."""
LEAST_SHARE_OF_START = 0.25
"""A start-up that takes longer than expected is expected to take a quarter more than so far."""
LATER_START_S = 3.0
"""The time to the first step of a sweep, if Ray and torch have been started for another one."""
GPUS = Path("/proc/driver/nvidia/gpus")
LOAD = Path("/proc/loadavg")
SAMPLES, SAMPLING_S = 5, 0.01
"""The load of a moment is read so often, after such pauses."""


def likely_workers(request: Request) -> Workers:
    """The workers that a sweep is likely to have, found without torch and Ray; those of a running cluster count as one,
    unless their number is given."""
    likely = likely_workers_here(request.device, request.resources)
    if request.address in (None, LOCAL):
        return likely
    return replace(likely, count=request.resources.workers or 1, is_here=False)


def likely_workers_here(device: str, asked: Resources) -> Workers:
    """The workers that a sweep on this machine is likely to have, found without torch and Ray."""
    needs_gpu = device == "cuda" or asked.gpus_per_worker is not None
    num_gpus = 0 if device == "cpu" else _visible_gpus() or int(needs_gpu)
    return workers_on([Machine(usable_cores(), num_gpus)], device, asked, THIS_MACHINE, may_grow=True)


def _visible_gpus() -> int:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len(list(GPUS.iterdir())) if GPUS.is_dir() else 0
    return there if chosen is None else min(there, len([name for name in chosen.split(",") if name.strip()]))


def contention(num_workers: int) -> float:
    """The factor by which computations take longer than on an idle machine, beside what the machine does already. The
    lowest of two averages of the load and of the load at this moment counts, so that what has just ended does not."""
    load = min(*os.getloadavg()[:2], _load_now())
    return max(1.0, (load + num_workers) / (os.cpu_count() or 1))


def _load_now() -> float:
    """The number of other threads that run or could, a mean over some 40 ms; infinite where the system does not say."""
    numbers = []
    try:
        for _ in range(SAMPLES):
            numbers.append(int(LOAD.read_text().split()[3].partition("/")[0]) - 1)
            time.sleep(SAMPLING_S)
    except (OSError, ValueError, IndexError):
        return math.inf
    return statistics.fmean(numbers)


class Forecast:
    """The forecast of one sweep. It is told about packs and reports, as a follower is, and identifies packs by name.

    Attributes:
        workers: those that are likely, until they are known.
        busy: how many times as long computations take beside what the machine did at the start; 1 if it was idle.
        speed: that of the machine, as far as earlier sessions have measured it.
        pace_before: the pace that is expected before the first report.
    """

    def __init__(
        self, progress: Progress, workers: Workers, speed: Speed, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.workers, self.speed, self._clock = workers, speed, clock
        self.busy = contention(workers.count) if workers.is_here else 1.0
        self.pace_before = speed.pace * self.busy
        self._start_up_s, self._closing_s = speed.start_up_s * self.busy, CLOSING_S * self.busy
        self._began_at, self._is_first = clock(), True
        self._has_trained, self._begun_kinds = False, set[Hashable]()
        self._reports: deque[tuple[float, float, float]] = deque()
        self._sums = [0.0, 0.0]
        self._running: dict[str, tuple[StagePack, float]] = {}
        self.follow(progress)

    def begin_later(self) -> None:
        """The sweep begins now, after another one of the same session."""
        self._began_at, self._is_first = self._clock(), False
        self._start_up_s = min(self._start_up_s, LATER_START_S * self.busy)

    def follow(self, progress: Progress, workers: Workers | None = None) -> None:
        """Follows the stages that a progress has to train now; so at the start of every round of a search.

        Args:
            workers: those that train them, if they are known.
        """
        self.workers = workers or self.workers
        self._todo = {stage.key: stage for stage in progress.todo}
        self._expected = {key: self._seconds(progress, stage) for key, stage in self._todo.items()}
        self._left = {
            key: self._expected[key] * (1 - progress.steps.get(key, 0) / stage.steps)
            for key, stage in self._todo.items()
        }
        self._compiling = self._seconds_to_compile()
        self._children: dict[str, list[str]] = {}
        for stage in self._todo.values():
            if stage.parent is not None:
                self._children.setdefault(stage.parent.key, []).append(stage.key)
        trials = progress.plan.trials
        share = progress.plan.num_trials_to_come / len(trials) if trials else 0.0
        self._to_come_s = share * sum(self._seconds(progress, stage) for stage in progress.plan.stages.values())

    def _seconds(self, progress: Progress, stage: Stage) -> float:
        images = progress.plan.trials_of[stage.key][0].images
        return task_named(stage.task).expected_seconds(stage, images, self.workers.device)

    def _seconds_to_compile(self) -> dict[Hashable, float]:
        """The seconds for which each worker compiles, by the kind of its steps; the workers share the work evenly."""
        of_kind: dict[Hashable, float] = {}
        for key, stage in self._todo.items():
            if stage.cost_kind in self._begun_kinds:
                continue
            of_kind[stage.cost_kind] = of_kind.get(stage.cost_kind, 0.0) + self._left[key] / self.workers.count
        tasks = {stage.cost_kind: task_named(stage.task) for stage in self._todo.values()}
        return {kind: tasks[kind].compile_seconds(left, self.workers.device) for kind, left in of_kind.items()}

    def started(self, name: str, pack: StagePack) -> None:
        """A worker has begun a pack."""
        self._begun_kinds.add(pack[0].cost_kind)
        self._compiling.pop(pack[0].cost_kind, None)
        self._has_trained = True
        self._running[name] = pack, self._clock()

    def reported(self, name: str, key: str, step: int) -> None:
        """A stage of the pack has reached a step."""
        now = self._clock()
        left = self._expected[key] * (1 - step / self._todo[key].steps)
        trained = max(0.0, self._left[key] - left)
        self._left[key] = left
        pack, since = self._running.get(name, ((), now))
        self._running[name] = pack, now
        self._reports.append((now, now - since, trained))
        self._sums = [self._sums[0] + now - since, self._sums[1] + trained]
        while len(self._reports) > LEAST_REPORTS and self._reports[0][0] < now - WINDOW_S:
            self._reports.popleft()

    def left_out(self, key: str) -> None:
        """A stage is not trained any further, nor is any that starts from it."""
        self._left.pop(key, None)
        for child in self._children.get(key, ()):
            self.left_out(child)

    def ended(self, name: str) -> None:
        """A worker has finished a pack, or given it up."""
        self._running.pop(name, None)

    def remember(self, storage: Storage, start_up_s: float) -> None:
        """Remembers the pace of this session for the next one, if stages were trained.

        Args:
            start_up_s: the time from the session's start to its first step.
        """
        if self._sums[1] > 0:
            start_up_s = start_up_s / self.busy if self._is_first else self.speed.start_up_s
            speed = Speed(self._sums[0] / self.busy, self._sums[1], start_up_s, self.speed.with_ray)
            speed.remember(storage, self.workers.device)

    def _pace(self, now: float) -> float:
        took = sum(seconds for _, seconds, _ in self._reports) + PRIOR_S * self.pace_before
        expected = sum(seconds for _, _, seconds in self._reports) + PRIOR_S
        for pack, since in self._running.values():
            of_pack = self._left_of(pack)
            if now - since > of_pack * took / expected:  # it should be over by now
                took, expected = took + now - since, expected + of_pack
        return took / expected

    def _left_of(self, pack: StagePack) -> float:
        return sum(self._left.get(stage.key, 0.0) for stage in pack)

    @property
    def work_s(self) -> float:
        """The seconds that the workers are expected to train, before anything was measured."""
        return (sum(self._left.values()) + self._to_come_s) * self.pace_before / self.workers.count

    def left_s(self) -> float:
        """The seconds until the sweep has ended."""
        now = self._clock()
        pace, credit, longest = self._pace(now), 0.0, 0.0
        for pack, since in list(self._running.values()):
            of_pack = self._left_of(pack) * pace
            trained = min(now - since, SHARE_OF_PACK * of_pack)
            after = max((self._left.get(c, 0.0) for s in pack for c in self._children.get(s.key, ())), default=0.0)
            credit, longest = credit + trained, max(longest, of_pack - trained + after * pace)
        work = (sum(list(self._left.values())) + self._to_come_s) * pace - credit
        start = self._start_left(now) if self._todo else 0.0
        return start + max(work / self.workers.count, longest) + sum(self._compiling.values()) + self._closing_s

    def _start_left(self, now: float) -> float:
        if self._has_trained:
            return 0.0
        elapsed = now - self._began_at
        return max(self._start_up_s - elapsed, LEAST_SHARE_OF_START * elapsed)
