"""Runs one sweep while faults happen to it, and checks after each session that no saved work is lost."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import pyarrow.fs as pafs

from cvit.engine import exit_codes
from cvit.engine.planning.plan import Plan
from cvit.results import Point
from cvit.storage import Storage
from cvit.vocabulary import STAGES_FOLDER
from sweeps import init_schemes
from tests.chaos.comparing import (
    assert_equal_to_undisturbed,
    assert_nothing_saved_was_trained_again,
    count_retrained,
    count_trials,
    saved_points,
    unfinished,
)
from tests.chaos.ledger import LEDGER
from tests.chaos.processes import HOST, MARK, kill, processes_of, wait_for_none
from tests.support.plans import make_plan
from tests.support.scripts import ROOT, start

HERE = Path(__file__).parent
SESSION_TIMEOUT_S = 400.0
IS_ROOT = os.geteuid() == 0
"""As root, the storage is a small disk of its own, which can be filled or made read-only."""
DISK = "48m"
OTHER_SWEEP, OTHER_SCRIPT = init_schemes.SWEEP, "sweeps/init_schemes.py"
"""Another sweep; with the same options, it needs the same stages."""
SPARE_MEMORY_GIB = 3.0
"""Memory that a session may take before Ray's memory monitor kills a worker."""
QUICK = {
    "cvit.engine.recording.lease": {"BEAT_S": 0.5},
    "cvit.engine.recording.drivers": {"EXPIRY_S": 10.0},
    "cvit.engine.execution.watch": {"LEAST_SAID_S": 5.0, "LEAST_ENDED_S": 20.0, "SAID_AFTER": 3, "ENDED_AFTER": 10},
}
"""Constants of the engine that are shorter in a campaign than in life, by module."""


