"""Experiments on "Can Vision Transformers Perform Convolution?", from Python: `cvit.run`, `cvit.load`, and what a sweep
is declared with. docs/PYTHON.md describes them.

Importing this package imports nothing else; a name imports what it needs at its first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cvit.analysis.store.frames import Frames
    from cvit.api import load, run
    from cvit.data.images import DataError
    from cvit.engine.declaration import Choice, Preset, Range, Search, Sweep
    from cvit.engine.execution.faults import TrainingError
    from cvit.engine.recording.lease import LeaseLost
    from cvit.parameters import ConfigError
    from cvit.storage import StorageError

__all__ = [
    "Choice",
    "ConfigError",
    "DataError",
    "Frames",
    "LeaseLost",
    "Preset",
    "Range",
    "Search",
    "StorageError",
    "Sweep",
    "TrainingError",
    "load",
    "run",
]

_MODULES = {
    "Choice": "engine.declaration",
    "ConfigError": "parameters",
    "DataError": "data.images",
    "Frames": "analysis.store.frames",
    "LeaseLost": "engine.recording.lease",
    "Preset": "engine.declaration",
    "Range": "engine.declaration",
    "Search": "engine.declaration",
    "StorageError": "storage",
    "Sweep": "engine.declaration",
    "TrainingError": "engine.execution.faults",
    "load": "api",
    "run": "api",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("cvit")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
