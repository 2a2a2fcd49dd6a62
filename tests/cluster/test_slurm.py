"""`sbatch cluster-slurm.sh` on this machine: a small srun starts what belongs on two nodes as processes here."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cvit import vocabulary as v
from tests.support.scripts import ROOT, TINY, journal

SCRIPT = ROOT / "cluster-slurm.sh"
FAKES = ROOT / "tests/support/slurm"
JOB = 900_000_000 + os.getpid()
"""No real job has this number, from which the folder and ports of Ray follow."""
SWEEP = (
    *(str(ROOT / "sweeps/low_data.py"), *TINY, "--tracking-uri", "none", "--data-fraction", "0.02", "--seeds", "2"),
    *("--init-scheme", "random", "two_phase", "--min-steps", "1200", "--max-pack", "1", "--workers", "2"),
)


def submit(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Runs the script as sbatch does, on the first of two nodes, in a process group of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "RAY_"))}
    environment |= {
        "PATH": f"{FAKES}:{os.environ['PATH']}",
        "FAKE_SLURM": str(folder),
        "SWEEP_PYTHON": str(ROOT / ".venv/bin/python"),
        "SWEEP_HEAD_ADDRESS": "127.0.0.1",
        "SLURM_JOB_ID": str(JOB),
        "SLURM_JOB_NODELIST": "node1,node2",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "1",
    }
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments],
        cwd=folder,
        env=environment | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(job: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        output, _ = job.communicate(timeout=400)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    return job.returncode, output


def processes() -> list[str]:
    """The living processes of the job's Ray."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"/tmp/cvit-{JOB}" in title:
            found.append(title)
    return found


def told(folder: Path, command: str) -> list[str]:
    """The arguments with which a command of Slurm was called, a line each."""
    path = folder / command
    return path.read_text().splitlines() if path.exists() else []


def test_the_script_is_bash_and_asks_for_what_it_needs() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", SCRIPT.read_text(), re.MULTILINE))
    assert asked["signal"] == "B:USR1@120" and {"requeue", "no-kill"} <= asked.keys()
    assert (asked["ntasks-per-node"], asked["open-mode"]) == ("1", "append")
    assert os.access(SCRIPT, os.X_OK)
    if checker := shutil.which("shellcheck"):
        subprocess.run([checker, str(SCRIPT)], check=True)


def test_without_a_sweep_or_a_job_it_says_how_it_is_called(tmp_path: Path) -> None:
    for arguments, variables in (((), {}), (SWEEP, {"SLURM_JOB_ID": ""})):
        code, output = ended(submit(tmp_path, *arguments, **variables))
        assert code == 2 and output.startswith("usage: sbatch [options of sbatch] cluster-slurm.sh")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_sweep_is_stopped_at_the_time_limit_and_goes_on_when_it_is_queued_again(tmp_path: Path) -> None:
    stopped = {signal.SIGUSR1: [f"requeue {JOB}"], signal.SIGTERM: []}
    for number, requeued in stopped.items():
        (tmp_path / "scontrol").unlink(missing_ok=True)
        job = submit(tmp_path, *SWEEP)
        before = set((tmp_path / "storage").glob("stages/*/*.json"))
        deadline = time.monotonic() + 240
        while set((tmp_path / "storage").glob("stages/*/*.json")) <= before:
            assert job.poll() is None and time.monotonic() < deadline, ended(job)
            time.sleep(0.2)
        os.kill(job.pid, number)
        code, output = ended(job)
        assert code == 130 and "Continue with:" in output, output
        assert told(tmp_path, "scontrol") == requeued
        assert processes() == [] and not Path(f"/tmp/cvit-{JOB}").exists()
    (tmp_path / "srun").unlink()
    code, output = ended(submit(tmp_path, *SWEEP))
    assert code == 0, output + (tmp_path / f"cvit-{JOB}-ray.log").read_text()
    assert processes() == [] and not Path(f"/tmp/cvit-{JOB}").exists()
    assert told(tmp_path, "scontrol") == [], "a sweep that is done is not queued again"
    ends = {record["trial_key"]: record["status"] for record in journal(tmp_path) if record["type"] == v.RECORD_END}
    assert list(ends.values()) == [v.STATUS_OK] * 4
    head, workers, clean_up = told(tmp_path, "srun")
    assert "--nodelist=node1" in head and "--nodes=1 --ntasks=1" in head
    assert "--exclude=node1" in workers and "--nodes=1 --ntasks=1" in workers
    assert clean_up.startswith("--nodes=2 --ntasks=2") and clean_up.endswith(f"rm -rf /tmp/cvit-{JOB}")


@pytest.mark.cluster
def test_a_bad_option_ends_the_job_with_a_line_and_it_is_not_queued_again(tmp_path: Path) -> None:
    code, output = ended(submit(tmp_path, *SWEEP[:-1], "3"))
    assert code == 2 and "workers 3 is not valid here: the cluster at Ray address '127.0.0.1:" in output
    assert "has room for 2, at 1 CPU each" in output
    assert told(tmp_path, "scontrol") == [] and not (tmp_path / "storage/journal").exists()
    assert processes() == []
