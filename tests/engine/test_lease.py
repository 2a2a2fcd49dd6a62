"""One driver per sweep: real processes that hold the lease, die, stop, and ask for it all at once."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cvit.engine.recording import drivers, process_identity
from cvit.engine.recording import lease as module
from cvit.engine.recording.lease import LeaseLost, SweepInUse, lease
from cvit.engine.recording.process_identity import is_dead, this_process
from cvit.errors import Refused
from cvit.storage import Storage, encode_record
from tests.support.faulty_s3 import faulty_s3, set_credentials

BEAT_S, EXPIRY_S = 0.2, 3.0

# Holds the lease and says so, until its input is closed; a second argument is the identity that it claims.
HOLDER = f"""
import select, signal, sys
from cvit.storage import Storage
from cvit.engine.recording import drivers, lease as module

signal.signal(signal.SIGTERM, signal.default_int_handler)
module.BEAT_S, drivers.EXPIRY_S, module.POLL_S = {BEAT_S}, {EXPIRY_S}, 0.05

def broken_for(times, error):
    # The lease cannot be read so many times.
    read_lease, left = module.read_lease, list(range(times))

    def broken(*arguments):
        if left:
            left.pop()
            raise error
        return read_lease(*arguments)

    module.read_lease = broken

if sys.argv[2:]:
    module.this_process = lambda: sys.argv[2]
try:
    with module.lease(Storage.open(sys.argv[1]), "low_data", lambda line: print(line, flush=True)):
        SETUP
        print("held", flush=True)
        # A signal that comes just before a wait does not end it, so no wait is long.
        while not select.select([sys.stdin], [], [], {BEAT_S})[0]:
            pass
except module.SweepInUse as error:
    print("refused", error, flush=True)
except module.LeaseLost as error:
    print("lost", error, flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BEAT_S": BEAT_S, "POLL_S": 0.05}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(drivers, "EXPIRY_S", EXPIRY_S)


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path / "storage")
        return
    set_credentials(monkeypatch)
    with faulty_s3() as server:
        yield server.direct_url("storage")


def holder(url: str, *identity: str, setup: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER.replace("SETUP", setup), url, *identity]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def take(url: str) -> float:
    """Takes the lease and gives it back; returns how long that took, in seconds."""
    started = time.monotonic()
    with lease(Storage.open(url), "low_data", lambda _: None):
        return time.monotonic() - started


def write_foreign(url: str, process: str, content: int, removed: Sequence[str] = ()) -> None:
    record = {"process": process, "holds": True, "seconds": 720.0, "removed": list(removed), "beats": content}
    Storage.open(url).write("leases/low_data/0123.json", encode_record(record))


def test_the_second_driver_is_refused_at_once_and_told_by_whom(url: str) -> None:
    first = holder(url)
    assert line(first) == "held"
    started = time.monotonic()
    with pytest.raises(SweepInUse, match=f"is being run by process {first.pid} on {socket.gethostname()}, for 0 min"):
        take(url)
    assert time.monotonic() - started < EXPIRY_S
    first.communicate()
    take(url)
    assert Storage.open(url).names("leases/low_data") == []


def test_another_sweep_in_the_same_storage_is_free(url: str) -> None:
    with lease(Storage.open(url), "head_count", lambda _: None):
        take(url)


def test_a_killed_drivers_lease_is_taken_over_at_once(url: str) -> None:
    first = holder(url)
    try:
        assert line(first) == "held"
        first.kill()
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # it has ended, but its remains are left
        assert take(url) < EXPIRY_S
    finally:
        first.kill()
        first.communicate()


def test_a_driver_that_is_just_ending_is_waited_for(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "0.06"]) as ending:
        _, _, place, _ = this_process().split(":")
        start = Path(f"/proc/{ending.pid}/stat").read_text().rpartition(")")[2].split()[19]
        write_foreign(str(tmp_path), f"{socket.gethostname()}:{ending.pid}:{place}:{start}", 1)
        assert take(str(tmp_path)) < EXPIRY_S


def test_a_pid_that_another_process_has_now_proves_nothing(tmp_path: Path) -> None:
    host, pid, place, start = this_process().split(":")
    assert not is_dead(this_process())
    assert is_dead(f"{host}:{pid}:{place}:{int(start) - 1}")
    write_foreign(str(tmp_path), f"{host}:{pid}:{place}:{int(start) - 1}", 1)
    assert take(str(tmp_path)) < EXPIRY_S
    # The same host name and a free pid, but another boot or another container: nothing is known of it.
    assert not is_dead(f"{host}:{2**22 + 1}:another:{start}")
    assert is_dead(f"{host}:{2**22 + 1}:{place}:{start}")


def test_a_driver_on_another_machine_lives_as_long_as_its_lease_changes(url: str) -> None:
    ended = threading.Event()

    def beat() -> None:
        beats = 0
        while not ended.wait(BEAT_S):
            write_foreign(url, "elsewhere:7:x:1", beats := beats + 1)

    write_foreign(url, "elsewhere:7:x:1", 0)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(SweepInUse, match="by process 7 on elsewhere, for 12 min"):
            take(url)
    finally:
        ended.set()
        thread.join()
    assert EXPIRY_S < take(url) < 3 * EXPIRY_S  # it has stopped


