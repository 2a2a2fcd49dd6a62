"""Sweeps that share stages: each stage is trained by one driver, the others take something else or wait."""

import errno
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from cvit.engine.execution import queue as queues
from cvit.engine.execution.faults import Fault
from cvit.engine.execution.queue import StageQueue
from cvit.engine.planning.progress import Progress
from cvit.engine.recording import claims as module
from cvit.engine.recording import drivers
from cvit.engine.recording.claims import Claims
from cvit.engine.recording.drivers import Driver, encode_driver, lease_path
from cvit.engine.recording.lease import lease
from cvit.results import StageResult
from cvit.storage import Storage, encode_record
from cvit.vocabulary import STATUS_OK
from tests.support.faulty_s3 import CUT, faulty_s3, set_credentials
from tests.support.plans import SMALL, make_progress

FOUR_STAGES = ("--data-fraction", "0.05", "--init-scheme", "random", "--seeds", "4", *SMALL[8:])

# Claims what its input names, and says what it got.
CLAIMER = """
import sys
from cvit.storage import Storage
from cvit.engine.recording.claims import Claims
from cvit.engine.recording.lease import lease
storage = Storage.open(sys.argv[1])
with lease(storage, sys.argv[2], print) as own:
    claims = Claims(storage, own)
    for line in sys.stdin:
        print(*claims.claim(line.split(), 100)[0], flush=True)
"""

# Trains stages, each for a moment, until all are done. A stage that somebody else trains at the time is noticed.
TRAINER = """
import os, random, sys, time
from pathlib import Path
from cvit.storage import Storage
from cvit.engine.recording.claims import Claims
from cvit.engine.recording.lease import lease
storage, trained = Storage.open(sys.argv[1]), Path(sys.argv[3])
with lease(storage, sys.argv[2], print) as own:
    claims, left = Claims(storage, own), [f"stage{n}" for n in range(40)]
    while left:
        claimed, _ = claims.claim(left, 3)
        for key in claimed:
            if not (trained / f"{key}.done").exists():
                (trained / key).touch(exist_ok=False)
                time.sleep(0.002)
                (trained / key).rename(trained / f"{key}.done")
            left.remove(key)
        claims.release(claimed)
        time.sleep(random.uniform(0, 0.01))
print("all done")
"""


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    if request.param == "folder":
        yield Storage.open(str(tmp_path / "storage"))
        return
    set_credentials(monkeypatch)
    with faulty_s3() as server:
        yield Storage.open(server.direct_url("storage"))


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Claims]:
    """The claims of a driver on a folder."""
    storage = Storage.open(str(tmp_path))
    with lease(storage, "low_data", print) as own_lease:
        yield Claims(storage, own_lease)


def write_other(folder: Path, process: str, beats: int, *claims: str) -> None:
    driver = Driver(token="0123", process=process, beats=beats, claims=claims)
    Storage.open(str(folder)).write(lease_path("head_count", "0123"), encode_driver(driver))


def claimer(url: str, sweep: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CLAIMER, url, sweep]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: "subprocess.Popen[str]", keys: str) -> str:
    assert process.stdin is not None and process.stdout is not None
    print(keys, file=process.stdin, flush=True)
    return process.stdout.readline().strip()


def test_a_stage_that_another_sweep_trains_is_refused_until_it_is_given_up(storage: Storage) -> None:
    with claimer(storage.url, "head_count") as other, lease(storage, "low_data", print) as own_lease:
        claims = Claims(storage, own_lease)
        assert ask(other, "a b") == "a b"
        who = f"that sweep head_count trains (process {other.pid} on "
        claimed, refused = claims.claim(["a", "c", "b", "d", "e"], 2)
        assert claimed == ["c", "d"] and refused.keys() == {"a", "b"}
        assert all(reason.startswith(who) for reason in refused.values())
        assert ask(other, "d e") == "e"
        claims.release(["d"])
        assert claims.claim(["b", "f"], 1)[0] == ["f"]
        assert ask(other, "d c") == "d"
        other.communicate()
        assert claims.claim(["a", "b"], 5) == (["a", "b"], {})


def test_lease_files_of_the_version_before_and_of_a_later_one_are_understood(tmp_path: Path, own: Claims) -> None:
    record = {"process": "elsewhere:7:x:1", "holds": True, "seconds": 0.0, "beats": 1, "removed": []}
    folder = Storage.open(str(tmp_path))
    folder.write(lease_path("init_schemes", "01"), encode_record(record))
    folder.write(lease_path("head_count", "02"), encode_record({**record, "claims": ["a"], "new": 1}))
    assert own.claim(["a", "b"], 2) == (["b"], {"a": "that sweep head_count trains (process 7 on elsewhere)"})


