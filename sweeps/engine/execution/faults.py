"""Faults of packs: why a pack ended early, by a fault of the machine, the storage or the code.

A machine fault (a lost node, a preemption, a killed worker, a broken connection) passes: it is retried without limit,
at growing intervals. A code fault is an exception that the training raised: it is likely to recur, so its tries are
limited. A storage that refuses to be written (full, read-only, forbidden) ends the sweep: no result could be kept.
"""

from dataclasses import dataclass
from typing import Literal

from cvit.errors import Refused, one_line
from cvit.storage import StorageError
from sweeps.engine.recording.backoff import is_refused

CODE_RETRIES = 2
"""The number of retries of a stage after code faults; each continues from the stage's last checkpoint."""
_ERRORS_OF_CODE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True)
class Fault:
    """The kind of fault that ended a pack early, and one line that describes it."""

    kind: Literal["machine", "storage", "code"]
    line: str


def fault_of_exception(error: BaseException) -> Fault:
    """The fault behind an exception that training raised in this process."""
    return _fault_of_system(error) or Fault("code", f"{type(error).__name__}: {one_line(error)}")


def fault_of_trial(error: BaseException | None, text: str) -> Fault:
    """The fault behind the error that ended a Tune trial.

    Args:
        error: the exception that Ray raised; None if it could not be kept.
        text: the error as Tune wrote it to the trial's folder.
    """
    from ray.exceptions import RayActorError, RayError, RayTaskError

    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["unknown error"]
    cause = error.cause if isinstance(error, RayTaskError) else error
    if fault := _fault_of_system(cause):
        return fault
    # If an actor fails while it starts, Ray wraps its exception. Ray's other errors are about machines.
    is_start = isinstance(cause, RayActorError) and cause.actor_init_failed and "ray.exceptions." not in lines[-1]
    if isinstance(cause, RayError) and not is_start:
        return Fault("machine", f"{type(cause).__name__}: {str(cause).strip().splitlines()[0]}")
    return Fault("code", lines[-1])


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
