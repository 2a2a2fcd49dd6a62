"""The Python interface: runs sweeps in a script, a notebook or a thread, and reads what they have measured."""

import contextlib
import dataclasses
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvit.data.images import DataError
from cvit.engine import environment, exit_codes
from cvit.engine.declaration import Sweep
from cvit.engine.invocation import Invocation
from cvit.engine.loading import load_sweeps
from cvit.engine.scripts import sweep_scripts
from cvit.engine.signals import stopping_on_sigterm
from cvit.errors import one_line
from cvit.parameters import ConfigError, as_text
from cvit.redaction import redacted
from cvit.storage import Storage, StorageError
from cvit.vocabulary import JOURNAL_FOLDER, TRACKING_SCHEMES

if TYPE_CHECKING:
    from cvit.analysis.store.frames import Frames
    from cvit.engine.planning.request import Request
    from cvit.engine.run_all import Ended

_OPTION = re.compile(r"--([a-z][a-z0-9-]*)")
_NOT_FROM_PYTHON = {"help", "help_all", "version", "part", "json"}
"""Options of the command line that print something else than a sweep's progress, or choose among a script's sweeps."""
_STARTED = Invocation(("cvit.run",), ("cvit",), is_one_script=False)
_RUNNING = threading.Lock()


def run(
    sweeps: Sweep | str | Iterable[Sweep | str],
    *,
    preset: str | None = None,
    seeds: int | None = None,
    storage: str | os.PathLike[str] | None = None,
    tracking_uri: str | None = None,
    address: str | None = None,
    quiet: bool = False,
    **options: Any,
) -> "Frames":
    """Trains the trials of sweeps that the storage does not have yet, and returns all of them as tidy frames.

    It prints the plan, the progress and the answer, as the command line does; in a notebook the progress is a table
    that is replaced while the sweep runs. Trials that fail do not end it: `frames.failed` has them, with the reason.

    Args:
        sweeps: a `Sweep`, the name of one of the questions of this package, such as "low_data", or several of them,
            which run one after another.
        preset: the scale of the sweep; its first preset by default.
        seeds: the number of seeds, counted from 0.
        storage: folder or URL that holds the state of sweeps; `storage` in the working folder by default.
        tracking_uri: MLflow store or server, or "none"; MLFLOW_TRACKING_URI by default, else sqlite:///mlflow.db.
        address: the address of a Ray cluster; "local" trains on this machine without Ray, and with `workers=1` in this
            process; by default, Ray starts on this machine.
        quiet: print nothing.
        options: every other option of the command line, with underscores: parameters and axes of the grid such as
            `learning_rate=1e-3` and `data_fraction=(0.02, 0.05)`; switches such as `dry_run=True`. None is not given.

    Returns:
        The frames of exactly the trials that were asked for. After a dry run, those of them that the storage has.

    Raises:
        ConfigError: an unknown option or an invalid value, in one line; nothing was created or started.
        DataError: the data set cannot be read.
        StorageError: the storage cannot be read or written, or another driver runs the sweep.
        LeaseLost: another driver has taken the sweep over, because this one was suspended for long.
        TrainingError: Ray fails again and again, or no worker is left.
        KeyboardInterrupt: Ctrl-C, or "interrupt" in a notebook, or SIGTERM. Every result is kept, like everything
            before an error, and the same call goes on from there.
    """
    started_at = time.monotonic()
    named = {"preset": preset, "seeds": seeds, "storage": storage, "tracking_uri": tracking_uri, "address": address}
    given = {name: _plain(value) for name, value in (named | options).items() if value is not None}
    with _errors_in_one_line(), _alone(), environment.prepared(), stopping_on_sigterm():
        asked = _requests(_as_list(sweeps), given)
        from cvit.engine.run_all import run_sweeps
        from cvit.engine.terminal.cli import unknown_variables
        from cvit.engine.terminal.console import console_of_program

        console = console_of_program(quiet)
        for name in unknown_variables():
            console.print(f"{name} is not an option of any sweep, and is ignored")
        ended = run_sweeps(asked, console, started_at)
        _raise_error_of(ended)
        return _frames_of(ended, Storage.open(asked[0][1].storage))


def load(source: str | os.PathLike[str] = "storage") -> "Frames":
    """Reads everything that a storage or a tracking store has, as tidy frames.

    Args:
        source: a storage (a folder, or a URL such as s3://bucket/folder), or the URI of an MLflow store or server, such
            as sqlite:///mlflow.db or http://host:5000, or the path of MLflow's own file.

    Raises:
        StorageError: it does not exist, cannot be read, or holds no study.
    """
    text = os.fspath(source)
    with _errors_in_one_line(), environment.kept():
        from cvit.analysis.store.frames import all_curves
        from cvit.analysis.store.journal import load_journal
        from cvit.analysis.store.mlflow import load_mlflow

        if (uri := _tracking_uri(text)) is not None:
            return load_mlflow(uri, all_curves)
        storage = Storage.open(text)
        storage.check_readable()
        return load_journal(storage, curves_of=all_curves)


