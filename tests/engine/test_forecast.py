"""The time left, expected from the plan and measured later, against trainings on a clock of their own."""

import heapq
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvit import cost
from cvit.cost import COMPILE_S
from cvit.engine.declaration import Sweep
from cvit.engine.execution import forecast
from cvit.engine.execution.forecast import CLOSING_S, Forecast, contention, likely_workers
from cvit.engine.execution.queue import StageQueue
from cvit.engine.execution.speed import DOUBT_S, START_UP_S, Speed
from cvit.engine.execution.workers import Workers, workers_here
from cvit.engine.planning.progress import Progress
from cvit.engine.planning.request import Resources
from cvit.engine.terminal.cli import parse
from cvit.results import StageResult
from cvit.storage import Storage, encode_record
from cvit.tasks import task_named
from cvit.vocabulary import SPEED_FOLDER
from sweeps.low_data import SWEEP
from tests.support.plans import all_sweeps, make_progress

ELSEWHERE = Workers("cpu", 2, is_here=False)
"""Two workers whose speed does not depend on what this machine does now."""
REPORTS_OF_STAGE = 4


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def trained(progress: Progress, forecast: Forecast, clock: Clock, pace: float) -> Iterator[tuple[float, float]]:
    """Trains the stages of a progress on a clock of its own, each in `pace` times the seconds that are expected.

    Yields:
        (time, time left by the forecast) after the start-up and after every report.
    """
    queue = StageQueue(progress, {}, 2)
    task = task_named(progress.plan.study.task)
    clock.now += START_UP_S
    events: list[tuple[float, str, int]] = []
    numbers = iter(range(10**6))

    def start() -> None:
        name = f"pack-{next(numbers)}"
        pack = queue.next_pack(name)
        if pack is not None:
            forecast.started(name, pack)
            heapq.heappush(events, (clock.now, name, 0))

    start()
    start()
    while events:
        clock.now, name, number = heapq.heappop(events)
        (stage,) = queue.pack_named(name)
        if number > 0:
            forecast.reported(name, stage.key, stage.steps * number // REPORTS_OF_STAGE)
        yield clock.now, forecast.left_s()
        if number < REPORTS_OF_STAGE:
            seconds = pace * task.expected_seconds(stage, progress.plan.trials_of[stage.key][0].images, "cpu")
            heapq.heappush(events, (clock.now + seconds / REPORTS_OF_STAGE, name, number + 1))
            continue
        progress.results[stage.key] = StageResult("ok", 2.3, 1.0, "cpu", [])
        queue.stage_done(stage.key)
        queue.pack_ended(name)
        forecast.ended(name)
        for _ in range(2 - len(queue.names_running)):
            start()
    clock.now += CLOSING_S


LAPTOP_AND_SMOKE = [
    (sweep, preset) for _, sweep in all_sweeps() for preset in ("smoke", "laptop") if preset in sweep.presets
]


@pytest.mark.parametrize(("sweep", "preset"), LAPTOP_AND_SMOKE, ids=lambda value: getattr(value, "name", value))
def test_the_time_left_is_right_within_a_factor_of_two_from_the_plan_to_the_end(
    tmp_path: Path, sweep: Sweep, preset: str
) -> None:
    """For workers that are up to a third slower, or faster, than expected."""
    for pace in (0.75, 1.0, 1.5):
        progress, clock = make_progress(tmp_path, "--preset", preset, "--seeds", "1", sweep=sweep), Clock()
        forecast = Forecast(progress, ELSEWHERE, Speed(), clock)
        forecast._to_come_s = 0.0  # of a search, this test trains the first round alone
        said = [(0.0, forecast.left_s()), *trained(progress, forecast, clock, pace)]
        assert not progress.todo
        off = [(left / (clock.now - at), at, clock.now) for at, left in said]
        assert all(0.5 < ratio < 2 for ratio, _, _ in off), [each for each in off if not 0.5 < each[0] < 2]


@pytest.mark.parametrize("pace", [0.2, 8.0])
def test_a_wrong_expectation_is_forgotten_once_steps_are_measured(tmp_path: Path, pace: float) -> None:
    progress, clock = make_progress(tmp_path, "--seeds", "3"), Clock()
    forecast = Forecast(progress, ELSEWHERE, Speed(), clock)
    said = list(trained(progress, forecast, clock, pace))
    quarter = START_UP_S + (clock.now - START_UP_S) / 4
    ratios = [left / (clock.now - at) for at, left in said if at > quarter]
    assert ratios and all(0.5 < ratio < 2 for ratio in ratios)


def test_the_pace_is_that_of_the_last_minute(tmp_path: Path) -> None:
    alike = ("--init-scheme", "random", "--data-fraction", "0.05", "--budget-unit", "steps", "--seeds", "40")
    progress, clock = make_progress(tmp_path, *alike), Clock()
    forecast = Forecast(progress, ELSEWHERE, Speed(), clock)
    before = forecast.left_s() - START_UP_S - CLOSING_S
    for number, stage in enumerate(progress.todo[:30]):
        forecast.started(str(number), (stage,))
        clock.now += (1 if number < 15 else 5) * 2 * before / 40
        forecast.reported(str(number), stage.key, stage.steps)
        forecast.ended(str(number))
    # A quarter of the work is left, at five times the time of each step that was expected, or a little less.
    assert 4 < (forecast.left_s() - CLOSING_S) / (before / 4) <= 5


def test_a_worker_that_does_not_report_makes_the_time_left_longer(tmp_path: Path) -> None:
    progress, clock = make_progress(tmp_path, "--seeds", "1"), Clock()
    forecast = Forecast(progress, ELSEWHERE, Speed(), clock)
    forecast.started("pack", (progress.todo[0],))
    before = forecast.left_s()
    clock.now += 300
    assert forecast.left_s() > 2 * before


def test_a_gpu_compiles_the_steps_of_a_long_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each kind of step, unless a worker has begun it; a short sweep is not compiled."""
    gpu = Workers("cuda", 2, is_here=False)
    for steps, compile_s in (("1000", 0.0), ("50000000", COMPILE_S)):
        progress = make_progress(tmp_path / steps, "--seeds", "1", "--min-steps", steps, "--epochs", "0")
        kinds = {stage.cost_kind for stage in progress.todo}
        with monkeypatch.context() as without:
            without.setattr(cost, "SHARE_SAVED", 0.0)
            plain = Forecast(progress, gpu, Speed(), Clock()).left_s()
        told = Forecast(progress, gpu, Speed(), Clock())
        assert told.left_s() - plain == pytest.approx(len(kinds) * compile_s)
        told.started("pack-0", (progress.todo[0],))
        told.follow(progress)
        assert sum(told._compiling.values()) == (len(kinds) - 1) * compile_s


def test_stages_that_start_from_one_that_diverged_are_not_waited_for(tmp_path: Path) -> None:
    options = ("--init-scheme", "two_phase", "--data-fraction", "0.05", "--budget-unit", "steps", "--seeds", "1")
    progress, clock = make_progress(tmp_path, *options), Clock()
    forecast = Forecast(progress, ELSEWHERE, Speed(), clock)
    convolution = progress.todo[0]
    assert convolution.parent is None and len(progress.todo) == 2
    forecast.started("pack", (convolution,))
    forecast.reported("pack", convolution.key, convolution.steps)
    forecast.left_out(convolution.key)
    forecast.ended("pack")
    assert forecast.left_s() == CLOSING_S


def test_the_pace_is_remembered_for_the_next_session_on_the_same_machine(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    progress, clock = make_progress(tmp_path, "--seeds", "1"), Clock()
    assert not Speed.recall(storage, "cpu", with_ray=True).is_remembered
    forecast = Forecast(progress, ELSEWHERE, Speed(), clock)
    first = forecast.left_s()
    list(trained(progress, forecast, clock, pace=3.0))
    forecast.remember(storage, start_up_s=30.0)
    speed = Speed.recall(storage, "cpu", with_ray=True)
    assert speed.start_up_s == 30.0 and speed.trained_s == pytest.approx(3 * speed.expected_s)
    # The first session may have been small, so that its pace counts beside the one that is expected by default.
    assert speed.pace == pytest.approx((speed.trained_s + DOUBT_S) / (speed.expected_s + DOUBT_S))
    again = Forecast(make_progress(tmp_path / "new", "--seeds", "1"), ELSEWHERE, speed, Clock())
    assert again.left_s() > 1.5 * first
    assert not Speed.recall(storage, "cuda", with_ray=True).is_remembered
    assert not Speed.recall(storage, "cpu", with_ray=False).is_remembered


@pytest.mark.parametrize(
    "content",
    [
        b"torn",
        encode_record({"trained_s": "much"}),
        encode_record({"trained_s": 1.0, "expected_s": -1.0, "start_up_s": 1}),
    ],
)
def test_a_damaged_memory_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    storage = Storage.open(str(tmp_path))
    Speed(1.0, 1.0).remember(storage, "cpu")
    (name,) = storage.names(SPEED_FOLDER)
    storage.write(f"{SPEED_FOLDER}/{name}", content)
    assert Speed.recall(storage, "cpu", with_ray=True) == Speed()


def test_what_earlier_runs_keep_is_not_waited_for(tmp_path: Path) -> None:
    progress = make_progress(tmp_path, "--seeds", "2")
    half = Progress(progress.plan, {}, steps={stage.key: stage.steps // 2 for stage in progress.todo})
    whole, rest = (Forecast(each, ELSEWHERE, Speed(start_up_s=0.0), Clock()).left_s() for each in (progress, half))
    assert rest - CLOSING_S == pytest.approx((whole - CLOSING_S) / 2, rel=0.01)


def test_a_busy_machine_takes_longer_and_an_idle_one_as_long_as_expected() -> None:
    assert contention(0) >= 1
    assert contention(10_000) > 2 * contention(1)


def test_a_load_that_has_just_ended_does_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kernel's averages still hold it; at this moment only this thread runs."""
    monkeypatch.setattr(os, "getloadavg", lambda: (24.0, 24.0, 24.0))
    monkeypatch.setattr(forecast, "LOAD", tmp_path / "loadavg")
    assert contention(1) == 25 / (os.cpu_count() or 1), "a system without that file"
    (tmp_path / "loadavg").write_text("24.00 24.00 24.00 1/321 4711\n")
    assert contention(1) == 1


def test_workers_are_foreseen_without_torch() -> None:
    def workers(*options: str) -> Workers:
        request = parse(SWEEP, options)
        assert request is not None
        return likely_workers(request)

    assert workers("--address", "local", "--device", "cpu") == workers_here("cpu")
    alone = workers("--address", "local", "--device", "cpu", "--workers", "1")
    assert (alone.device, alone.count, alone.is_here) == ("cpu", 1, True)
    there = workers("--address", "ray://there:10001", "--device", "cuda")
    assert (there.device, there.count, there.is_here) == ("cuda", 1, False)
    assert workers("--device", "cpu", "--workers", "1") == workers_here("cpu", Resources(workers=1))
    assert workers("--device", "cpu") == workers_here("cpu")
    assert workers("--device", "cuda").device == "cuda"
