"""Measures the driver alone: thousands of trials on many simulated workers, through the real plan, searcher, journal,
tracker and display. The workers only wait as long as a stage would take; the rest of the time they wait for the driver.

python benchmarks/scale.py --trials 10000 --workers 64
python benchmarks/scale.py --trials 10000 --workers 64 --stage-seconds 20
"""

import functools
import os
import resource
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent)  # workers import scale_worker
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sweeps.engine.execution.cluster  # noqa: F401, I001 - sets Ray's environment before it is imported
import ray
from cyclopts import Parameter
from ray import tune
from rich.console import Console
from scale_worker import DONE_KEYS, STAGE_SECONDS, NoOpTrainer

from benchmarks import common
from cvit.data.datasets import describe
from cvit.stages import TrainingStage
from cvit.storage import Storage
from cvit.results import Report
from cvit.training.loop import EARLY_STEPS
from cvit.results import Point, StageResult
from cvit import vocabulary as v
from sweeps.engine.execution import execute as execute_module
from sweeps.engine.terminal.cli import parse
from sweeps.engine.execution.cluster import Workers
from sweeps.engine.terminal.display import Display
from sweeps.engine.execution.execute import execute
from sweeps.engine.recording.journal import Journal
from sweeps.engine.recording.lease import lease
from sweeps.engine.planning.plan import Plan
from sweeps.engine.terminal.report import print_answer
from sweeps.engine.execution.searcher import PlanSearcher
from sweeps.engine.execution.timing import Timing
from sweeps.engine.tracking.tracker import Tracker
from sweeps.engine.execution.worker import BUSY_S, REPORTS, WAITED_S
from sweeps.low_data import SCHEMES, SWEEP

EVALUATIONS = 10
PER_EVALUATION = (
    *(v.TRAIN_LOSS, v.TRAIN_ACCURACY, v.VAL_LOSS, v.VAL_ACCURACY),
    *(v.LEARNING_RATE, v.GRAD_NORM, v.IMAGES_PER_SECOND),
)
PART = 1000
"""Stages over which a rate is told."""
TRACKING_TIMEOUT_S = 3 * 3600.0


app = common.new_app()


