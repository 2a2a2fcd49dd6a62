"""Runs sweep scripts as a user does, in a process and a working folder of their own, and reads what they leave."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cvit import vocabulary as v
from cvit.storage import Storage, decode_records

ROOT = Path(__file__).parents[2]

TINY = (
    *("--embed-dim", "16", "--depth", "1", "--num-heads", "9", "--head-dim", "4", "--mlp-ratio", "2"),
    *("--batch-size", "16", "--epochs", "0", "--evaluations", "4"),
)
"""A model and a training so small that only the orchestration takes time."""


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
        env=dict(os.environ, COLUMNS="200"),
    )


def sweep(folder: Path, *options: str, script: str = "sweeps/low_data.py", exit_code: int = 0) -> str:
    """Runs a sweep to its end and returns what it printed."""
    process = start(folder, *options, script=script)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == exit_code, output + errors
    return output


def journal(folder: Path, name: str = "low_data") -> list[dict[str, Any]]:
    """All records of the journal in `folder`/storage."""
    storage = Storage.open(str(folder / "storage"))
    below = f"{v.JOURNAL_FOLDER}/{name}"
    return [r for segment in storage.names(below) for r in decode_records(storage.read(f"{below}/{segment}"))]


def mlflow_runs(folder: Path, role: str, name: str = "low_data") -> list[Any]:
    """The study or trial runs of an experiment in `folder`/mlflow.db, by MLflow's own client."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    return [run for run in runs if run.data.tags[v.TAG_ROLE] == role]


def readme_commands() -> Iterator[list[str]]:
    """The arguments of every command line in README, docs and sweep scripts that runs a sweep script."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "sweeps").glob("*.py"))):
        for line in page.read_text().splitlines():
            found = re.match(r"\s*(?:\.venv/bin/)?python (sweeps/\w+\.py.*?)(?:\s+#.*)?$", line)
            if found:
                yield found.group(1).split()
