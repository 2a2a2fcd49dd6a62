"""The driver of the scale simulation: one sweep whose workers only wait, through the real plan, searcher, journal,
tracker and display, and a clock on each of these parts."""

import functools
import os
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray
from ray import tune
from rich.console import Console

from benchmarks.arms.scale_worker import DONE_KEYS, STAGE_SECONDS, NoOpTrainer
from cvit import vocabulary as v
from cvit.data.datasets import describe
from cvit.engine import book as books
from cvit.engine.execution import execute
from cvit.engine.execution.callback import TuneCallback
from cvit.engine.execution.forecast import Forecast
from cvit.engine.execution.searcher import PlanSearcher
from cvit.engine.execution.site import Site
from cvit.engine.execution.speed import Speed
from cvit.engine.execution.timing import Timing
from cvit.engine.execution.worker import BUSY_S, REPORTS, WAITED_S
from cvit.engine.execution.workers import Workers
from cvit.engine.planning.plan import Plan
from cvit.engine.planning.rounds import first_round
from cvit.engine.recording.journal import Journal
from cvit.engine.recording.lease import lease
from cvit.engine.session import Ending, Session
from cvit.engine.terminal.cli import parse
from cvit.engine.terminal.display import Display
from cvit.engine.terminal.report import Closing, print_closing, read_answer
from cvit.engine.tracking.tracker import Tracker
from cvit.results import Point, Report, StageResult
from cvit.stages import TrainingStage
from cvit.storage import Storage
from cvit.training.loop import EARLY_STEPS
from sweeps.low_data import SCHEMES, SWEEP

EVALUATIONS = 10
PER_EVALUATION = (
    *(v.TRAIN_LOSS, v.TRAIN_ACCURACY, v.VAL_LOSS, v.VAL_ACCURACY),
    *(v.LEARNING_RATE, v.GRAD_NORM, v.IMAGES_PER_SECOND),
)
PART = 1000
"""The number of stages over which a rate is told."""
TRACKING_TIMEOUT_S = 3 * 3600.0