class Clock:
    """Time that was spent in named parts of the driver's main thread, and how often."""

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
    """Made-up measurements, as many as a stage has."""
    now = time.time_ns() // 1_000_000
    last = stage.last_step
    early = [(v.EARLY_GRAD_NORM, stage.first_step + n, 1.0, now) for n in range(min(EARLY_STEPS, stage.steps))]
    steps = sorted({stage.first_step + max(1, stage.steps * n // EVALUATIONS) for n in range(1, EVALUATIONS + 1)})
    curves = [(metric, step, 0.5, now) for step in steps for metric in PER_EVALUATION]
    ends = [(metric, last, 0.5, now) for metric in (v.EARLY_LOSS, v.GRAD_NORM_MAX, v.LOSS_SPIKES)]
    final = v.CONVOLUTION_TEST_ACCURACY if stage.phase == v.CONVOLUTION else v.TEST_ACCURACY
    return [*early, *curves, *ends, (final, last, 0.5, now)]


def report_as_trained(plan: Plan, done_at: list[float]) -> Callable[..., None]:
    """The recorder's method for results, fed with those of workers that only name the stages that are done; notes when
    each of them was."""
    of_real_workers = execute_module._Recorder.on_trial_result

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


@app.default
def scale(
    *,
    trials: Annotated[int, Parameter(help="Trials, about: a multiple of three schemes.")] = 10_000,
    workers: Annotated[int, Parameter(help="Simulated workers.")] = 64,
    stage_seconds: Annotated[float, Parameter(help="How long a stage takes; it uses no processor.")] = 5.0,
    tracking: Annotated[bool, Parameter(help="Copy to MLflow, in an SQLite store.")] = True,
    json: common.Json = None,
) -> None:
    """Runs the simulation and prints what it took."""
    common.check(json, trials=trials, workers=workers)
    before = common.machine()
    json = json.absolute() if json is not None else None
    clock, lines = Clock(), []
    started = last = time.monotonic()

    def lap(what: str) -> None:
        nonlocal last
        now = time.monotonic()
        lines.append(f"{what:<44} {now - last:8.1f} s   peak memory {peak_mb():6.0f} MB")
        last = now

    with tempfile.TemporaryDirectory(prefix="cvit-scale-") as folder:
        os.chdir(folder)
        storage = Storage.open("storage")
        options = ("--seeds", str(-(-trials // len(SCHEMES))), "--data-fraction", "0.05", "--init-scheme", *SCHEMES)
        request = parse(SWEEP, options)
        assert request is not None
        plan = Plan.make(SWEEP, request, describe("digits", "data", download=False), storage)
        lap(f"plan of {len(plan.trials):,} trials, {len(plan.stages):,} stages")
        os.environ[STAGE_SECONDS] = str(stage_seconds)  # for the workers
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=40)
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(workers)
        lap(f"Ray with {workers} CPUs")
        done_at: list[float] = []
        execute_module._Recorder.on_trial_result = report_as_trained(plan, done_at)
        execute_module.PackTrainer = NoOpTrainer
        with_parameters = tune.with_parameters
        tune.with_parameters = lambda trainable, **_: trainable
        clock.watch(PlanSearcher, "suggest", "searcher")
        clock.watch(PlanSearcher, "on_trial_complete", "searcher")
        clock.watch(Journal, "_append", "journal")
        for name in ("started", "reported", "ended"):
            clock.watch(Display, name, "display")
        clock.watch(Tracker, "_copy", "tracker (its own thread)")
        console = Console(file=sys.stderr, soft_wrap=True)
        with lease(storage, plan.study.sweep, print):
            journal = Journal(storage, plan.study.sweep)
            journal.record_plan(plan.study, plan.trials, {})
            lap("journal of the plan")
            tracker = None
            if tracking:
                planned = {plan.study.key, *(trial.key for trial in plan.trials)}
                tracker = Tracker("sqlite:///mlflow.db", plan.study.sweep, planned, journal.records)
                journal.listen(tracker.feed)
            timing, cpu_before = Timing(time.monotonic()), time.process_time()
            with Display(plan, console) as display:
                here = Workers("cpu", workers, is_here=False)
                execute(plan, None, storage.url, here, {}, journal, display, timing)
            cpu_s, busy_s = time.process_time() - cpu_before, time.monotonic() - last
            lap("all trials run")
            page = ""
            if tracker is not None:
                behind = sum(run.changed for run in tracker._runs.values()) + tracker._inbox.qsize()
                lines.append(f"  MLflow is behind by about {behind:,} runs")
                assert tracker.close("FINISHED", TRACKING_TIMEOUT_S), tracker.error
                page = tracker.page
                lap("MLflow has caught up")
            print_answer(console, plan, storage, request, "", None, page, False)
            lap("answer")
            again = Plan.make(SWEEP, request, describe("digits", "data", download=False), storage)
            Journal(storage, plan.study.sweep)
            assert len(again.trials) == len(plan.trials)
            lap("plan and journal read again")
        journal_mb = sum(path.stat().st_size for path in Path("storage").rglob("*.jsonl")) / 2**20
        store_mb = Path("mlflow.db").stat().st_size / 2**20 if tracking else 0.0
        ray.shutdown()
        tune.with_parameters = with_parameters
        os.chdir("/")
    print("\n".join(lines))
    print(f"in all {time.monotonic() - started:.0f} s; journal {journal_mb:.0f} MB, MLflow store {store_mb:.0f} MB")
    could = workers / stage_seconds
    print(f"while trials ran: {len(plan.stages) / busy_s:.1f} stages/s; the workers alone could do {could:.1f}")
    rates = [PART / (end - begin) for begin, end in pairwise(done_at[::PART])]
    print(f"stages/s, {PART} by {PART}: {' '.join(f'{rate:.1f}' for rate in rates)}")
    print(timing.line(len(plan.trials)))
    print(f"driver's CPU {cpu_s:.0f} s, {1000 * cpu_s / len(plan.stages):.1f} ms a stage, of which")
    for part, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        print(f"  {part:<26} {seconds:8.2f} s   {clock.calls[part]:8,} calls")
    figures = {
        "trials": len(plan.trials),
        "stages": len(plan.stages),
        "workers": workers,
        "stage_seconds": stage_seconds,
        "seconds": busy_s,
        "stages_per_second": len(plan.stages) / busy_s,
        "stages_per_second_by_part": rates,
        "share_of_workers_time_in_training": timing.busy_s / (timing.busy_s + timing.waited_s),
        "driver_cpu_seconds": cpu_s,
        "driver_cpu_seconds_by_part": dict(clock.seconds),
        "driver_peak_memory_bytes": int(peak_mb() * 2**20),
    }
    common.write_json(json, "scale", before, {"n": 1, **figures})


if __name__ == "__main__":
    common.run_app(app)
