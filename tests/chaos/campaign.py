"""Runs one sweep while faults happen to it, and checks after each session that no saved work is lost."""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from cvit import vocabulary as v
from cvit.results import Point
from sweeps.engine.planning.plan import Plan
from tests.chaos.comparing import (
    assert_equal_to_undisturbed,
    assert_nothing_saved_was_trained_again,
    count_trials,
    saved_points,
    unfinished,
)
from tests.chaos.ledger import LEDGER
from tests.chaos.processes import MARK, kill, processes_of, wait_for_none, workers_of
from tests.support.scripts import ROOT, start

HERE = Path(__file__).parent
SESSION_TIMEOUT_S = 400.0
IS_ROOT = os.geteuid() == 0
"""As root, the storage is a small disk of its own, which can be filled or made read-only."""
DISK = "48m"
EXIT_IN_USE = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


class Campaign:
    """One sweep in a folder of its own, from its first session to its end."""

    def __init__(self, folder: Path, options: tuple[str, ...], plan: Plan, undisturbed: Path, seed: int) -> None:
        """
        Args:
            options: the options of `sweeps/low_data.py`.
            plan: the plan that these options make.
            undisturbed: the folder of the same sweep without faults.
            seed: the seed of all draws of this campaign.
        """
        self.folder, self.options, self.plan, self.undisturbed = folder, options, plan, undisturbed
        self.draw = random.Random(seed)
        self.inject = folder / "inject"
        self.storage = folder / "storage"
        self.inject.mkdir()
        self.storage.mkdir()
        if IS_ROOT:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(self.storage)], check=True)
        self._saved: dict[str, list[Point]] = {}
        self._clock_is_right = True
        LEDGER.sweeps += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in processes_of(self.inject):
            kill(pid)
        if IS_ROOT:
            subprocess.run(["umount", "-l", str(self.storage)], check=True)

    # --- sessions -----------------------------------------------------------------------------------------------

    def session(self, *faults: "Fault") -> int:
        """Starts the driver, lets the faults happen one after another, and returns its exit code once it has ended."""
        LEDGER.sessions += 1
        process = self.start()
        for fault in faults:
            if process.poll() is None:
                fault(self, process)
        output, errors = process.communicate(timeout=SESSION_TIMEOUT_S)
        self._after(process, output + errors)
        return process.returncode

    def start(self) -> subprocess.Popen[str]:
        environment = {MARK: str(self.inject), "PYTHONPATH": f"{HERE / 'inject'}{os.pathsep}{ROOT}"}
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        try:
            return start(self.folder, *self.options)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    def _after(self, process: subprocess.Popen[str], said: str) -> None:
        if process.returncode in (0, EXIT_FAILED, EXIT_INTERRUPTED):
            assert "Traceback" not in said, said
        elif process.returncode == EXIT_IN_USE:  # a second driver was faster
            assert "is being run by process" in said, said
        else:
            # While Ray's core connects, for a third of a second, SIGTERM aborts.
            ends = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGABRT)
            assert process.returncode in ends, (process.returncode, said)
        self.said = said
        self.check_saved()

    def check_saved(self) -> None:
        """Checks that no work that was saved at the last call has been trained again since."""
        wait_for_none(self.inject) if self.draw.random() < 0.5 else None
        if processes_of(self.inject):
            self._saved = {}  # a killed driver's workers go on for a moment, beside those of the next one
            return
        assert_nothing_saved_was_trained_again(self.folder, self._saved)
        self._saved = saved_points(self.folder)

    def finish(self) -> None:
        """Lets the sweep end without further faults and compares it with the undisturbed one."""
        for _ in range(3):
            if self.session() == 0:
                break
        wait_for_none(self.inject)
        lost, doubled = count_trials(self.folder, self.plan)
        LEDGER.trials += len(self.plan.trials)
        LEDGER.lost += lost
        LEDGER.doubled += doubled
        assert (lost, doubled) == (0, 0), self.said
        assert_equal_to_undisturbed(self.folder, self.undisturbed)

    # --- moments ------------------------------------------------------------------------------------------------

    def wait_for_training(self, process: subprocess.Popen[str]) -> bool:
        """Waits until a checkpoint or a result is written; returns False if the driver ended before."""

        def newest() -> float:
            files = self.storage.glob(f"{v.STAGES_FOLDER}/*/*.json")
            return max((_mtime(path) for path in files), default=0.0)

        before = newest()
        return self._wait(process, lambda: newest() > before)

    def wait_a_moment(self, process: subprocess.Popen[str]) -> bool:
        """Waits for a random moment of the session: in its start or while it trains."""
        if self.draw.random() < 0.25:
            return self._wait(process, lambda: False, self.draw.uniform(0, 12))
        if not self.wait_for_training(process):
            return False
        return self._wait(process, lambda: False, self.draw.uniform(0, 3))

    def _wait(self, process: subprocess.Popen[str], condition: Callable[[], bool], timeout_s: float = 300) -> bool:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and not condition():
            if process.poll() is not None:
                return False
            time.sleep(0.02)
        return True

    def note_time_lost(self) -> None:
        """Notes the age of the checkpoints of all stages in training, when a process is killed."""
        if self._clock_is_right:
            now, points = time.time(), saved_points(self.folder)
            LEDGER.time_lost_s += [now - points[key][-1][3] / 1000 for key in unfinished(self.folder)]


