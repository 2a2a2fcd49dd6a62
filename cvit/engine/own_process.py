"""This process as the system sees it: the title that `ps` and `top` show, and the end with its parent."""

import ctypes
import signal
import sys
from pathlib import Path

ROOM = " " * 200
"""The last argument of a process that will have a title: titles are written where its arguments are."""
_SET_DEATH_SIGNAL, _SET_NAME = 1, 15
_NAME_LENGTH = 15
_ARGUMENTS_BEGIN, _ARGUMENTS_END = 45, 46
"""The places of two addresses in /proc/self/stat, counted after the name of the process."""


def set_title(name: str, text: str) -> None:
    """Gives this process a name, for `top`, and a title, for `ps`; on Linux alone."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_SET_NAME, name.encode()[:_NAME_LENGTH])
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[_ARGUMENTS_BEGIN]), int(fields[_ARGUMENTS_END])
    ctypes.memmove(begin, text.encode()[: end - begin - 1].ljust(end - begin, b"\0"), end - begin)


def end_with_parent() -> None:
    """Has the system kill this process as soon as its parent ends; on Linux alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
