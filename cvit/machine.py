"""The machine of this process: its hardware, its Python packages, and its load while it trains."""

import ctypes
import getpass
import math
import os
import platform
import socket
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import psutil

from cvit.cores import usable_cores
from cvit.native.library import is_there
from cvit.results import Point

INTERVAL_S = 10.0
"""The least time between two measurements of a machine's load."""


def hardware() -> Mapping[str, Any]:
    """The hardware of this machine and the system on it, by name. GPUs are those that torch can use; the fused
    operators for CPUs round otherwise than torch's."""
    facts: dict[str, Any] = {
        "fused_operators": is_there(),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }
    return facts | {"gpus": _gpu_names()}


def num_gpus() -> int:
    """The number of GPUs that torch can use. It takes seconds to import, and is imported only where the library of
    NVIDIA's driver is, without which it finds none."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _gpu_names() -> list[str]:
    if not (count := num_gpus()):
        return []
    import torch

    return [torch.cuda.get_device_name(number) for number in range(count)]


def user() -> str:
    """The name of the user of this process; empty for a number without a name, as in some containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def packages() -> list[str]:
    """The installed packages as `name==version`, sorted, as `pip freeze` lists them."""
    found = {(each.metadata["Name"], each.version) for each in metadata.distributions()}
    return sorted((f"{name}=={version}" for name, version in found if name), key=str.lower)


class Load:
    """The load of this machine since the last measurement, or at first since the object was made."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # the next call tells the load since this one
        self._measured_at = -math.inf

    def measure(self) -> tuple[str, list[Point]] | None:
        """The machine's name and its load, with MLflow's names for it; None until an interval is over."""
        now = time.monotonic()
        if now - self._measured_at < INTERVAL_S:
            return None
        self._measured_at = now
        time_ms = time.time_ns() // 1_000_000
        return socket.gethostname(), [(name, time_ms // 1000, value, time_ms) for name, value in _load().items()]


def _load() -> dict[str, float]:
    memory = psutil.virtual_memory()
    load = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.percent,
    }
    import torch

    if torch.cuda.is_initialized():  # a look at a GPU that is not used would occupy some of its memory
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            load[f"gpu_{number}_memory_usage_megabytes"] = (total - free) / 1e6
            load[f"gpu_{number}_memory_usage_percentage"] = 100 * (total - free) / total
    return load


def _processor() -> str:
    """The model of the processor, where the system tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
