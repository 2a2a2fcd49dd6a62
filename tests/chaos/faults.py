"""The faults that happen to a campaign while a session runs, and damage to its files between sessions."""

import contextlib
import random
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

from cvit import vocabulary as v
from cvit.engine import exit_codes
from tests.chaos.campaign import IS_ROOT, SESSION_TIMEOUT_S, Campaign
from tests.chaos.comparing import finished_runs
from tests.chaos.ledger import LEDGER
from tests.chaos.processes import kill, workers_of


def kill_driver(campaign: Campaign, process: subprocess.Popen[str]) -> None:
    if campaign.wait_a_moment(process):
        LEDGER.faults["driver killed (SIGKILL)"] += 1
        process.kill()
        campaign.note_time_lost()


def terminate_driver(campaign: Campaign, process: subprocess.Popen[str]) -> None:
    if campaign.wait_a_moment(process):
        LEDGER.faults["driver asked to end (SIGTERM)"] += 1
        process.terminate()


def kill_worker(campaign: Campaign, process: subprocess.Popen[str]) -> None:
    if campaign.wait_for_training(process) and (workers := workers_of(campaign.inject)):
        LEDGER.faults["worker killed (SIGKILL)"] += 1
        kill(campaign.draw.choice(workers))


def terminate_worker(campaign: Campaign, process: subprocess.Popen[str]) -> None:
    if campaign.wait_for_training(process) and (workers := workers_of(campaign.inject)):
        LEDGER.faults["worker asked to end (SIGTERM)"] += 1
        kill(campaign.draw.choice(workers), signal.SIGTERM)


def poison_stage(campaign: Campaign, process: subprocess.Popen[str]) -> None:
    """Makes a stage kill its worker one to three times in a row, which is less often than it may."""
    LEDGER.faults["stage kills its worker"] += (times := campaign.draw.randint(1, 3))
    _order(campaign, "kill", times)


def exhaust_memory(campaign: Campaign, process: subprocess.Popen[str]) -> None:
    """Makes a stage take so much memory that Ray's memory monitor kills a worker. Without Ray it would be the system,
    for want of any memory on this machine."""
    if not campaign.has_memory_monitor:
        return
    LEDGER.faults["worker killed by the memory monitor"] += 1
    order = _order(campaign, "memory", 1)
    campaign.wait(process, lambda: not order.read_text(), timeout_s=30)


def hang_worker(campaign: Campaign, process: subprocess.Popen[str]) -> None:
    """Stops a worker's process for good."""
    if campaign.wait_for_training(process) and (workers := workers_of(campaign.inject)):
        LEDGER.faults["worker hung (SIGSTOP)"] += 1
        kill(campaign.draw.choice(workers), signal.SIGSTOP)


def sleep_driver(campaign: Campaign, process: subprocess.Popen[str]) -> None:
    """Suspends the driver until another has taken its sweep over; then it wakes, and must not touch what is not its
    own any more. The other is killed."""
    folder = f"{v.LEASES_FOLDER}/{campaign.plan.study.sweep}"
    if not campaign.wait_for_training(process):
        return
    asleep = set(campaign.storage.names(folder))
    kill(process.pid, signal.SIGSTOP)
    LEDGER.faults["driver asleep while another takes over"] += 1
    # A driver that is suspended on the same machine is known to live, so nobody takes over from it.
    second = campaign.start(host="another-machine")
    try:
        if campaign.wait(second, lambda: not asleep & set(campaign.storage.names(folder)), 120):
            campaign.wait_for_training(second)
        finished = finished_runs(campaign.folder)
        kill(process.pid, signal.SIGCONT)
        process.wait(timeout=SESSION_TIMEOUT_S)
        assert finished <= finished_runs(campaign.folder)
    finally:
        kill(process.pid, signal.SIGCONT)
        second.kill()
        output, errors = second.communicate()
    assert "Traceback" not in output + errors, output + errors


def other_sweep(campaign: Campaign, process: subprocess.Popen[str]) -> None:
    """Starts another sweep that needs the same stages, beside this one."""
    if not campaign.others:
        LEDGER.faults["another sweep with the same stages"] += 1
        campaign.start_other()


def raise_in_training(campaign: Campaign, process: subprocess.Popen[str]) -> None:
    """Raises once, which is less often than a stage is tried, so the sweep ends well."""
    if process.poll() is None:
        LEDGER.faults["error raised by the training"] += 1
        _order(campaign, "code", 1)


def _order(campaign: Campaign, order: str, times: int) -> Path:
    """Orders the training of a scheme that is drawn to suffer so many times; returns the file with the order."""
    path = campaign.inject / f"{order}-{campaign.draw.choice(['random', 'two_phase'])}"
    path.write_text("x\n" * times)
    return path