@dataclass
class Simulated:
    """The measurements of a simulation.

    Attributes:
        laps: (name, seconds, peak memory in MB) of every part, in their order.
        seconds: while trials ran.
        rates: stages per second, PART by PART.
    """

    trials: int = 0
    stages: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    journal_mb: float = 0.0
    store_mb: float = 0.0
    laps: list[tuple[str, float, float]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    timing: Timing = field(default_factory=lambda: Timing(time.monotonic()))
    clock: "Clock" = field(default_factory=lambda: Clock())


class Clock:
    """Counts the time spent in named parts of the driver's main thread, and how often."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Replaces a method by one that is timed."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.thread_time()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds[part] += time.thread_time() - started
                self.calls[part] += 1

        setattr(owner, name, timed)


def points_of(stage: TrainingStage) -> list[Point]:
    """Makes up as many measurements as a real stage has."""
    now = time.time_ns() // 1_000_000
    last = stage.last_step
    early = [(v.EARLY_GRAD_NORM, stage.first_step + n, 1.0, now) for n in range(min(EARLY_STEPS, stage.steps))]
    steps = sorted({stage.first_step + max(1, stage.steps * n // EVALUATIONS) for n in range(1, EVALUATIONS + 1)})
    curves = [(metric, step, 0.5, now) for step in steps for metric in PER_EVALUATION]
    ends = [(metric, last, 0.5, now) for metric in (v.EARLY_LOSS, v.GRAD_NORM_MAX, v.LOSS_SPIKES)]
    final = v.CONVOLUTION_TEST_ACCURACY if stage.phase == v.CONVOLUTION else v.TEST_ACCURACY
    return [*early, *curves, *ends, (final, last, 0.5, now)]


def report_as_trained(plan: Plan, done_at: list[float]) -> Callable[..., None]:
    """Returns a callback for results like the engine's, fed by workers that only name the stages that are done; it
    notes when each of them was."""
    of_real_workers = TuneCallback.on_trial_result

    def on_trial_result(
        self: Any, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        reports = []
        for key in result.get(DONE_KEYS, ()):
            stage = plan.stages[key]
            assert isinstance(stage, TrainingStage)
            done_at.append(time.monotonic())
            points = points_of(stage)
            reports.append((key, Report(points, stage.steps, StageResult(v.STATUS_OK, 2.3, 1.0, "cpu", points))))
        result = {REPORTS: reports, BUSY_S: result.get(BUSY_S, 0.0), WAITED_S: result.get(WAITED_S, 0.0)}
        of_real_workers(self, iteration, trials, trial, result, **info)

    return on_trial_result


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def simulate(trials: int, workers: int, stage_seconds: float, tracking: bool) -> Simulated:
    """Runs a sweep of about so many trials in the working folder."""
    measured = Simulated()
    last = time.monotonic()

    def lap(name: str) -> None:
        nonlocal last
        now = time.monotonic()
        measured.laps.append((name, now - last, peak_mb()))
        last = now

    storage = Storage.open("storage")
    per_scheme = str(-(-trials // len(SCHEMES)))
    options = ("--seeds", per_scheme, "--data-fraction", "0.05", "--init-scheme", *SCHEMES, "--budget-unit", "steps")
    request = parse(SWEEP, (*options, "--tracking-uri", "sqlite:///mlflow.db" if tracking else "none"))
    assert request is not None
    info = describe("digits", "data", download=False)
    progress = first_round(SWEEP, request, info, storage)
    plan = progress.plan
    measured.trials, measured.stages = len(plan.trials), len(plan.stages)
    lap(f"plan of {measured.trials:,} trials, {measured.stages:,} stages")
    os.environ[STAGE_SECONDS] = str(stage_seconds)  # for the workers
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=40)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(workers)
    lap(f"Ray with {workers} CPUs")
    done_at: list[float] = []
    _put_in_place(measured.clock, plan, done_at)
    console = Console(file=sys.stderr, soft_wrap=True)
    forecast = Forecast(progress, Workers("cpu", workers, is_here=False), Speed())
    session = Session(request, info, storage, console, None, None, measured.timing, forecast)
    site = Site(None, storage, Workers("cpu", workers, is_here=False), limits={}, timing=measured.timing)
    with lease(storage, plan.study.sweep, print):
        journal = Journal(storage, plan.study.sweep)
        with books.Book(progress, journal, session) as book:
            lap("journal of the plan")
            measured.timing.started_at, cpu_before = time.monotonic(), time.process_time()
            with Display(progress, console, forecast) as display:
                execute.train_stages(progress, journal, display, site)
            measured.cpu_seconds, measured.seconds = time.process_time() - cpu_before, time.monotonic() - last
            lap("all trials run")
            book.ending = Ending("FINISHED", 0)
        assert book.tracking_error is None, book.tracking_error
        lap("the tracking store has caught up")
        closing = Closing(False, "", book.tracker.place, book.tracker.how_to_look())
        print_closing(console, progress, request, read_answer(progress, storage, None), closing)
        lap("answer")
        again = first_round(SWEEP, request, info, storage)
        Journal(storage, plan.study.sweep)
        assert len(again.plan.trials) == measured.trials
        lap("plan and journal read again")
    ray.shutdown()
    measured.journal_mb = sum(path.stat().st_size for path in Path("storage").rglob("*.jsonl")) / 2**20
    measured.store_mb = Path("mlflow.db").stat().st_size / 2**20 if tracking else 0.0
    measured.rates = [PART / (end - begin) for begin, end in pairwise(done_at[::PART])]
    return measured


def _put_in_place(clock: Clock, plan: Plan, done_at: list[float]) -> None:
    """Replaces the engine's workers by simulated ones, and puts its parts on the clock."""
    books.CLOSE_TIMEOUT_S = TRACKING_TIMEOUT_S
    TuneCallback.on_trial_result = report_as_trained(plan, done_at)
    execute.PackTrainer = NoOpTrainer
    tune.with_parameters = lambda trainable, **_: trainable
    clock.watch(PlanSearcher, "suggest", "searcher")
    clock.watch(PlanSearcher, "on_trial_complete", "searcher")
    clock.watch(Journal, "_append", "journal")
    for name in ("started", "reported", "ended"):
        clock.watch(Display, name, "display")
    clock.watch(Tracker, "_copy", "tracker (its own thread)")