def _as_list(sweeps: Sweep | str | Iterable[Sweep | str]) -> list[Sweep]:
    """The sweeps, those with a name read from their scripts."""
    each: list[Any] = [sweeps] if isinstance(sweeps, str) or not isinstance(sweeps, Iterable) else list(sweeps)
    scripts = {name.replace("-", "_"): path for name, path in sweep_scripts().items()}
    found: list[Sweep] = []
    for sweep in each:
        if isinstance(sweep, Sweep):
            found.append(sweep)
        elif isinstance(sweep, str) and (name := sweep.replace("-", "_")) in scripts:
            found += load_sweeps(scripts[name])
        else:
            raise ConfigError(f"sweep {sweep!r} is not valid: a cvit.Sweep, or one of {', '.join(scripts)}")
    if not found:
        raise ConfigError("no sweep is given")
    return found


def _requests(sweeps: Sequence[Sweep], given: Mapping[str, Any]) -> list[tuple[Sweep, "Request"]]:
    """The requests that the options state. They are parsed as on the command line, so both accept the same."""
    from cvit.engine.terminal.cli import parse

    command = f"cvit.run({_names(sweeps)}{''.join(f', {name}={value!r}' for name, value in given.items())})"
    asked = []
    for sweep in sweeps:
        try:
            if wrong := sorted(given.keys() & _NOT_FROM_PYTHON):
                raise ConfigError(f"{wrong[0]} is an option of the command line alone")
            request = parse(sweep, _arguments(given), sweeps if len(sweeps) > 1 else (), _STARTED)
        except ConfigError as error:
            raise ConfigError(_OPTION.sub(lambda match: match[1].replace("-", "_"), str(error))) from error
        assert request is not None  # only help and version give none
        asked.append((sweep, dataclasses.replace(request, command=command)))
    return asked


def _names(sweeps: Sequence[Sweep]) -> str:
    names = ", ".join(sweep.name for sweep in sweeps)
    return names if len(sweeps) == 1 else f"[{names}]"


def _arguments(given: Mapping[str, Any]) -> list[str]:
    """The options as arguments of a command line."""
    arguments: list[str] = []
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            arguments.append(option)
        elif isinstance(value, Iterable) and not isinstance(value, str):
            arguments += [option, *map(as_text, value)]
        elif value is not False:
            arguments.append(f"{option}={as_text(value)}")
    return arguments


def _plain(value: Any) -> Any:
    """A value as Python writes it: the path of a path, the numbers of an array."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _raise_error_of(ended: Sequence["Ended"]) -> None:
    """Raises the error that ended a sweep early; failed trials are none."""
    from cvit.engine.execution.faults import TrainingError

    for each in ended:
        if each.ending.storage_error is not None:
            raise StorageError(each.ending.storage_error)
        if each.ending.training_error is not None:
            raise TrainingError(each.ending.training_error)
        if each.ending.exit_code == exit_codes.INTERRUPTED:
            raise KeyboardInterrupt


def _frames_of(ended: Sequence["Ended"], storage: Storage) -> "Frames":
    from cvit.analysis.store.frames import LoadError, Raw, all_curves
    from cvit.analysis.store.journal import load_journal

    plans = [each.progress.plan for each in ended]
    try:
        frames = load_journal(storage, [plan.study.sweep for plan in plans], all_curves)
    except LoadError:  # before its first run, as in a dry one
        if any(storage.names(f"{JOURNAL_FOLDER}/{plan.study.sweep}") for plan in plans):
            raise
        return Raw(all_curves).tidy()
    return frames.only({(plan.study.key, trial.key) for plan in plans for trial in plan.trials})


def _tracking_uri(source: str) -> str | None:
    """The URI of a tracking store; None for a storage."""
    scheme, colon, _ = source.partition(":")
    if (colon or source == "databricks") and scheme.partition("+")[0].lower() in TRACKING_SCHEMES:
        return source
    path = Path(source)
    if path.is_file():
        return f"sqlite:///{path}"
    return source if scheme == "file" or any(path.glob("*/meta.yaml")) else None


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Refuses a second run beside one in another thread: they would share Ray, torch's threads and the environment."""
    if not _RUNNING.acquire(blocking=False):
        raise ConfigError("another cvit.run is under way in this process; it takes several sweeps as a list")
    try:
        yield
    finally:
        _RUNNING.release()


@contextlib.contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Raises the errors of bad input without passwords and keys, and without the errors behind them: a notebook saves
    what it shows."""
    try:
        yield
    except (ConfigError, DataError, StorageError) as error:
        raise type(error)(redacted(one_line(error))) from None