def second_driver(campaign: Campaign, process: subprocess.Popen[str]) -> None:
    """Starts a second driver, which is refused whether the first is just starting or training."""
    if campaign.draw.random() < 0.5 and not campaign.wait_for_training(process):
        return
    LEDGER.faults["second driver"] += 1
    second = campaign.start()
    output, errors = second.communicate(timeout=SESSION_TIMEOUT_S)
    if second.returncode == exit_codes.BAD_INPUT:
        assert "is being run by process" in errors, errors
        assert len(errors.strip().splitlines()) == 1, errors
        return
    # The first was just starting, or just ending, and the second was faster; then the first is refused.
    process.wait(timeout=SESSION_TIMEOUT_S)
    assert second.returncode == 0, output + errors


def jump_clock(campaign: Campaign, process: subprocess.Popen[str]) -> None:
    """Moves the clock by a minute to a day, forth or back, for good."""
    if campaign.wait_a_moment(process):
        LEDGER.faults["clock jump"] += 1
        campaign.clock_is_right = False
        (campaign.inject / "clock").write_text(str(campaign.draw.choice([-86400, -3600, -60, 60, 3600, 86400])))


def lock_tracker(campaign: Campaign, process: subprocess.Popen[str]) -> None:
    """Holds MLflow's database for longer than a writer waits for it."""
    if campaign.wait_for_training(process) and (campaign.folder / "mlflow.db").exists():
        with contextlib.closing(sqlite3.connect(campaign.folder / "mlflow.db", isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError:
                return
            LEDGER.faults["tracking store locked for 8 s"] += 1
            time.sleep(8)
            connection.execute("ROLLBACK")


def fill_disk(campaign: Campaign, process: subprocess.Popen[str]) -> None:
    """Fills the disk: the sweep ends in one line, unless it was about to end anyway."""
    if IS_ROOT and campaign.wait_for_training(process):
        LEDGER.faults["storage full"] += 1
        ballast = campaign.disk / "ballast"
        with contextlib.suppress(OSError):
            ballast.write_bytes(bytes(2**27))
        _expect_refusal(campaign, process, "No space left on device")
        ballast.unlink()


def make_read_only(campaign: Campaign, process: subprocess.Popen[str]) -> None:
    if IS_ROOT and campaign.wait_for_training(process):
        remount = ["mount", "-o", "remount,ro", str(campaign.disk)]
        while subprocess.run(remount, capture_output=True).returncode != 0:
            time.sleep(0.01)  # a file is just being written
        LEDGER.faults["storage read-only"] += 1
        _expect_refusal(campaign, process, "Read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", str(campaign.disk)], check=True)


def _expect_refusal(campaign: Campaign, process: subprocess.Popen[str], reason: str) -> None:
    """Checks that a driver ends for the reason: in its training, or at its start, if the training was another one's."""
    said = campaign.said_by(process)
    assert "Traceback" not in said, said
    refused = process.returncode in (exit_codes.FAILED_TRIALS, exit_codes.BAD_INPUT) and reason in said
    assert process.returncode == exit_codes.FINISHED or refused, said


def damage_checkpoint(campaign: Campaign) -> None:
    """Truncates a file of a newest checkpoint, or flips a bit in it; then the checkpoint before it is used."""
    found = sorted(campaign.disk.glob(f"{v.STAGES_FOLDER}/*/step-*.json"))
    stages = [stage for stage in {path.parent for path in found} if not (stage / "result.json").exists()]
    if not stages:
        return
    stage = campaign.draw.choice(sorted(stages))
    newest = max(path for path in found if path.parent == stage)
    path = campaign.draw.choice([newest, newest.with_suffix(".safetensors")])
    LEDGER.faults[f"checkpoint {_damage(path, campaign.draw)}"] += 1
    campaign.saved, campaign.is_damaged = {}, True


def damage_journal(campaign: Campaign) -> None:
    """Truncates a segment within its last line, or flips a bit anywhere in it."""
    segments = [path for path in sorted(campaign.disk.glob("journal/*/*.jsonl")) if path.stat().st_size > 200]
    if segments:
        LEDGER.faults[f"journal line {_damage(campaign.draw.choice(segments), campaign.draw, most=100)}"] += 1


def _damage(path: Path, draw: random.Random, most: int | None = None) -> str:
    data = bytearray(path.read_bytes())
    if draw.random() < 0.5 and len(data) > 1:
        path.write_bytes(data[: len(data) - draw.randint(1, min(most or len(data), len(data)))])
        return "truncated"
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    return "bit flipped"
