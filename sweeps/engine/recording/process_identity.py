"""The identity of a process, from which another process can later tell whether it still lives."""

import os
import socket
from functools import cache
from pathlib import Path

from cvit.stages import short_hash


def this_process() -> str:
    """The identity of this process, `host:pid:place:start`.

    `place` distinguishes boots and containers that share a host name; `start`, in clock ticks since the boot,
    distinguishes processes that had the same pid. Setting the clock changes neither. Both are empty outside Linux.
    """
    return f"{socket.gethostname()}:{os.getpid()}:{_place()}:{_start_of(os.getpid())}"


def host_and_pid(process: str) -> tuple[str, str]:
    """The host and the pid of a process, for messages."""
    host, pid, *_ = [*process.split(":"), ""]
    return host, pid


def is_here(process: str) -> bool:
    """True if the given process, if alive, would be visible to this one."""
    host, pid, place, *_ = [*process.split(":"), "", ""]
    return host == socket.gethostname() and pid.isdigit() and place in ("", _place())


def is_dead(process: str) -> bool:
    """True if a process is known to have ended; always False for a process on another machine."""
    if not is_here(process):
        return False
    _, pid, _, start, *_ = [*process.split(":"), "", ""]
    start_now = _start_of(int(pid))
    return start_now is None or (start != "" and start != start_now)


@cache
def _place() -> str:
    """A hash of the boot and the container; empty if the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return short_hash([boot, os.readlink("/proc/self/ns/pid")], digits=8)
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """The start of a process, empty if the system does not tell; None if there is no such process, or only a zombie."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return ""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
