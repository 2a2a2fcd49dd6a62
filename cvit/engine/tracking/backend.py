"""A tracking backend is where the tracker copies the journal to: a file in this folder that holds `SCHEMES` and `open`.

`SCHEMES` are the schemes of the URIs that it takes (`sqlite` of `sqlite:///mlflow.db`), or a word that stands for a
whole URI (`none`). `open(uri)` gives the backend. The file must not import its library when it is imported itself: bad
input is answered before anything that takes seconds. It may also hold `check(uri, may_upgrade)`, which looks at the
store itself before a sweep trains and raises ConfigError if it can never be used, and `imports(uri)`, the modules that
take it long to import: the tracker's process imports them while the sweep starts.

A backend that also has the methods of `Archive` gets data sets and files, and one with those of `Together` what is new
of many runs at a time.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, runtime_checkable
from urllib.parse import urlsplit

from cvit.engine.tracking.run_facts import DataUse
from cvit.parameters import ConfigError
from cvit.records import StudyRecord
from cvit.results import Point

if TYPE_CHECKING:
    import torch

RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
"""The statuses of a run."""


class Refused(Exception):
    """The store answered that it does not take this for this run, as when somebody has deleted the run: trying again
    cannot help. Any other error is taken for an outage that passes, and the same call is made again."""


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """A run to be created: of a trial, or of a study, which is the parent of its trials.

    Attributes:
        key: the study's or trial's, unique within the sweep; `tags` hold it too (see cvit/vocabulary.py).
        name: for people.
        parent_id: the id of the study's run; None for the study itself.
    """

    key: str
    name: str
    parent_id: str | None
    start_time_ms: int | None
    tags: Mapping[str, str]


@dataclass(frozen=True)
class ExistingRun:
    """A run that the store has. The key of a run that the tracker did not make is its id."""

    id: str
    key: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    has_data: bool = True


@dataclass(frozen=True, kw_only=True)
class Change:
    """The news of one run.

    Attributes:
        run_id: None for a run that is still to be created, which `new` describes.
        status: None leaves it as it is.
    """

    run_id: str | None
    new: NewRun | None
    params: Mapping[str, object]
    tags: Mapping[str, str]
    points: Sequence[Point]
    data: DataUse | None
    status: str | None
    end_time_ms: int | None


class Backend(Protocol):
    """A store of runs. All methods but `how_to_look` are called by the tracker's thread alone, and each may be called
    again after an error: what it did before must not be there twice."""

    title: str
    """The name of this kind of store on the screen, such as MLflow."""

    def connect(self, sweep: str, study: StudyRecord) -> None:
        """Opens the store, and makes a place for the sweep in it."""
        ...

    def existing(self, own: Set[str]) -> Sequence[ExistingRun]:
        """The sweep's runs in the store, one for each key. Where a key has several, because a run was created whose
        answer was lost, all but the one in use are removed, if the key is in `own`: the others are other drivers'."""
        ...

    def create(self, run: NewRun) -> str:
        """Creates a RUNNING run and returns its id; the run of the same key where an earlier call, whose answer was
        lost, has created it."""
        ...

    def written_steps(self, run_id: str, metric: str) -> Set[int]:
        """The steps at which the store has a measurement of a run's metric."""
        ...

    def write(
        self, run_id: str, params: Mapping[str, object], tags: Mapping[str, str], points: Sequence[Point]
    ) -> None:
        """Adds to a run, whatever its status. Tags replace those of the same name."""
        ...

    def set_status(self, run_id: str, status: str, end_time_ms: int | None = None) -> None:
        """Ends a run, or opens it again (RUNNING)."""
        ...

    def how_to_look(self) -> list[str]:
        """The lines, with headings of 21 characters, that tell a person where to look at the runs."""
        ...


@runtime_checkable
class Archive(Protocol):
    """The methods of a backend that keeps more than parameters, tags and measurements. A backend without them gets
    those alone."""

    def store_files_below(self, storage: str) -> None:
        """Tells, before `connect`, the place of the sweep's storage: a store may keep its files there."""
        ...

    def use_data(self, run_id: str, data: DataUse) -> None:
        """Notes the images that a run uses."""
        ...

    def attach(self, run_id: str, files: Mapping[str, bytes]) -> None:
        """Adds files to a run, or replaces them; their names may have folders."""
        ...

    def log_model(self, run_id: str, model: "torch.nn.Module", example: "torch.Tensor") -> None:
        """Adds a trained model to a run.

        Args:
            example: an input of the model.
        """
        ...


@runtime_checkable
class Together(Protocol):
    """The methods of a backend that has a faster way than a call per run: by writing many runs at once, or by taking
    several calls at a time."""

    calls_at_once: int
    """The number of threads that may call the backend at a time, each for another run."""

    def write_together(self, changes: Sequence[Change]) -> Sequence[str | None]:
        """Writes what is new of runs, all of it or nothing, and returns their ids. None stands for a run of which
        nothing was written: it is then written by the calls that every backend has, as are all of them after an
        error."""
        ...


def backend_for(uri: str) -> Backend:
    """The backend for a tracking URI, which is looked at and not opened.

    Raises:
        ConfigError: there is none for it, or the backend could not use it.
    """
    return _module_for(uri).open(uri)


def check_store(uri: str, may_upgrade: bool) -> None:
    """Looks at a store before a sweep trains. One that cannot be reached now is let pass.

    Args:
        may_upgrade: a store of an older version may be changed so that this one can use it.

    Raises:
        ConfigError: the store can never be used.
    """
    check = getattr(_module_for(uri), "check", None)
    if check is not None:
        check(uri, may_upgrade)


def imports_for(uri: str) -> Sequence[str]:
    """The modules that the backend for a tracking URI takes long to import.

    Raises:
        ConfigError: there is none for it.
    """
    imports = getattr(_module_for(uri), "imports", None)
    return () if imports is None else imports(uri)


def _module_for(uri: str) -> ModuleType:
    backends = _backends()
    try:
        scheme = urlsplit(uri).scheme.partition("+")[0] or uri
    except ValueError as error:  # a bracket without its other half
        raise ConfigError(f"tracking URI {uri!r} is not valid: {error}") from error
    if scheme not in backends:
        raise ConfigError(f"tracking URI {uri!r} is not valid: it must begin with one of {', '.join(backends)}")
    return backends[scheme]


@cache
def _backends() -> Mapping[str, ModuleType]:
    """The backends in this folder, by scheme."""
    names = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    modules = [importlib.import_module(f"{__package__}.{name}") for name in names]
    return {scheme: module for module in modules if hasattr(module, "SCHEMES") for scheme in module.SCHEMES}
