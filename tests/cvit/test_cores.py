"""The cores that a process may use: those that affinity, cgroups of both versions and the batch system leave to it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cvit import cores
from cvit.cores import usable_cores


@pytest.fixture(autouse=True)
def sixty_four_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 cores without limits."""
    for name in cores.OF_THE_JOB:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(cores, "CGROUPS", tmp_path)
    monkeypatch.setattr(cores, "OWN_CGROUPS", tmp_path / "own")


def write(place: Path, **files: str) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (place / name.replace("__", ".")).write_text(text + "\n")


def test_without_limits_it_has_all() -> None:
    assert usable_cores() == 64


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_counts_in_a_real_process() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from cvit.cores import usable_cores; print(usable_cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(("quota", "expected"), [("400000 100000", 4), ("max 100000", 64), ("150000 100000", 1)])
def test_a_cgroup_of_version_2(quota: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/jobs/17\n")
    write(tmp_path / "jobs" / "17", cpu__max=quota)
    assert usable_cores() == expected


def test_a_limit_holds_for_the_groups_below(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/jobs/17/step\n")
    write(tmp_path / "jobs", cpu__max="300000 100000")
    write(tmp_path / "jobs" / "17" / "step", cpu__max="max 100000")
    assert usable_cores() == 3


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_a_cgroup_of_version_1(controllers: str, tmp_path: Path) -> None:
    (tmp_path / "own").write_text(f"5:memory:/x\n4:{controllers}:/jobs/17\n0::/\n")
    write(tmp_path / controllers / "jobs" / "17", cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    write(tmp_path / controllers, cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert usable_cores() == 2


def test_in_a_container_the_path_is_the_hosts(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/docker/0123\n")
    write(tmp_path, cpu__max="250000 100000")
    assert usable_cores() == 2


def test_a_part_of_a_core_is_one(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/\n")
    write(tmp_path, cpu__max="50000 100000")
    assert usable_cores() == 1


@pytest.mark.parametrize("text", ["", "nonsense", "1 2 3", "0 0"])
def test_a_limit_that_cannot_be_read_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/\n")
    write(tmp_path, cpu__max=text)
    assert usable_cores() in (1, 64)


def test_the_batch_system_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "16")
    assert usable_cores() == 16
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    assert usable_cores() == 4
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "many")
    assert usable_cores() == 64
