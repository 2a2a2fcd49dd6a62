"""Sweeps by forked workers (`--address local`): no process outlives them, and they ask nothing of the script."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cvit import vocabulary as v
from cvit.cores import usable_cores
from tests.chaos.processes import MARK, processes_of, workers_of
from tests.end_to_end.test_in_process import STEPS
from tests.support.scripts import TINY, Ended, journal, start, sweep

LOCAL = ("--address", "local", "--tracking-uri", "none")
LONG = (
    *(*TINY[:-4], "--evaluations", "200", "--budget-unit", "steps", "--min-steps", "4000", "--data-fraction", "0.05"),
    *("--init-scheme", "random", "two_phase", "--seeds", "2", *LOCAL, "--max-pack", "1"),
)
"""Stages of several seconds each."""


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mark of all processes that a test starts."""
    monkeypatch.setenv(MARK, str(tmp_path))
    return tmp_path


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, "the sweep has ended"
        time.sleep(0.02)


def ended(process: subprocess.Popen[str]) -> Ended:
    output, errors = process.communicate(timeout=120)
    return Ended(process.returncode, output, errors)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=lambda end: end.name)
def test_no_process_outlives_the_driver(mark: Path, end: signal.Signals) -> None:
    process = start(mark, *LONG)
    wait_for(lambda: list(mark.glob(STEPS)), process)
    assert len(workers_of(mark)) == min(usable_cores(), 2 * 2)
    process.send_signal(end)
    said = ended(process)
    if end == signal.SIGKILL:
        wait_for(lambda: not processes_of(mark))
        return
    assert not processes_of(mark), "a stop waits for its workers"
    assert said.exit_code == 130 and "Stopped with" in said.output and "Traceback" not in said.output + said.errors
    assert "--address local" in said.output and "steps are kept" in said.output


@pytest.mark.parametrize("delay_s", [0.0, 0.5, 1.5])
def test_ctrl_c_while_it_starts(mark: Path, delay_s: float) -> None:
    """From the moment at which the warm process is there."""
    process = start(mark, *LONG)
    wait_for(lambda: any(pid != process.pid for pid in processes_of(mark)), process)
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    said = ended(process)
    assert said.exit_code == 130 and "Traceback" not in said.output + said.errors, said
    assert not processes_of(mark)


def test_workers_stand_still_while_the_driver_sleeps(mark: Path) -> None:
    """Its lease may go to another driver meanwhile, whose workers then train the same stages."""
    process = start(mark, *LONG)
    wait_for(lambda: list(mark.glob(STEPS)), process)
    workers = [psutil.Process(pid) for pid in workers_of(mark)]
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: all(worker.status() == psutil.STATUS_SLEEPING for worker in workers for _ in range(20)))
    before = {worker.pid: worker.cpu_times() for worker in workers}
    time.sleep(1.0)
    assert {worker.pid: worker.cpu_times() for worker in workers} == before
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: all(worker.cpu_times() > before[worker.pid] for worker in workers), process)
    process.kill()
    ended(process)


def test_a_script_without_a_main_guard_and_without_a_file(tmp_path: Path) -> None:
    """Neither is read again by a worker: it trains in a notebook and in an interpreter."""
    options = "preset='smoke', storage='storage', tracking_uri='none', address='local', max_pack=1, seeds=2"
    grid = "init_scheme='random', data_fraction=0.1, min_steps=8"
    script = f"import cvit; print(len(cvit.run('low_data', {options}, {grid}).trials))"
    command = [sys.executable, "-W", "error", "-"]
    done = subprocess.run(command, input=script, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "2"
    assert done.stdout.count("2 of 2 trials done") == 1, "it ran once"


def test_asha_stops_trials_of_a_search_without_ray(tmp_path: Path) -> None:
    tiny = ("--embed-dim", "16", "--head-dim", "4", "--batch-size", "16", "--min-steps", "32", "--evaluations", "4")
    options = ("--preset", "smoke", "--asha", "--search-trials", "6", "--init-scheme", "random", *tiny)
    said = sweep(tmp_path, *options, "--seeds", "1", *LOCAL, script="sweeps/tuned.py")
    ends = {r["trial_key"]: r["status"] for r in journal(tmp_path, "tuned") if r["type"] == v.RECORD_END}
    assert v.STATUS_PRUNED in ends.values() and v.STATUS_OK in ends.values()
    assert set(ends.values()) <= {v.STATUS_OK, v.STATUS_PRUNED, v.STATUS_DIVERGED}, said
