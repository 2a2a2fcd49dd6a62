"""The driver of the scale simulation without Ray: a made-up sweep of any size through the real plan, queue, recorder,
journal, tracker and display, as fast as the driver can, so that its own processor time is all that is measured."""

import io
import resource
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from benchmarks.arms.scale_driver import points_of
from cvit import vocabulary as v
from cvit.data.datasets import describe
from cvit.engine import book as books
from cvit.engine.execution.forecast import Forecast
from cvit.engine.execution.queue import StageQueue
from cvit.engine.execution.recorder import Recorder
from cvit.engine.execution.speed import Speed
from cvit.engine.execution.timing import Timing
from cvit.engine.execution.workers import Workers
from cvit.engine.planning.rounds import first_round
from cvit.engine.recording.journal import Journal
from cvit.engine.recording.lease import lease
from cvit.engine.session import Ending, Session
from cvit.engine.terminal.cli import parse
from cvit.engine.terminal.display import Display
from cvit.results import Report, StageResult
from cvit.stages import TrainingStage
from cvit.storage import Storage
from sweeps.low_data import SCHEMES, SWEEP

PARTS = 10
"""The number of parts of the sweep whose processor time is told apart."""
TRACKING_TIMEOUT_S = 3600.0


@dataclass
class Driven:
    """The measurements of a driver.

    Attributes:
        cpu_s: processor seconds of the driver's process, by what it did.
        parts_ms: its processor milliseconds per stage while trials ran, part by part.
        memory_mb: its peak memory so far, by what it did.
        tracker_cpu_s: processor seconds of the tracker's process.
        drain_s: seconds from the last result to a complete store.
    """

    trials: int = 0
    stages: int = 0
    cpu_s: dict[str, float] = field(default_factory=dict)
    memory_mb: dict[str, float] = field(default_factory=dict)
    parts_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    tracker_cpu_s: float = 0.0
    drain_s: float = 0.0
    journal_mb: float = 0.0
    store_mb: float = 0.0


def drive(trials: int, workers: int, rate: float, tracking: bool) -> Driven:
    """Runs a sweep of about so many trials in the working folder.

    Args:
        rate: the stages a second that the workers finish; 0: as many as the driver takes.
    """
    driven = Driven()
    cpu_before = time.process_time()
    driven.memory_mb["imports"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def lap(name: str) -> None:
        nonlocal cpu_before
        driven.cpu_s[name] = time.process_time() - cpu_before
        driven.memory_mb[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        cpu_before = time.process_time()

    books.CLOSE_TIMEOUT_S = TRACKING_TIMEOUT_S
    storage = Storage.open("storage")
    options = ("--seeds", str(trials // len(SCHEMES)), "--data-fraction", "0.05", "--init-scheme", *SCHEMES)
    uri = "sqlite:///mlflow.db" if tracking else v.NO_TRACKING
    request = parse(SWEEP, (*options, "--budget-unit", "steps", "--tracking-uri", uri))
    assert request is not None
    info = describe("digits", "data", download=False)
    progress = first_round(SWEEP, request, info, storage)
    driven.trials, driven.stages = len(progress.plan.trials), len(progress.plan.stages)
    lap("plan")
    console = Console(file=io.StringIO(), soft_wrap=True, force_terminal=True, width=100, height=40)
    simulated = Workers("cpu", workers, is_here=False)
    forecast = Forecast(progress, simulated, Speed())
    session = Session(request, info, storage, console, None, None, Timing(time.monotonic()), forecast)
    with lease(storage, progress.plan.study.sweep, print):
        journal = Journal(storage, progress.plan.study.sweep)
        with books.Book(progress, journal, session) as book:
            lap("journal of the plan")
            session.timing.begun.set()  # the tracker need not wait for a first step
            started_at = time.monotonic()
            with Display(progress, console, forecast) as display:
                queue = StageQueue(progress, {}, workers)
                recorder = Recorder(progress, journal, queue, display)
                lap("queue and display")
                driven.parts_ms = [*_train(queue, recorder, workers, driven.stages, rate)]
            driven.seconds = time.monotonic() - started_at
            lap("all trials")
            ended_at, children = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
            book.ending = Ending("FINISHED", 0)
        assert book.tracking_error is None, book.tracking_error
        driven.drain_s = time.monotonic() - ended_at
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        driven.tracker_cpu_s = used.ru_utime + used.ru_stime - children.ru_utime - children.ru_stime
        lap("end and answer")
    again = first_round(SWEEP, request, info, storage)
    Journal(storage, progress.plan.study.sweep)
    assert len(again.plan.trials) == driven.trials
    lap("plan and journal read again")
    driven.journal_mb = sum(path.stat().st_size for path in Path("storage").rglob("*.jsonl")) / 2**20
    driven.store_mb = Path("mlflow.db").stat().st_size / 2**20 if tracking else 0.0
    return driven


def _train(queue: StageQueue, recorder: Recorder, workers: int, num_stages: int, rate: float) -> Iterator[float]:
    """Goes through all stages, and tells the processor milliseconds per stage of each part of them."""
    running: deque[str] = deque()
    num_done, started_at, cpu_before, last = 0, time.monotonic(), time.process_time(), 0
    for number in range(10 * num_stages):
        while len(running) < workers and queue.next_pack(f"pack-{number}-{len(running)}") is not None:
            running.append(f"pack-{number}-{len(running)}")
            recorder.started(running[-1])
        if not running:
            break
        name = running.popleft()
        for stage in queue.pack_named(name):
            assert isinstance(stage, TrainingStage)
            points = points_of(stage)
            result = StageResult(v.STATUS_OK, 2.3, 1.0, "cpu", points)
            recorder.reported(name, [(stage.key, Report(points, stage.steps, result))])
            num_done += 1
        queue.pack_ended(name)
        recorder.ended(name)
        if num_done - last >= num_stages // PARTS:
            yield 1000 * (time.process_time() - cpu_before) / (num_done - last)
            last, cpu_before = num_done, time.process_time()
        if rate and (ahead_s := started_at + num_done / rate - time.monotonic()) > 0:
            time.sleep(ahead_s)
    assert num_done == num_stages and queue.is_finished
