"""The warm process: it imports torch and the training once, and every worker on this machine is forked from it.

A fork of the driver itself would not do: its other threads (display, tracker, lease) are not in a copy of it, but the
locks that they hold are. The warm process starts no thread and never looks for a GPU, so that its copies may. It starts
while the driver plans, asks nothing of the driver's main module, and ends with the driver, however that ends.
"""

import contextlib
import errno
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Self

from cvit.engine.execution.faults import TrainingError
from cvit.engine.own_process import ROOM, end_with_parent, set_title
from cvit.engine.signals import stops_wait
from cvit.errors import one_line, printable

PRELOADED = ("cvit.training.loop", "cvit.training.fit", "cvit.engine.execution.forked_worker")
"""Modules that workers need. What is not among them is imported by each worker, if it needs it."""
MOST_STARTS = 3
"""After so many warm processes that ended by themselves, one after another, there is no further one."""
LOOK_S = 1.0
"""The time between two looks whether the driver lives. Its connection ends with it, unless a copy of it holds that."""
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from cvit.engine.execution.warm import serve; serve()"
)
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""Otherwise numpy starts a thread for each core when it is imported, and each worker does so again."""
_REQUEST, _ANSWER = struct.Struct("<cq"), struct.Struct("<q")
_FORK, _WAIT = b"f", b"w"
_MOST_FILES = 8
_MOST_PRINTED = 4096


@dataclass(frozen=True)
class Forked:
    """A process that was forked from the warm process, and the connection to it."""

    pid: int
    connection: Connection

    def kill(self) -> None:
        """Ends the process at once. It keeps its number until the warm process is told to forget it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class WarmProcess:
    """The driver's handle of its warm process. What that process and those forked from it print would disturb the
    display; it goes to a file without a name, which is read when one of them dies."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process may print
        self._num_read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._printed.close()

    def start(self) -> None:
        """Starts the process, unless it runs; it imports what workers need while this one goes on."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._control, theirs = socket.socketpair()
        with theirs, stops_wait():
            # In a session of its own, no signal of a terminal reaches it: Ctrl-C is the driver's affair.
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path), str(theirs.fileno()), str(os.getpid()), ROOM],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=self._printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_ONE_THREAD | os.environ,
            )

    def fork(self, function: Callable[..., None], *arguments: Any, files: Sequence[int] = ()) -> Forked:
        """Forks a process that calls `function(connection, files, *arguments)` and ends.

        Args:
            function: a function of a module.
            files: descriptors of files, of which it gets copies.

        Raises:
            TrainingError: there is no warm process, again and again.
        """
        ours, theirs = Pipe()
        with theirs:
            pid = self._ask(_FORK, 0, [theirs.fileno(), *files])
        child = Forked(pid, ours)
        with contextlib.suppress(OSError):  # if it has died already, the end of its connection says so
            ours.send((function, arguments))
        return child

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function of a module in a forked process, and returns its value.

        Raises:
            TrainingError: it raised an error, or its process died.
        """
        child = self.fork(_answer, function, arguments)
        try:
            value, error = child.connection.recv()
        except EOFError:
            value, error = None, "its process died"
        finally:
            child.kill()
            child.connection.close()
            self.end_of(child)
        if error is not None:
            raise TrainingError(error)
        return value

    def end_of(self, child: Forked) -> int | None:
        """Waits for a forked process that has ended, or is about to; returns its exit code, or minus the signal that
        ended it. None if the warm process has died, and all that were forked from it with it."""
        try:
            return os.waitstatus_to_exitcode(self._ask_once(_WAIT, child.pid, ()))
        except (OSError, EOFError):
            return None

    def last_line(self) -> str:
        """The last line that it and its forked processes have printed since the last call; empty if there is none."""
        size = os.fstat(self._printed.fileno()).st_size
        self._num_read, start = size, max(self._num_read, size - _MOST_PRINTED)
        lines = os.pread(self._printed.fileno(), size - start, start).decode(errors="replace").split("\n")
        return next((printable(line.strip()) for line in reversed(lines) if line.strip()), "")

    def close(self) -> None:
        """Ends the warm process, and all that were forked from it."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._control = self._process = None

    def _ask(self, request: bytes, number: int, files: Sequence[int]) -> int:
        for attempt in range(1, MOST_STARTS + 1):
            self.start()
            try:
                return self._ask_once(request, number, files)
            except (OSError, EOFError) as error:
                self.close()
                if attempt == MOST_STARTS:
                    reason = self.last_line() or one_line(error)
                    raise TrainingError(f"the process that workers are forked from does not start: {reason}") from error
        raise AssertionError

    def _ask_once(self, request: bytes, number: int, files: Sequence[int]) -> int:
        if self._control is None:
            raise EOFError("it is not there")
        socket.send_fds(self._control, [_REQUEST.pack(request, number)], files)
        answer = self._control.recv(_ANSWER.size)
        if not answer:
            raise EOFError("it has ended")
        (value,) = _ANSWER.unpack(answer)
        if value < 0:
            raise OSError(-value, os.strerror(-value))
        return value


# --- in the warm process ------------------------------------------------------------------------------------------


def serve() -> None:
    """The main function of the warm process: it forks and waits on request, until the driver is gone."""
    descriptor, driver = int(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_title("cvit warm", "cvit: workers are forked from this process")
    for name in PRELOADED:
        # A module that cannot be imported is the worker's affair: its error then has a stage.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else the first collection in each worker copies the memory that all share
    children: set[int] = set()
    with socket.socket(fileno=descriptor) as control:
        while _has_request(control, driver):
            request, files, _, _ = socket.recv_fds(control, _REQUEST.size, _MOST_FILES)
            if not request:
                break
            kind, number = _REQUEST.unpack(request)
            answer = _fork(control, files, children) if kind == _FORK else _wait(number, children)
            for file in files:
                os.close(file)
            control.sendall(_ANSWER.pack(answer))
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _has_request(control: socket.socket, driver: int) -> bool:
    """Waits for a request, or the end of the connection; returns False if the driver is gone."""
    while not select.select([control], [], [], LOOK_S)[0]:
        if os.getppid() != driver:
            return False
    return True


def _wait(pid: int, children: set[int]) -> int:
    """Waits for the end of a child; returns its status, or minus an error's number for a child of another process."""
    if pid not in children:
        return -errno.ECHILD
    children.remove(pid)
    return os.waitpid(pid, 0)[1]


def _fork(control: socket.socket, files: Sequence[int], children: set[int]) -> int:
    """Forks a child, which never returns from here; returns its process id, or minus the number of an error."""
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        return -(error.errno or 1)
    if pid:
        children.add(pid)
        return pid
    exit_code = 1
    try:
        control.close()
        end_with_parent()
        if os.getppid() == parent:
            _run(Connection(files[0]), files[1:])
        exit_code = 0
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the driver has ended, or has no further use for it
        exit_code = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(exit_code)


def _answer(
    connection: Connection, files: Sequence[int], function: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    """Sends the value of a function, or the line of its error."""
    try:
        connection.send((function(*arguments), None))
    # Whatever the function raises, the driver names it.
    except Exception as error:  # noqa: BLE001
        connection.send((None, f"{type(error).__name__}: {one_line(error)}"))


def _run(connection: Connection, files: Sequence[int]) -> None:
    function, arguments = connection.recv()
    function(connection, files, *arguments)
