"""The number of cores that this process may use: on a node of 64, a job of 4 has 4."""

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
OF_THE_JOB = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "PBS_NCPUS", "NSLOTS", "LSB_DJOB_NUMPROC")
"""The variables in which batch systems (Slurm, PBS, Grid Engine, LSF) tell a job its cores, which not every system
enforces by affinity or cgroup. The first that is set counts."""


def usable_cores() -> int:
    """The number of cores that affinity, cgroups and the batch system leave to this process, at least 1."""
    limits = [_affinity(), *_quotas(), *_of_the_job()]
    return max(1, int(min(limits)))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _of_the_job() -> list[int]:
    texts = [text for name in OF_THE_JOB if (text := os.environ.get(name))]
    return [int(text) for text in texts[:1] if text.isdecimal() and int(text) > 0]


def _quotas() -> Iterator[float]:
    """The processor time that each cgroup of this process may use, in cores. A limit holds for all groups below it."""
    for mount, group in _own_cgroups():
        for folder in (group, *group.parents):
            cores = _quota_of(mount / folder)
            if cores is not None:
                yield cores


def _own_cgroups() -> Iterator[tuple[Path, Path]]:
    """(folder of the hierarchy, relative path of the group in it) for version 2 and for the `cpu` controller of
    version 1. In a container, the path may be the host's; the hierarchy then begins with the container's own group."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:  # another system
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            yield CGROUPS, Path(group.lstrip("/"))
        elif "cpu" in controllers.split(","):
            yield from ((CGROUPS / name, Path(group.lstrip("/"))) for name in (controllers, "cpu"))


def _quota_of(folder: Path) -> float | None:
    """The cores that a cgroup may use; None if it has no limit, or is not there."""
    try:
        if (limit := folder / "cpu.max").is_file():
            quota, period = limit.read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return float(quota) / float(period) if quota not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
