"""After a fault the right stages are tried again, at the right time and as often as is right; faults are told apart."""

import errno
import itertools
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from cvit.engine.execution import queue as module
from cvit.engine.execution.faults import CODE_RETRIES, Fault, fault_of_exception, fault_of_trial
from cvit.engine.execution.queue import StagePack, StageQueue
from cvit.engine.planning.progress import Outcome, Progress
from cvit.engine.recording.backoff import LONGEST_PAUSE_S, pause_s
from cvit.results import StageResult
from cvit.stages import Stage
from cvit.vocabulary import STATUS_OK
from tests.support.plans import SMALL, make_progress

ONE_SHAPE = ("--data-fraction", "0.05", "--init-scheme", "random", "--seeds", "4", *SMALL[8:])
TWO_PHASES = ("--data-fraction", "0.05", "--init-scheme", "random", "two_phase", "--seeds", "1", *SMALL[8:])
LOST = Fault("machine", "ActorDiedError: gone")
BROKEN = Fault("code", "ValueError: broken")


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


def taken(queue: StageQueue, name: str) -> StagePack:
    pack = queue.next_pack(name)
    assert pack is not None
    return pack


def fail(queue: StageQueue, name: str, fault: Fault) -> list[str]:
    queue.pack_ended(name)
    return queue.pack_failed(name, fault)


def finish(queue: StageQueue, progress: Progress, stage: Stage) -> None:
    progress.results[stage.key] = StageResult(STATUS_OK, 2.3, 1.0, "cpu", [])
    queue.stage_done(stage.key)


def packs(queue: StageQueue) -> Iterator[tuple[str, Stage]]:
    """Yields the name and the one stage of every pack, until nothing is left."""
    for number in itertools.count():
        if queue.is_finished:
            return
        (stage,) = taken(queue, str(number))
        yield str(number), stage


def keys(stages: StagePack) -> list[str]:
    return [stage.key for stage in stages]


def limits(progress: Progress, size: int) -> dict[Any, int]:
    return {stage.shape: size for stage in progress.todo}


def test_a_lost_worker_s_stage_rests_longer_each_time_and_never_ends_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = make_progress(tmp_path, *ONE_SHAPE[:5], "1", *SMALL[8:])
    queue, clock = StageQueue(progress, {}), Clock(monkeypatch)
    (stage,) = taken(queue, "0")
    pauses = []
    for attempt in range(1, 12):
        (line,) = fail(queue, str(attempt - 1), LOST)
        assert line.startswith("lost a worker, trying again in") and stage.key in line
        started = clock.now
        while (pack := queue.next_pack(str(attempt))) is None:
            clock.now += 0.5
        assert keys(pack) == [stage.key]
        pauses.append(clock.now - started)
    assert pauses == [1, 2, 4, 8, 16, 32, *[LONGEST_PAUSE_S] * 5]
    queue.stage_advanced(stage.key)  # a checkpoint: what disturbed it has passed
    fail(queue, "11", LOST)
    clock.now += pause_s(1)
    assert keys(taken(queue, "12")) == [stage.key]
    assert queue.outcomes() == {stage.key: Outcome("left")}


def test_other_stages_go_on_while_one_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = make_progress(tmp_path, *ONE_SHAPE)
    queue, clock = StageQueue(progress, {}), Clock(monkeypatch)
    first = taken(queue, "0")
    fail(queue, "0", LOST)
    others = [taken(queue, str(number)) for number in range(1, 4)]
    assert {stage.key for stages in (first, *others) for stage in stages} == set(progress.plan.stages)
    assert queue.next_pack("4") is None
    clock.now += 1
    assert taken(queue, "4") == first


def test_a_lost_worker_s_pack_is_trained_together_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = make_progress(tmp_path, *ONE_SHAPE)
    queue, clock = StageQueue(progress, limits(progress, 4)), Clock(monkeypatch)
    together = taken(queue, "0")
    assert len(together) == 4
    assert queue.next_pack("1") is None and not queue.is_finished  # the pack that runs may come back
    fail(queue, "0", LOST)
    clock.now += 1
    assert taken(queue, "1") == together


def test_an_error_is_tried_again_alone_and_costs_no_other_member(tmp_path: Path) -> None:
    progress = make_progress(tmp_path, *ONE_SHAPE)
    queue = StageQueue(progress, limits(progress, 4))
    together = taken(queue, "together")
    guilty = together[1]
    lines = fail(queue, "together", BROKEN)
    assert lines == [f"failed, try 1 of 3: stage {stage.key}: ValueError: broken" for stage in together]
    tries = 1
    for name, stage in packs(queue):
        if stage == guilty:
            tries += 1
            fail(queue, name, BROKEN)
        else:
            finish(queue, progress, stage)
            queue.pack_ended(name)
    assert tries == 1 + CODE_RETRIES
    outcomes = queue.outcomes()
    assert outcomes.pop(guilty.key) == Outcome("failed", "ValueError: broken")
    assert outcomes == dict.fromkeys(progress.plan.stages.keys() - {guilty.key}, Outcome("done"))


def test_what_starts_from_a_failed_stage_is_given_up_and_the_rest_goes_on(tmp_path: Path) -> None:
    progress = make_progress(tmp_path, *TWO_PHASES)
    queue, trained = StageQueue(progress, {}), list[Stage]()
    for name, stage in packs(queue):
        if stage.phase == "convolution":
            fail(queue, name, BROKEN)
        else:
            finish(queue, progress, stage)
            queue.pack_ended(name)
            trained.append(stage)
    assert [stage.trial.init.init_scheme for stage in trained if not stage.parent] == ["random"]  # type: ignore[union-attr]
    assert sorted(outcome.kind for outcome in queue.outcomes().values()) == ["done", "failed", "left"]


def test_members_that_ended_before_their_pack_failed_are_not_trained_again(tmp_path: Path) -> None:
    progress = make_progress(tmp_path, *ONE_SHAPE)
    queue = StageQueue(progress, limits(progress, 4))
    done, *others = taken(queue, "0")
    finish(queue, progress, done)
    fail(queue, "0", BROKEN)
    again = [taken(queue, str(number)) for number in range(1, 4)]
    assert again == [(stage,) for stage in others]


def test_a_storage_that_refuses_ends_the_search(tmp_path: Path) -> None:
    progress = make_progress(tmp_path, *ONE_SHAPE)
    queue = StageQueue(progress, {})
    taken(queue, "0")
    assert fail(queue, "0", Fault("storage", "OSError: [Errno 28] No space left on device")) == []
    assert queue.is_finished
    assert queue.storage_fault == "OSError: [Errno 28] No space left on device"
    assert {outcome.kind for outcome in queue.outcomes().values()} == {"left"}


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
def real_ray(ray_address: str) -> Iterator[None]:
    ray.init(ray_address, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def outcome(error: BaseException | None, at_start: bool = False) -> Fault:
    """Returns the fault that a real actor ends with."""
    actor: Any = Actor.remote(error if at_start else None)  # type: ignore[attr-defined]
    try:
        ray.get(actor.fail.remote(error))
    except Exception as raised:  # noqa: BLE001
        return fault_of_trial(raised, str(raised))
    raise AssertionError("nothing was raised")


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
    if error is not None:
        assert fault_of_exception(error).kind == kind, "the same without Ray"


@pytest.mark.usefixtures("real_ray")
def test_an_error_in_the_start_of_a_worker_is_the_code_s() -> None:
    assert outcome(ValueError("no such model"), at_start=True) == Fault("code", "ValueError: no such model")