class Campaign:
    """A campaign is one sweep in a folder of its own, from its first session to its end."""

    def __init__(
        self, folder: Path, options: tuple[str, ...], plan: Plan, undisturbed: Path, seed: int, url: str | None = None
    ) -> None:
        """
        Args:
            options: the options of `sweeps/low_data.py`.
            plan: the plan that these options make.
            undisturbed: the folder of the same sweep without faults.
            seed: the seed of all draws of this campaign.
            url: the storage; None for a folder on a disk of its own.
        """
        self.folder, self.options, self.plan, self.undisturbed = folder, options, plan, undisturbed
        self.has_memory_monitor = "local" not in options  # it is Ray's
        self.draw = random.Random(seed)
        self.inject = folder / "inject"
        self.disk = folder / "storage"
        self.inject.mkdir()
        (self.inject / "constants.json").write_text(json.dumps(QUICK))
        self._has_disk = url is None
        if url is None:
            self.disk.mkdir()
            if IS_ROOT:
                subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(self.disk)], check=True)
        else:
            self.options = (*options, "--storage", url)
        self.storage = Storage.open(url or str(self.disk))
        self.said = ""
        self._texts: dict[subprocess.Popen[str], str] = {}
        self.is_damaged = False
        self.clock_is_right = True
        self.others: list[subprocess.Popen[str]] = []
        self.had_others = False
        self.saved: dict[str, Sequence[Point]] = {}
        LEDGER.sweeps += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in processes_of(self.inject):
            kill(pid)
        if IS_ROOT and self._has_disk:
            subprocess.run(["umount", "-l", str(self.disk)], check=True)

    # --- sessions -----------------------------------------------------------------------------------------------

    def session(self, *faults: "Fault") -> int:
        """Starts the driver, lets the faults happen one after another, and returns its exit code once it has ended."""
        LEDGER.sessions += 1
        process = self.start()
        for fault in faults:
            if process.poll() is None:
                fault(self, process)
        self.said_by(process)
        while self.others:
            self._end_other(self.others.pop())
        self._after(process)
        return process.returncode

    def said_by(self, process: subprocess.Popen[str]) -> str:
        """Waits for the end of a driver; returns everything that it has said, however often it is asked for."""
        if process not in self._texts:
            output, errors = process.communicate(timeout=SESSION_TIMEOUT_S)
            self._texts[process] = output + errors
        return self._texts[process]

    def start_other(self) -> None:
        """Starts another sweep that needs the same stages; it ends with the session, or is killed then."""
        self.had_others = True
        self.others.append(self.start(OTHER_SCRIPT))

    def _end_other(self, process: subprocess.Popen[str]) -> None:
        if self.draw.random() < 0.5:
            self.wait(process, lambda: False, self.draw.uniform(0, 6))
            LEDGER.faults["driver killed (SIGKILL)"] += process.poll() is None
            process.kill()
        self._check(process, self.said_by(process))

    def start(self, script: str = "sweeps/low_data.py", host: str = "") -> subprocess.Popen[str]:
        """Starts a driver with the options of the campaign, whose processes suffer the injected faults.

        Args:
            host: a name of the machine, so that drivers take each other for those of different machines.
        """
        environment = {
            MARK: str(self.inject),
            "PYTHONPATH": f"{HERE / 'inject'}{os.pathsep}{ROOT}",
            "RAY_memory_usage_threshold": f"{_used_memory(SPARE_MEMORY_GIB):.4f}",
            HOST: host,
        }
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        try:
            return start(self.folder, *self.options, script=script)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    def _after(self, process: subprocess.Popen[str]) -> None:
        self.said = self.said_by(process)
        self._check(process, self.said)
        self.check_saved()

    @staticmethod
    def _check(process: subprocess.Popen[str], said: str) -> None:
        """Checks that a driver has ended in a way that the documentation states."""
        if process.returncode in (exit_codes.FINISHED, exit_codes.FAILED_TRIALS, exit_codes.INTERRUPTED):
            assert "Traceback" not in said, said
        elif process.returncode == exit_codes.LEASE_LOST:  # it slept
            assert "is no longer this driver's" in said and "Traceback" not in said, said
        elif process.returncode == exit_codes.BAD_INPUT:  # a second driver was faster, or the storage is full
            assert "is being run by process" in said or "cannot be written" in said, said
            assert "Traceback" not in said, said
        else:
            # While Ray's core connects, for a third of a second, SIGTERM aborts.
            ends = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGABRT)
            assert process.returncode in ends, (process.returncode, said)

    def check_saved(self) -> None:
        """Checks that no work that was saved at the last call has been trained again since."""
        wait_for_none(self.inject) if self.draw.random() < 0.5 else None
        if processes_of(self.inject):
            self.saved = {}  # a killed driver's workers go on for a moment, beside those of the next one
            return
        assert_nothing_saved_was_trained_again(self.storage, self.saved)
        self.saved = saved_points(self.storage)

    def finish(self) -> None:
        """Lets the sweep, and any other beside it, end without further faults; compares it with the undisturbed one."""
        plans = [self.plan]
        for _ in range(3):
            if self.session() == 0:
                break
        if self.had_others:
            plans.append(make_plan(self.folder / "storage", *self.options, sweep=OTHER_SWEEP))
            process = self.start(OTHER_SCRIPT)
            said = self.said_by(process)
            assert process.returncode == 0, said
        wait_for_none(self.inject)
        for plan in plans:
            lost, doubled = count_trials(self.storage, self.folder, plan)
            retrained = 0 if self.is_damaged else count_retrained(self.storage, plan)
            LEDGER.trials += len(plan.trials)
            LEDGER.lost += lost
            LEDGER.doubled += doubled
            LEDGER.retrained += retrained
            assert (lost, doubled, retrained) == (0, 0, 0), self.said
        assert_equal_to_undisturbed(self.storage, Storage.open(str(self.undisturbed / "storage")))

    # --- moments ------------------------------------------------------------------------------------------------

    def wait_for_training(self, process: subprocess.Popen[str]) -> bool:
        """Waits until a checkpoint or a result is written; returns False if the driver ended before."""
        before = self._stage_files()
        return self.wait(process, lambda: bool(self._stage_files() - before))

    def wait_a_moment(self, process: subprocess.Popen[str]) -> bool:
        """Waits for a random moment of the session: in its start or while it trains."""
        if self.draw.random() < 0.25:
            return self.wait(process, lambda: False, self.draw.uniform(0, 12))
        if not self.wait_for_training(process):
            return False
        return self.wait(process, lambda: False, self.draw.uniform(0, 3))

    def wait(self, process: subprocess.Popen[str], condition: Callable[[], bool], timeout_s: float = 300) -> bool:
        """Waits for a condition or the time; returns False if the driver ended before."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and not condition():
            if process.poll() is not None:
                return False
            time.sleep(0.02 if self.storage.is_local else 0.3)
        return True

    def _stage_files(self) -> set[tuple[str, Any]]:
        """The records of checkpoints and results: their names and times."""
        url = self.storage.url
        filesystem, root = pafs.FileSystem.from_uri(url if "://" in url else f"file://{url}")
        selector = pafs.FileSelector(f"{root.rstrip('/')}/{STAGES_FOLDER}", recursive=True, allow_not_found=True)
        try:
            files = filesystem.get_file_info(selector)
        except OSError:  # a file vanished while the folder was read, or the storage has a fault at the moment
            return set()
        return {(file.path, file.mtime_ns) for file in files if file.path.endswith(".json")}

    def note_time_lost(self) -> None:
        """Notes the age of the checkpoints of all stages in training, when a process is killed."""
        if self.clock_is_right:
            now, points = time.time(), saved_points(self.storage)
            LEDGER.time_lost_s += [now - points[key][-1][3] / 1000 for key in unfinished(self.storage)]


Fault = Callable[[Campaign, subprocess.Popen[str]], None]
"""Something that happens to a session of a campaign, whose driver is the process."""


def _used_memory(spare_gib: float) -> float:
    """The share of this machine's memory in use, plus some GiB to spare."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kib = {name.rstrip(":"): int(value) for name, value, *_ in lines}
    return min(0.95, 1 - (kib["MemAvailable"] - spare_gib * 2**20) / kib["MemTotal"])
