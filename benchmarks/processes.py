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
LOOKS_PER_MEMORY, FIRST_MEMORY = 10, 4
"""The memory is measured at every so many looks, first after 2 s: with Ray's eight processes that takes 55 ms of the
processor, which twice a second would be a twentieth of two cores."""


@dataclass(frozen=True)
class Observed:
    """The observations of one run of a command.

    Attributes:
        seconds: from its start to its exit.
        cpu_seconds: processor time of the tree; of all figures, it depends least on how busy the machine is.
        cpu_utilisation: cpu_seconds over seconds × cores, in 0..1.
        peak_memory_bytes: peak memory of the tree, by a look every 5 s; memory that processes share counts once.
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
        looks = 0
        while process.returncode is None:
            _note_times(process.pid, cpu_seconds)
            if looks % LOOKS_PER_MEMORY == FIRST_MEMORY:
                peak = max(peak, _memory(process.pid))
            looks += 1
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


def _note_times(pid: int, cpu_seconds: dict[int, float]) -> None:
    """Notes the processor time of every process of a tree.

    A process's last stretch, between the last look and its end, is lost.
    """
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            times = process.cpu_times()
            cpu_seconds[process.pid] = times.user + times.system


def _memory(pid: int) -> int:
    """The memory of a tree, bytes."""
    memory = 0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            memory += process.memory_full_info().pss
    return memory


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@contextmanager
def _gpu_samples(file: Path) -> Iterator[list[tuple[float, float]]]:
    """Yields a list that is filled at the end: utilisation in per cent and memory used in MiB, of the first GPU; it
    stays empty without nvidia-smi."""
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
