"""After a fault the right stages are tried again, at the right time and as often as is right; faults are told apart."""

import errno
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from cvit.results import load_result
from cvit.stages import Stage
from cvit.storage import Storage
from sweeps.engine.execution import searcher as module
from sweeps.engine.execution.faults import CODE_RETRIES, Fault, fault_of
from sweeps.engine.execution.searcher import Pack, PlanSearcher
from sweeps.engine.planning.plan import Plan
from sweeps.engine.recording.backoff import LONGEST_PAUSE_S, pause_s
from tests.support.plans import SMALL, make_plan, train

ONE_SHAPE = ("--data-fraction", "0.05", "--init-scheme", "random", "--seeds", "4", *SMALL[8:])
TWO_PHASES = ("--data-fraction", "0.05", "--init-scheme", "random", "two_phase", "--seeds", "1", *SMALL[8:])
LOST = Fault("machine", "ActorDiedError: gone")
BROKEN = Fault("code", "ValueError: broken")


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


def suggested(searcher: PlanSearcher, trial_id: str) -> Pack:
    suggestion = searcher.suggest(trial_id)
    assert isinstance(suggestion, dict)
    return suggestion["pack"]


def fail(searcher: PlanSearcher, trial_id: str, fault: Fault) -> list[str]:
    """Reports a failed pack as Tune does: first to the searcher, then to the callbacks."""
    searcher.on_trial_complete(trial_id, error=True)
    return searcher.trial_failed(trial_id, fault)


def succeed(searcher: PlanSearcher, plan: Plan, trial_id: str, stages: Pack, folder: Path) -> None:
    for stage in stages:
        train(stage, folder)
        result = load_result(Storage.open(str(folder)), stage.key)
        assert result is not None
        plan.results[stage.key] = result
        searcher.stage_done(stage.key)
    searcher.on_trial_complete(trial_id)


def keys(stages: Pack) -> list[str]:
    return [stage.key for stage in stages]


def limits(plan: Plan, size: int) -> dict[Any, int]:
    return {stage.shape: size for stage in plan.stages.values()}


def test_a_lost_worker_s_stage_rests_longer_each_time_and_never_ends_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tmp_path, *ONE_SHAPE[:5], "1", *SMALL[8:])
    searcher, clock = PlanSearcher(plan, {}, {}), Clock(monkeypatch)
    (stage,) = suggested(searcher, "0")
    pauses = []
    for attempt in range(1, 12):
        (line,) = fail(searcher, str(attempt - 1), LOST)
        assert line.startswith("lost a worker, trying again in") and stage.key in line
        started = clock.now
        while (suggestion := searcher.suggest(str(attempt))) is None:
            clock.now += 0.5
        assert isinstance(suggestion, dict)
        assert keys(suggestion["pack"]) == [stage.key]
        pauses.append(clock.now - started)
    assert pauses == [1, 2, 4, 8, 16, 32, *[LONGEST_PAUSE_S] * 5]
    searcher.stage_advanced(stage.key)  # a checkpoint: what disturbed it has passed
    fail(searcher, "11", LOST)
    clock.now += pause_s(1)
    assert keys(suggested(searcher, "12")) == [stage.key]
    assert not searcher.failed


def test_other_stages_go_on_while_one_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(tmp_path, *ONE_SHAPE)
    searcher, clock = PlanSearcher(plan, {}, {}), Clock(monkeypatch)
    first = suggested(searcher, "0")
    fail(searcher, "0", LOST)
    others = [suggested(searcher, str(number)) for number in range(1, 4)]
    assert {stage.key for stages in (first, *others) for stage in stages} == set(plan.stages)
    assert searcher.suggest("4") is None
    clock.now += 1
    assert suggested(searcher, "4") == first


def test_a_lost_worker_s_pack_is_trained_together_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(tmp_path, *ONE_SHAPE)
    searcher, clock = PlanSearcher(plan, {}, limits(plan, 4)), Clock(monkeypatch)
    together = suggested(searcher, "0")
    assert len(together) == 4
    assert searcher.suggest("1") is None  # what runs may have to be suggested again
    fail(searcher, "0", LOST)
    clock.now += 1
    assert suggested(searcher, "1") == together


def test_an_error_is_tried_again_alone_and_costs_no_other_member(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, *ONE_SHAPE)
    searcher = PlanSearcher(plan, {}, limits(plan, 4))
    together = suggested(searcher, "together")
    guilty = together[1]
    lines = fail(searcher, "together", BROKEN)
    assert lines == [f"failed, try 1 of 3: stage {stage.key}: ValueError: broken" for stage in together]
    tries, number = 1, 0
    while (suggestion := searcher.suggest(str(number))) != PlanSearcher.FINISHED:
        assert isinstance(suggestion, dict)
        (stage,) = suggestion["pack"]
        if stage == guilty:
            tries += 1
            fail(searcher, str(number), BROKEN)
        else:
            succeed(searcher, plan, str(number), (stage,), tmp_path)
        number += 1
    assert tries == 1 + CODE_RETRIES
    assert searcher.failed == {guilty.key: "ValueError: broken"}
    assert plan.results.keys() == plan.stages.keys() - {guilty.key}