Fault = Callable[[Campaign, subprocess.Popen[str]], None]


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


# --- faults while a session runs -------------------------------------------------------------------------------


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


def raise_in_training(campaign: Campaign, process: subprocess.Popen[str]) -> None:
    """Raises once, which is less often than a stage is tried, so the sweep ends well."""
    if process.poll() is None:
        LEDGER.faults["error raised by the training"] += 1
        (campaign.inject / f"code-{campaign.draw.choice(['random', 'two_phase'])}").write_text("x\n")


def second_driver(campaign: Campaign, process: subprocess.Popen[str]) -> None:
    """Starts a second driver, which is refused whether the first is just starting or training."""
    if campaign.draw.random() < 0.5 and not campaign.wait_for_training(process):
        return
    LEDGER.faults["second driver"] += 1
    second = campaign.start()
    output, errors = second.communicate(timeout=SESSION_TIMEOUT_S)
    if second.returncode == EXIT_IN_USE:
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
        campaign._clock_is_right = False
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
        ballast = campaign.storage / "ballast"
        with contextlib.suppress(OSError):
            ballast.write_bytes(bytes(2**27))
        _expect_refusal(process, "No space left on device")
        ballast.unlink()


def make_read_only(campaign: Campaign, process: subprocess.Popen[str]) -> None:
    if IS_ROOT and campaign.wait_for_training(process):
        remount = ["mount", "-o", "remount,ro", str(campaign.storage)]
        while subprocess.run(remount, capture_output=True).returncode != 0:
            time.sleep(0.01)  # a file is just being written
        LEDGER.faults["storage read-only"] += 1
        _expect_refusal(process, "Read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", str(campaign.storage)], check=True)


def _expect_refusal(process: subprocess.Popen[str], reason: str) -> None:
    process.wait(timeout=SESSION_TIMEOUT_S)
    assert process.stdout is not None and process.stderr is not None
    said = process.stdout.read() + process.stderr.read()
    assert "Traceback" not in said, said
    assert process.returncode == 0 or (process.returncode == EXIT_FAILED and reason in said), said


# --- faults between sessions ------------------------------------------------------------------------------------


def damage_checkpoint(campaign: Campaign) -> None:
    """Truncates a file of a newest checkpoint, or flips a bit in it; then the checkpoint before it is used."""
    found = sorted(campaign.storage.glob(f"{v.STAGES_FOLDER}/*/step-*.json"))
    stages = [stage for stage in {path.parent for path in found} if not (stage / "result.json").exists()]
    if not stages:
        return
    stage = campaign.draw.choice(sorted(stages))
    newest = max(path for path in found if path.parent == stage)
    path = campaign.draw.choice([newest, newest.with_suffix(".safetensors")])
    LEDGER.faults[f"checkpoint {_damage(path, campaign.draw)}"] += 1
    campaign._saved = {}


def damage_journal(campaign: Campaign) -> None:
    """Truncates a segment within its last line, or flips a bit anywhere in it."""
    segments = [path for path in sorted(campaign.storage.glob("journal/*/*.jsonl")) if path.stat().st_size > 200]
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
