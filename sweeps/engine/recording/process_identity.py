"""Who a process is, so that another one can tell later whether it is still there."""

import os
import socket
from functools import cache
from pathlib import Path

from cvit.stages import short_hash


def this_process() -> str:
    """host:pid:place:start, where `place` tells apart what shares a host name (boots, containers) and `start`, in clock
    ticks since the boot, what has had the same pid; neither moves with the clock. Both are empty outside Linux."""
    return f"{socket.gethostname()}:{os.getpid()}:{_place()}:{_start_of(os.getpid())}"


def host_and_pid(process: str) -> tuple[str, str]:
    """The parts of an identity that a person knows a process by."""
    host, pid, *_ = [*process.split(":"), ""]
    return host, pid


def is_here(process: str) -> bool:
    """Whether this process would see that one, if it were alive."""
    host, pid, place, *_ = [*process.split(":"), "", ""]
    return host == socket.gethostname() and pid.isdigit() and place in ("", _place())


def is_dead(process: str) -> bool:
    """Whether a process is known to have ended; of one on another machine nothing is known."""
    if not is_here(process):
        return False
    _, pid, _, start, *_ = [*process.split(":"), "", ""]
    found = _start_of(int(pid))
    return found is None or (start != "" and start != found)


@cache
def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return short_hash([boot, os.readlink("/proc/self/ns/pid")], digits=8)
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """When a process started, empty where the system does not tell; None where there is none, or only its remains."""
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