def test_what_starts_from_a_failed_stage_is_given_up_and_the_rest_goes_on(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, *TWO_PHASES)
    searcher, trained, number = PlanSearcher(plan, {}, {}), list[Stage](), 0
    while (suggestion := searcher.suggest(str(number))) != PlanSearcher.FINISHED:
        assert isinstance(suggestion, dict)
        (stage,) = suggestion["pack"]
        if stage.phase == "convolution":
            fail(searcher, str(number), BROKEN)
        else:
            succeed(searcher, plan, str(number), (stage,), tmp_path)
            trained.append(stage)
        number += 1
    assert [stage.trial.init.init_scheme for stage in trained if not stage.parent] == ["random"]  # type: ignore[union-attr]
    assert len(searcher.failed) == 1


def test_members_that_ended_before_their_pack_failed_are_not_trained_again(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, *ONE_SHAPE)
    searcher = PlanSearcher(plan, {}, limits(plan, 4))
    done, *others = suggested(searcher, "0")
    train(done, tmp_path)
    result = load_result(Storage.open(str(tmp_path)), done.key)
    assert result is not None
    plan.results[done.key] = result
    searcher.stage_done(done.key)
    fail(searcher, "0", BROKEN)
    again = [suggested(searcher, str(number)) for number in range(1, 4)]
    assert again == [(stage,) for stage in others]


def test_a_storage_that_refuses_ends_the_search(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, *ONE_SHAPE)
    searcher = PlanSearcher(plan, {}, {})
    suggested(searcher, "0")
    assert fail(searcher, "0", Fault("storage", "OSError: [Errno 28] No space left on device")) == []
    assert searcher.suggest("1") == PlanSearcher.FINISHED
    assert searcher.storage_fault == "OSError: [Errno 28] No space left on device"
    assert not searcher.failed


@ray.remote(num_cpus=0)
class Actor:
    """This actor fails as told."""

    def __init__(self, error: BaseException | None = None) -> None:
        if error is not None:
            raise error

    def fail(self, error: BaseException | None) -> None:
        if error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            raise error


@pytest.fixture(scope="module")
def real_ray() -> Iterator[None]:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def outcome(error: BaseException | None, at_start: bool = False) -> Fault:
    """Returns the fault that a real actor ends with."""
    actor: Any = Actor.remote(error if at_start else None)  # type: ignore[attr-defined]
    try:
        ray.get(actor.fail.remote(error))
    except Exception as raised:  # noqa: BLE001
        return fault_of(raised, str(raised))
    raise AssertionError("nothing was raised")


@pytest.mark.xdist_group("ray")
@pytest.mark.usefixtures("real_ray")
@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (None, "machine", "ActorDiedError: The actor died"),
        (ConnectionResetError("reset"), "machine", "ConnectionResetError: reset"),
        (TimeoutError("slow"), "machine", "TimeoutError: slow"),
        (OSError("AWS Error NETWORK_CONNECTION"), "machine", "OSError: AWS Error NETWORK_CONNECTION"),
        (OSError(errno.ESTALE, "Stale file handle"), "machine", "OSError: [Errno 116] Stale file handle"),
        (OSError(errno.ENOSPC, "No space left"), "storage", "OSError: [Errno 28] No space left"),
        (OSError(errno.EROFS, "Read-only"), "storage", "OSError: [Errno 30] Read-only"),
        (PermissionError(errno.EACCES, "denied"), "storage", "PermissionError: [Errno 13] denied"),
        (FileNotFoundError(errno.ENOENT, "none"), "code", "FileNotFoundError: [Errno 2] none"),
        (ValueError("of two\nlines"), "code", "lines"),
        (ZeroDivisionError("division by zero"), "code", "ZeroDivisionError: division by zero"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_faults_of_real_actors_are_told_apart(error: BaseException | None, kind: str, line: str) -> None:
    found = outcome(error)
    assert found.kind == kind
    assert found.line.startswith(line)


@pytest.mark.xdist_group("ray")
@pytest.mark.usefixtures("real_ray")
def test_an_error_in_the_start_of_a_worker_is_the_code_s() -> None:
    assert outcome(ValueError("no such model"), at_start=True) == Fault("code", "ValueError: no such model")
