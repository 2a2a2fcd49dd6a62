"""Faults of packs: why a pack ended early, by a fault of the machine, the storage or the code.

A machine fault (a lost node, a preemption, a killed worker, a broken connection) passes: it is retried without limit,
at growing intervals. If a worker's process died by itself, its stages may be the cause, so the queue counts their
deaths. A code fault is an exception that the training raised: it is likely to recur, so its tries are limited. A
storage that refuses to be written (full, read-only, forbidden) ends the sweep: no result could be kept.
"""

import re
from dataclasses import dataclass
from typing import Literal

from cvit.engine.recording.backoff import is_refused
from cvit.errors import Refused, one_line
from cvit.storage import StorageError

CODE_RETRIES = 2
"""The number of retries of a stage after code faults; each continues from the stage's last checkpoint."""
_ERRORS_OF_CODE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
# Ray tells these facts in the text of its exceptions only.
_MEMORY = re.compile(r"\(IP: (?P<ip>[^,]+),.*?was (?P<used>[\d.]+)GB used / (?P<limit>[\d.]+)GB", re.DOTALL)
_PROCESS = re.compile(r"\tpid: (?P<pid>\d+)\n.*?\tip: (?P<ip>\S+)\n", re.DOTALL)
_EXIT = re.compile(r"Worker exits with an exit code (?P<code>\d+)")
_PLACE = "pid {pid} on node {ip}"
NODE_DIED = "its node has died"
"""These words are in the line of a fault whose node was lost."""
_PROCESS_DIED = "its worker process has died"


class TrainingError(Exception):
    """The training cannot go on; the message says why. What was reported is recorded, and the command resumes it."""


@dataclass(frozen=True)
class Fault:
    """The kind of fault that ended a pack early, and one line that describes it.

    Attributes:
        worker_died: True for a machine fault that the stages may have caused themselves: their worker's process died
            or hung, while its node lives.
        for_memory: True if Ray's memory monitor killed it.
    """

    kind: Literal["machine", "storage", "code"]
    line: str
    worker_died: bool = False
    for_memory: bool = False


def fault_of_exception(error: BaseException) -> Fault:
    """The fault behind an exception that training raised in this process."""
    return _fault_of_system(error) or Fault("code", f"{type(error).__name__}: {one_line(error)}")


def fault_of_trial(error: BaseException | None, text: str) -> Fault:
    """The fault behind the error that ended a Tune trial.

    Args:
        error: the exception that Ray raised; None if there was none.
        text: its text, whose last line is the reason.
    """
    from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["unknown error"]
    cause = error.cause if isinstance(error, RayTaskError) else error
    if fault := _fault_of_system(cause):
        return fault
    if isinstance(cause, OutOfMemoryError):
        return Fault("machine", _memory_line(str(cause)), worker_died=True, for_memory=True)
    # If an actor fails while it starts, Ray wraps its exception. Ray's other errors are about machines.
    is_start = isinstance(cause, RayActorError) and cause.actor_init_failed and "ray.exceptions." not in lines[-1]
    if isinstance(cause, RayError) and not is_start:
        first_line = str(cause).strip().splitlines()[0].rstrip(".")
        line = f"{type(cause).__name__}: {first_line}{_process(str(cause))}"
        return Fault("machine", line, worker_died=_PROCESS_DIED in str(cause))
    return Fault("code", lines[-1])


def _memory_line(text: str) -> str:
    """The line about a worker that Ray's memory monitor killed. Ray's GB are GiB, those of the whole node."""
    found = _MEMORY.search(text)
    amount = "{used} GiB of {limit} on node {ip}".format(**found.groupdict()) if found else "its node has no more"
    return f"killed for memory: {amount}; try --max-pack or fewer workers"


def _process(text: str) -> str:
    """The process of a worker that died, and its exit code, as far as Ray knows them."""
    process, end = _PROCESS.search(text), _EXIT.search(text)
    code = f", exit code {end['code']}" if end else ""
    node = f", {NODE_DIED}" if NODE_DIED in text else ""
    return f" ({_PLACE.format(**process.groupdict())}{code}{node})" if process else ""


def _fault_of_system(error: BaseException | None) -> Fault | None:
    """The fault behind an error of the operating system or of the storage; None for any other error, and for the code's
    own mistakes."""
    if isinstance(error, Refused):
        return Fault("storage", one_line(error))
    if isinstance(error, StorageError):  # a worker could not open it: the driver could
        return Fault("machine", one_line(error))
    if not isinstance(error, OSError) or isinstance(error, _ERRORS_OF_CODE):
        return None
    return Fault("storage" if is_refused(error) else "machine", f"{type(error).__name__}: {one_line(error)}")
