"""Runs a command and watches its whole tree of processes: wall time, processor time, memory, the GPU."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.common import available_cores

OUTPUT_FILE = "output.txt"
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
"""Environment that keeps the programs of a benchmark from reporting to their makers."""
INTERVAL_S = 0.5
"""Time between two looks at the tree; a look takes a few milliseconds."""


@dataclass(frozen=True)
class Observed:
    """One run of a command.

    Attributes:
        seconds: from its start to its exit.
        cpu_seconds: processor time of the tree; of all figures, it depends least on how busy the machine is.
        cpu_utilisation: cpu_seconds over seconds × cores, in 0..1.
        peak_memory_bytes: peak memory of the tree; memory that processes share counts once.
        gpu_utilisation: mean share of the time in which a kernel ran, in 0..1; None without a GPU.
        gpu_peak_memory_bytes: peak memory of the whole device; None without a GPU.
    """

    seconds: float
    cpu_seconds: float
    cpu_utilisation: float
    peak_memory_bytes: int
    gpu_utilisation: float | None
    gpu_peak_memory_bytes: int | None


def observe(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Observed:
    """Runs a command in a folder; what it prints goes to OUTPUT_FILE there.

    Raises:
        RuntimeError: it failed; the message has the last line that it printed.
    """
    output = folder / OUTPUT_FILE
    cpu_seconds: dict[int, float] = {}
    peak = 0
    with open(output, "wb") as file, _gpu_samples(folder / "gpu.csv") as gpu:
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
        while process.returncode is None:
            peak = max(peak, _look(process.pid, cpu_seconds))
            with suppress(subprocess.TimeoutExpired):
                process.wait(INTERVAL_S)
        seconds = time.monotonic() - started
    if process.returncode != 0:
        lines = output.read_text(errors="replace").strip().splitlines()
        raise RuntimeError(f"{' '.join(command)} failed ({process.returncode}): {lines[-1] if lines else 'no output'}")
    shares, memory = [sample[0] / 100 for sample in gpu], [int(sample[1] * 2**20) for sample in gpu]
    return Observed(
        seconds,
        sum(cpu_seconds.values()),
        sum(cpu_seconds.values()) / (seconds * available_cores()),
        peak,
        sum(shares) / len(shares) if shares else None,
        max(memory, default=None),
    )


def _look(pid: int, cpu_seconds: dict[int, float]) -> int:
    """Notes the processor time of every process of a tree and returns the memory of all, bytes.

    A process's last stretch, between the last look and its end, is lost.
    """
    memory = 0
    for process in _tree(pid):
        try:
            times = process.cpu_times()
            cpu_seconds[process.pid] = times.user + times.system
            memory += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return memory


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@contextmanager
def _gpu_samples(file: Path) -> Iterator[list[tuple[float, float]]]:
    """A list that is filled at the end: utilisation in per cent and memory used in MiB, of the first GPU; empty without
    nvidia-smi."""
    samples: list[tuple[float, float]] = []
    if shutil.which("nvidia-smi") is None:
        yield samples
        return
    query = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
    with open(file, "wb") as out:
        sampler = subprocess.Popen([*query, f"--loop-ms={INTERVAL_S * 1000:.0f}"], stdout=out)
        try:
            yield samples
        finally:
            sampler.terminate()
            sampler.wait()
    for line in file.read_text().splitlines():
        if line.count(",") == 1:  # the last one may be torn
            utilisation, memory = line.split(",")
            samples.append((float(utilisation), float(memory)))
