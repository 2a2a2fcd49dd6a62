"""The fault that kept a pack from ending: the machine's, the storage's, or the code's.

A machine fault (a lost node, a preemption, a killed worker, a connection) is nobody's: it is retried without limit, at
growing intervals. A code fault is an exception that the training raised: it would come again, so its tries are counted.
A storage that refuses to be written (full, read-only, forbidden) ends the sweep: nothing more could be kept.
"""

from dataclasses import dataclass
from typing import Literal

from cvit.errors import one_line
from sweeps.engine.recording.backoff import is_refused

CODE_RETRIES = 2
"""How often a stage is tried again after code faults; each time it goes on from its last checkpoint."""
_ERRORS_OF_CODE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True)
class Fault:
    """The reason why a pack ended early, and a line that says it."""

    kind: Literal["machine", "storage", "code"]
    line: str


def fault_of_exception(error: BaseException) -> Fault:
    """The fault behind an exception that training raised in this process."""
    return _fault_of_system(error) or Fault("code", f"{type(error).__name__}: {one_line(error)}")


def fault_of_trial(error: BaseException | None, text: str) -> Fault:
    """The fault behind the error that a Tune trial ended with.

    Args:
        error: the exception that Ray raised, where it could be kept.
        text: the error as Tune wrote it down.
    """
    from ray.exceptions import RayActorError, RayError, RayTaskError

    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["unknown error"]
    cause = error.cause if isinstance(error, RayTaskError) else error
    if fault := _fault_of_system(cause):
        return fault
    # An actor that fails while it starts wraps whatever it raised; Ray's own errors are about other machines.
    is_start = isinstance(cause, RayActorError) and cause.actor_init_failed and "ray.exceptions." not in lines[-1]
    if isinstance(cause, RayError) and not is_start:
        return Fault("machine", f"{type(cause).__name__}: {str(cause).strip().splitlines()[0]}")
    return Fault("code", lines[-1])


def _fault_of_system(error: BaseException | None) -> Fault | None:
    """The fault behind an error of the operating system; None where it is another one, or the code's own mistake."""
    if not isinstance(error, OSError) or isinstance(error, _ERRORS_OF_CODE):
        return None
    return Fault("storage" if is_refused(error) else "machine", f"{type(error).__name__}: {one_line(error)}")
