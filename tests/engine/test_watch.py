"""Workers that do not move are named, then ended, by what is usual; the closing line says how much time faults took."""

import pytest

from cvit.engine.execution import timing as timing_module
from cvit.engine.execution import watch as watch_module
from cvit.engine.execution.timing import Timing
from cvit.engine.execution.watch import LONGEST_STEP_S, OTHER_KIND, Watch


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: object) -> None:
        self.now = 1000.0
        monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now


def look_for(watch: Watch, clock: Clock, seconds: float) -> list[tuple[str, int, bool]]:
    """Looks once a second; returns (name, seconds so far, is over)."""
    found = []
    for second in range(1, int(seconds) + 1):
        clock.now += 1
        found += [(silence.name, second, silence.is_over) for silence in watch.look()]
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch, watch_module)


def test_a_worker_is_named_after_ten_times_the_usual_time_and_ended_after_thirty(clock: Clock) -> None:
    watch = Watch()
    watch.started("a", "shape")
    assert not look_for(watch, clock, 100)
    watch.moved("a")
    assert look_for(watch, clock, 5000) == [("a", 1000, False), ("a", 3000, True)]


def test_quick_work_is_given_the_least_times(clock: Clock) -> None:
    watch = Watch()
    watch.started("a", "shape")
    for _ in range(3):
        assert not look_for(watch, clock, 2)
        watch.moved("a")
    assert look_for(watch, clock, 1000) == [("a", 60, False), ("a", 600, True)]


def test_an_unknown_kind_has_ten_times_the_limits_of_the_slowest_known_one(clock: Clock) -> None:
    watch = Watch()
    watch.started("first", "shape")
    assert look_for(watch, clock, 700) == [("first", 600, False)], "nothing at all is known"
    watch.ended("first")
    watch.started("a", "shape")
    look_for(watch, clock, 30)
    watch.moved("a")
    watch.ended("a")
    watch.started("b", "another shape")
    assert look_for(watch, clock, 10000) == [("b", OTHER_KIND * 300, False), ("b", OTHER_KIND * 900, True)]


def test_a_sign_of_life_starts_the_count_anew(clock: Clock) -> None:
    watch = Watch()
    watch.started("a", "shape")
    for _ in range(100):
        assert not look_for(watch, clock, 59)
        watch.moved("a")


def test_the_driver_s_own_sleep_is_no_silence_of_the_workers(clock: Clock) -> None:
    watch = Watch()
    watch.started("a", "shape")
    look_for(watch, clock, 1)
    watch.moved("a")
    clock.now += 100_000
    assert not watch.look()
    assert look_for(watch, clock, 100) == [("a", 60 - LONGEST_STEP_S, False)]


def test_the_closing_line_counts_dead_and_hung_workers_and_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, timing_module)
    timing = Timing(clock.now)

    def pass_time(seconds: int, num_left: int) -> None:
        for _ in range(seconds):
            clock.now += 1
            timing.looked(num_left)

    timing.started("good")
    timing.started("bad")
    pass_time(60, 0)
    timing.add(60, 0)
    timing.reported("good")
    timing.failed("bad")  # after 60 s without a report
    pass_time(30, 1)  # its stage rests, while the other worker trains
    timing.started("bad again")
    pass_time(30, 0)
    timing.failed("bad again")
    pass_time(60, 0)  # nothing is left for a second worker
    timing.add(120, 0)
    timing.reported("good")
    timing.ended("good")
    assert timing.lost_s == 60 + 30 + 30
    assert "workers trained 60.0 % of the time; overhead 0.00 s in all; lost to faults 2 min of" in timing.line(0)
    timing.started("hung")
    clock.now += 180
    assert "lost to faults 2 min" in timing.line(0), "it may have trained"
    timing.silent("hung")
    assert "workers trained 37.5 % of the time" in timing.line(0) and "lost to faults 5 min" in timing.line(0)


def test_a_worker_that_dies_at_every_start_is_lost_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, timing_module)
    timing = Timing(clock.now, capacity=2)
    timing.started("good")
    for number in range(14):
        timing.failed(f"never started {number}")
        for _ in range(60):
            clock.now += 1
            timing.looked(1)
    timing.add(14 * 60, 0)
    assert timing.lost_s == 14 * 60
    assert "workers trained 50.0 % of the time" in timing.line(0)
