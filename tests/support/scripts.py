"""Runs sweep scripts as a user does, in a working folder of their own, and reads what they leave."""

import contextlib
import importlib
import io
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvit import vocabulary as v
from cvit.engine.declaration import Sweep
from cvit.engine.environment import prepare
from cvit.engine.main import main
from cvit.storage import Storage, decode_records

ROOT = Path(__file__).parents[2]
WIDTH = {"COLUMNS": "200"}

TINY = (
    *("--embed-dim", "16", "--depth", "1", "--num-heads", "9", "--head-dim", "4", "--mlp-ratio", "2"),
    *("--batch-size", "16", "--epochs", "0", "--evaluations", "4", "--budget-unit", "steps"),
)
"""A model and a training so small that only the orchestration takes time."""


@dataclass(frozen=True)
class Ended:
    """A script that has ended, and what it printed."""

    exit_code: int
    output: str
    errors: str


def sweeps_of(script: str) -> list[Sweep]:
    """Returns the sweeps that a script such as `sweeps/low_data.py` declares, in the order of its lines."""
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    return [value for value in vars(module).values() if isinstance(value, Sweep)]


def sweep(folder: Path, *options: str, script: str = "sweeps/low_data.py", exit_code: int = 0) -> str:
    """Runs a sweep to its end and returns what it printed; it trains in this process unless it is told an address."""
    ended = call(folder, *options, script=script)
    assert ended.exit_code == exit_code, ended.output + ended.errors
    return ended.output


def call(folder: Path, *options: str, script: str = "sweeps/low_data.py") -> Ended:
    """Runs a script's command line in `folder` but in this process, which has imported torch and MLflow already.

    Unless the options have an address, it trains in this process too. Whatever the script changes about the process is
    put back.
    """
    places = {"--tracking-uri": f"sqlite:///{folder / 'mlflow.db'}"}
    if "--address" not in options:
        places |= {"--address": "local"} | ({} if "--workers" in options else {"--workers": "1"})
    # MLflow keeps a store that it has opened, by its address; a relative one would stay in the first test's folder.
    added = [part for option, value in places.items() if option not in options for part in (option, value)]
    output, errors, exit_code = io.StringIO(), io.StringIO(), 0
    with as_if_new(), contextlib.chdir(folder):
        sys.argv = [str(ROOT / script), *options, *added]
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                main(*sweeps_of(script))
            except SystemExit as end:
                exit_code = end.code
    assert isinstance(exit_code, int)
    return Ended(exit_code, output.getvalue(), errors.getvalue())


@contextlib.contextmanager
def as_if_new() -> Iterator[None]:
    """Puts arguments, environment, signal handlers, levels of logging and torch's threads back as they were."""
    import torch

    prepare()  # these variables stay, since modules that are imported meanwhile have read them
    environment, arguments, threads = dict(os.environ), sys.argv, torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    level = logging.root.level
    os.environ.update(WIDTH)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = arguments
        for number, handler in handlers.items():
            signal.signal(number, handler)
        logging.root.setLevel(level)
        torch.set_num_threads(threads)


def start(folder: Path, *options: str, script: str = "sweeps/low_data.py") -> subprocess.Popen[str]:
    """Starts a sweep in `folder`, as leader of a process group of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *options],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | WIDTH,
    )


def sweep_with_ray(folder: Path, *options: str, script: str = "sweeps/low_data.py", exit_code: int = 0) -> str:
    """Runs a sweep to its end in a process of its own, exactly as a user does, and returns what it printed."""
    process = start(folder, *options, script=script)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == exit_code, output + errors
    return output


def journal(folder: Path, name: str = "low_data") -> list[dict[str, Any]]:
    """Reads all records of the journal in `folder`/storage."""
    storage = Storage.open(str(folder / "storage"))
    below = f"{v.JOURNAL_FOLDER}/{name}"
    return [r for segment in storage.names(below) for r in decode_records(storage.read(f"{below}/{segment}"))]


def mlflow_runs(folder: Path, role: str, name: str = "low_data") -> list[Any]:
    """Reads the study or trial runs of an experiment in `folder`/mlflow.db, by MLflow's own client."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    return [run for run in runs if run.data.tags[v.TAG_ROLE] == role]


def readme_commands() -> Iterator[list[str]]:
    """Yields the arguments of every command line in README, docs and sweep scripts that runs a sweep script."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "sweeps").glob("*.py"))):
        for line in page.read_text().splitlines():
            found = re.match(r"\s*(?:\.venv/bin/)?python (sweeps/\w+\.py.*?)(?:\s+#.*)?$", line)
            if found:
                yield found.group(1).split()
