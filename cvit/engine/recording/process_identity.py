"""The identity of a process, from which another process can later tell whether it still lives."""

import os
import socket
from functools import cache
from pathlib import Path

from cvit.stages import short_hash

_PROC = Path("/proc")


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
    """True if the given process, if alive, would run on this machine and in this container."""
    host, pid, place, *_ = [*process.split(":"), "", ""]
    return host == socket.gethostname() and pid.isdecimal() and place in ("", _place())


def is_dead(process: str) -> bool:
    """True if a process is known to have ended; always False for a process on another machine, and for one that shares
    its pid with a process that the system hides."""
    if not is_here(process):
        return False
    start, start_now = _starts(process)
    return start_now is None or (start != "" and start_now not in ("", start))


def is_alive(process: str) -> bool:
    """True if a process is known to live; always False for a process on another machine, and where the system does not
    tell whether the process with its pid is another one by now."""
    if not is_here(process):
        return False
    start, start_now = _starts(process)
    return start != "" and start == start_now


def _starts(process: str) -> tuple[str, str | None]:
    """The start of a process of this machine, and the start of the process that has its pid now."""
    _, pid, _, start, *_ = [*process.split(":"), "", ""]
    return start, _start_of(int(pid))


@cache
def _place() -> str:
    """A hash of the boot and the container; empty if the system does not tell."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return short_hash([boot, os.readlink(_PROC / "self/ns/pid")], digits=8)
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """The start of a process, empty if the system does not tell; None if there is no such process, or only a zombie."""
    try:
        fields = (_PROC / f"{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        # No such process, or no such file: outside Linux, and for processes of other users under `hidepid`.
        return "" if _exists(pid) else None
    return None if fields[0] in "ZX" else fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