def test_a_driver_that_the_system_hides_lives_as_long_as_its_lease_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `hidepid`, where the processes of other users are not in /proc."""
    process = this_process()
    monkeypatch.setattr(process_identity, "_PROC", tmp_path / "nothing")
    storage = str(tmp_path / "storage")
    first = holder(storage)
    assert line(first) == "held"
    with pytest.raises(SweepInUse, match=f"is being run by process {first.pid} on {socket.gethostname()}"):
        take(storage)
    first.communicate()
    write_foreign(storage, process, 1)  # this process, which lives, and did not write it
    assert take(storage) > EXPIRY_S


def test_a_damaged_lease_expires(tmp_path: Path) -> None:
    write_foreign(str(tmp_path), "elsewhere:7:x:1", 0)
    path = tmp_path / "leases/low_data/0123.json"
    path.write_bytes(path.read_bytes()[:20])
    assert take(str(tmp_path)) > EXPIRY_S


def test_a_driver_that_slept_while_another_took_over_stops(url: str) -> None:
    slept = holder(url, "elsewhere:7:x:1")
    assert line(slept) == "held"
    os.kill(slept.pid, signal.SIGSTOP)
    try:
        said: list[str] = []
        with lease(Storage.open(url), "low_data", said.append):
            assert said == ["low_data: another driver has it; checking for up to 3 s whether it is alive"]
            os.kill(slept.pid, signal.SIGCONT)
            assert line(slept) == (
                f"lost sweep 'low_data' is no longer this driver's: process {os.getpid()} on {socket.gethostname()} "
                "has taken it over; it stops and writes nothing more"
            )
            time.sleep(3 * BEAT_S)  # it does not take its lease up again
            assert len(Storage.open(url).names("leases/low_data")) == 1
    finally:
        os.kill(slept.pid, signal.SIGCONT)
        slept.communicate()


def test_a_driver_that_wakes_knows_before_it_writes(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread may come too late, so every write asks; that costs nothing while the lease is fresh."""
    monkeypatch.setattr(module, "BEAT_S", 1000.0)
    storage, now = Storage.open(url), module._now()
    with lease(storage, "low_data", lambda _: None) as own:
        own.check()
        before = storage.read(f"leases/low_data/{own.token}.json")
        monkeypatch.setattr(module, "_now", lambda: now + EXPIRY_S)
        own.check()
        assert storage.read(f"leases/low_data/{own.token}.json") != before, "it was renewed"
        monkeypatch.setattr(module, "_now", lambda: now + 2 * EXPIRY_S)
        write_foreign(url, "elsewhere:7:x:1", 1, removed=[own.token])
        for _ in range(2):
            with pytest.raises(LeaseLost, match="process 7 on elsewhere has taken it over; it stops and writes"):
                own.check()
    assert storage.names("leases/low_data") == ["0123.json"]


def test_a_driver_whose_lease_is_gone_stops(tmp_path: Path) -> None:
    first = holder(str(tmp_path / "storage"))
    assert line(first) == "held"
    (tmp_path / "storage/leases/low_data").rename(tmp_path / "elsewhere")
    reason = "its lease was removed, by another driver or by hand"
    assert f"is no longer this driver's: {reason}; it stops and writes nothing more" in line(first)
    first.communicate()
    assert not list(tmp_path.glob("storage/leases/low_data/*"))


def test_a_storage_that_is_gone_is_an_error_of_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal meets it, and ends the sweep with the command that resumes (tests/end_to_end/test_storage_faults)."""
    monkeypatch.setattr(module, "BEAT_S", 1000)
    with lease(Storage.open(str(tmp_path / "storage")), "low_data", lambda _: None) as own:
        (tmp_path / "storage").rename(tmp_path / "elsewhere")
        own.check()  # it has just been renewed
        now = module._now()
        monkeypatch.setattr(module, "_now", lambda: now + EXPIRY_S)
        with pytest.raises(Refused, match="the storage was removed while the sweep ran"):
            own.check()
        own.raise_if_lost()
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize("error", ["ValueError('odd')", "SystemExit()", "MemoryError()"])
def test_the_lease_survives_an_error_of_any_kind(tmp_path: Path, error: str) -> None:
    first = holder(str(tmp_path), setup=f"broken_for(2, {error})")
    assert line(first) == "held"
    (path,) = tmp_path.glob("leases/low_data/*")
    before, deadline = path.read_bytes(), time.monotonic() + 60
    while path.read_bytes() == before:
        assert time.monotonic() < deadline
        time.sleep(BEAT_S)
    assert first.communicate()[0] == ""


def test_a_lease_that_cannot_be_renewed_any_more_ends_the_sweep_before_others_take_over(tmp_path: Path) -> None:
    first = holder(str(tmp_path), setup="broken_for(10**6, ValueError('odd'))")
    assert line(first) == "held"
    assert "its lease cannot be renewed (ValueError: odd); it stops and writes nothing more" in line(first)
    first.communicate()


def test_of_many_that_ask_at_once_exactly_one_gets_it(url: str) -> None:
    processes = [holder(url) for _ in range(6)]
    try:
        outcomes = [line(process).split()[0] for process in processes]
        while "low_data:" in outcomes:  # on a slow machine, some say that they wait
            place = outcomes.index("low_data:")
            outcomes[place] = line(processes[place]).split()[0]
        assert sorted(outcomes) == ["held"] + 5 * ["refused"]
    finally:
        for process in processes:
            process.communicate()
