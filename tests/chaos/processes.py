"""Finds and ends the processes of one sweep under test, and no others."""

import os
import signal
import time
from pathlib import Path

MARK = "CVIT_INJECT"
"""Every process of a sweep under test, Ray's included, has this in its environment."""
HOST = "CVIT_HOST"
"""The name that a sweep under test takes for that of its machine, if it is not empty."""


def processes_of(folder: Path) -> dict[int, str]:
    """Process id and title of every living process that has this folder as its mark."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if f"{MARK}={folder}\0".encode() in (entry / "environ").read_bytes() + b"\0":
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if title and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found[int(entry.name)] = title
        except OSError:
            continue
    return found


def workers_of(folder: Path) -> list[int]:
    """The processes that train."""
    titles = processes_of(folder)
    return sorted(pid for pid, title in titles.items() if "PackTrainer" in title or title.startswith("cvit worker "))


def wait_for_none(folder: Path, timeout_s: float = 60.0) -> None:
    """Waits until all processes have ended, and kills those that remain after the time."""
    deadline = time.monotonic() + timeout_s
    while left := processes_of(folder):
        if time.monotonic() > deadline:
            for pid in left:
                kill(pid)
        time.sleep(0.1)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Sends a signal to a process, unless it has ended already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
