"""The end of a process, without a last search for garbage in everything that it has imported."""

import atexit
import gc
import sys


def leave_quickly() -> None:
    """Has the process skip its last collections of garbage, when everything else has been closed: with torch, pandas,
    MLflow and Ray imported, they take 1.4 s of the processor, and the memory goes back to the system anyway."""
    atexit.unregister(_freeze)
    atexit.register(_freeze)


def _freeze() -> None:
    if "triton" not in sys.modules:  # it prints pages about every object that is left
        gc.freeze()
