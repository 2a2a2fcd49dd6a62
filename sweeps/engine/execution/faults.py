"""What went wrong where a pack did not end: the machine, the storage, or the code.

A machine fault (a lost node, a preemption, a killed worker, a connection) is nobody's: it is retried without limit, at
growing intervals. A code fault is an exception that the training raised: it would come again, so its tries are counted.
A storage that refuses to be written (full, read-only, forbidden) ends the sweep: nothing more could be kept.
"""

from dataclasses import dataclass
from typing import Literal

from ray.exceptions import RayActorError, RayError, RayTaskError

from cvit.errors import one_line
from sweeps.engine.recording.backoff import is_refused

CODE_RETRIES = 2
"""How often a stage is tried again after code faults; each time it goes on from its last checkpoint."""
_OF_CODE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True)
class Fault:
    """What ended a pack; `line` says it in one line."""

    kind: Literal["machine", "storage", "code"]
    line: str


def fault_of(error: BaseException | None, text: str) -> Fault:
    """The fault behind the error that a Tune trial ended with.

    Args:
        error: what Ray raised, where that could be kept.
        text: the error as Tune wrote it down.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["unknown error"]
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, OSError) and not isinstance(cause, _OF_CODE):
        return Fault("storage" if is_refused(cause) else "machine", f"{type(cause).__name__}: {one_line(cause)}")
    # An actor that fails while it starts wraps whatever it raised; Ray's own errors are about other machines.
    is_start = isinstance(cause, RayActorError) and cause.actor_init_failed and "ray.exceptions." not in lines[-1]
    if isinstance(cause, RayError) and not is_start:
        return Fault("machine", f"{type(cause).__name__}: {str(cause).strip().splitlines()[0]}")
    return Fault("code", lines[-1])