def test_claims_of_a_killed_driver_end_once_its_workers_are_gone(
    tmp_path: Path, own: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claimer(str(tmp_path), "head_count") as other:
        assert ask(other, "a") == "a"
        other.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(drivers, "EXPIRY_S", 0.1)
        for _ in range(3):  # a driver that sleeps on this machine lives, and its workers may still train
            assert own.claim(["a"], 1)[0] == []
            time.sleep(0.1)
        other.kill()
    assert own.claim(["a"], 1)[0] == []
    monkeypatch.setattr(module, "ORPHANS_S", 0.0)
    assert own.claim(["a"], 1)[0] == ["a"]


def test_claims_of_a_driver_on_another_machine_last_as_long_as_its_lease_changes(
    tmp_path: Path, own: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers, "EXPIRY_S", 0.5)
    for beats in range(4):
        write_other(tmp_path, "elsewhere:7:x:1", beats, "a")
        assert own.claim(["a"], 1)[0] == []
        time.sleep(0.3)
    time.sleep(0.3)
    assert own.claim(["a"], 1)[0] == ["a"]


def test_while_the_storage_cannot_be_reached_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvit.buckets._ATTEMPTS", 1)
    set_credentials(monkeypatch)
    with faulty_s3() as server:
        storage = Storage.open(server.url("storage"))
        with lease(storage, "low_data", print) as own_lease:
            claims = Claims(storage, own_lease)
            server.fault = lambda method, path: CUT
            claimed, refused = claims.claim(["a", "b"], 1)
            assert claimed == [] and refused.keys() == {"a", "b"}
            assert refused["a"].startswith("that wait for the storage (")
            assert own_lease.claims == frozenset()
            server.fault = lambda method, path: None
            assert claims.claim(["a", "b"], 1)[0] == ["a"]


def test_of_drivers_that_claim_all_the_time_no_two_train_a_stage(tmp_path: Path) -> None:
    (tmp_path / "trained").mkdir()
    arguments = [(str(tmp_path), sweep, str(tmp_path / "trained")) for sweep in ("a", "b", "c")]
    processes = [
        subprocess.Popen([sys.executable, "-c", TRAINER, *each], stdout=subprocess.PIPE, text=True)
        for each in arguments
    ]
    assert [process.communicate()[0] for process in processes] == ["all done\n"] * 3
    assert len(list((tmp_path / "trained").glob("*.done"))) == 40


class Elsewhere:
    """Claims of which other drivers have some, by stage key."""

    def __init__(self, held: Iterable[str] = ()) -> None:
        self.held = dict.fromkeys(held, "that sweep other trains (process 7 on there)")
        self.own: set[str] = set()
        self.calls = 0

    def claim(self, keys: Iterable[str], most: int) -> tuple[Iterable[str], Mapping[str, str]]:
        self.calls += 1
        keys = list(keys)
        free = [key for key in keys if key not in self.held][:most]
        self.own |= set(free)
        return free, {key: self.held[key] for key in keys if key in self.held}

    def release(self, keys: Iterable[str]) -> None:
        self.own -= set(keys)


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(queues.time, "monotonic", lambda: self.now)


def train(queue: StageQueue, progress: Progress, name: str) -> list[str]:
    """Takes the next pack and finishes it; returns its keys."""
    pack = queue.next_pack(name) or ()
    for stage in pack:
        progress.results[stage.key] = StageResult(STATUS_OK, 2.3, 1.0, "cpu", [])
        queue.stage_done(stage.key)
    queue.pack_ended(name)
    return [stage.key for stage in pack]


def test_the_queue_takes_something_else_meanwhile_and_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = make_progress(tmp_path, *FOUR_STAGES)
    first, second, third, fourth = [stage.key for stage in progress.todo]
    claims, clock = Elsewhere([first, third]), Clock(monkeypatch)
    queue = StageQueue(progress, {}, claims=claims)
    assert [train(queue, progress, name) for name in "ab"] == [[second], [fourth]]
    assert queue.next_pack("c") is None and not queue.is_finished
    assert queue.waiting_line == "waiting for 2 stages that sweep other trains (process 7 on there)"
    calls = claims.calls
    assert queue.next_pack("d") is None and claims.calls == calls, "it does not look all the time"
    claims.held.pop(first)
    clock.now += 2 * queues.LOOK_S
    assert train(queue, progress, "e") == [first]
    assert queue.next_pack("f") is None
    assert queue.waiting_line == "waiting for 1 stage that sweep other trains (process 7 on there)"
    claims.held.clear()
    clock.now += 2 * queues.LOOK_S
    assert train(queue, progress, "g") == [third]
    assert queue.is_finished and queue.waiting_line is None
    assert claims.own == set()


def test_what_starts_from_a_stage_elsewhere_waits_for_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = make_progress(tmp_path, *FOUR_STAGES[:3], "two_phase", "--seeds", "1", *SMALL[8:])
    parent, child = [stage.key for stage in progress.todo]
    claims, clock = Elsewhere([parent]), Clock(monkeypatch)
    queue = StageQueue(progress, {}, claims=claims)
    assert queue.next_pack("a") is None and not queue.is_finished
    claims.held.clear()
    clock.now += 2 * queues.LOOK_S
    assert [train(queue, progress, name) for name in "bc"] == [[parent], [child]]


def test_claims_are_made_for_a_pack_of_each_worker_at_a_time_and_end_with_the_pack(tmp_path: Path) -> None:
    progress = make_progress(tmp_path, *FOUR_STAGES)
    claims = Elsewhere()
    queue = StageQueue(progress, {stage.shape: 1 for stage in progress.todo}, num_workers=2, claims=claims)
    for name in "ab":
        queue.next_pack(name)
    assert (claims.calls, len(claims.own)) == (1, 2)
    queue.pack_ended("a")
    queue.pack_failed("a", Fault("machine", "gone"))
    assert len(claims.own) == 1, "another driver may take it while it rests here"
    queue.next_pack("c")
    assert (claims.calls, len(claims.own)) == (2, 3)


def test_a_storage_that_refuses_claims_ends_the_queue(tmp_path: Path) -> None:
    class Full(Elsewhere):
        def claim(self, keys: Iterable[str], most: int) -> tuple[Iterable[str], Mapping[str, str]]:
            raise OSError(errno.ENOSPC, "No space left on device")

    queue = StageQueue(make_progress(tmp_path, *FOUR_STAGES), {}, claims=Full())
    assert queue.next_pack("a") is None
    assert queue.is_finished and queue.storage_fault == "[Errno 28] No space left on device"
