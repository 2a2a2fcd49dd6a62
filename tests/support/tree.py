"""A copy of the source tree, for tests that extend it as CONTRIBUTING says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.scripts import ROOT


def copy_of_tree(folder: Path) -> Path:
    """A copy of the packages in `folder`/tree, with what is compiled of them: Python compiles the files that differ."""
    tree = folder / "tree"
    for package in ("cvit", "sweeps", "analysis"):
        shutil.copytree(ROOT / package, tree / package)
    return tree


def insert(file: Path, after: str, text: str) -> None:
    """Puts lines after the one line of a file that starts like this."""
    lines = file.read_text().splitlines(keepends=True)
    (place,) = [number for number, line in enumerate(lines) if line.strip().startswith(after)]
    lines.insert(place + 1, text)
    file.write_text("".join(lines))


def run(tree: Path, folder: Path, *command: str) -> str:
    """What Python prints when it runs this with the packages of a tree, in a working folder of its own."""
    environment = dict(os.environ, PYTHONPATH=str(tree), COLUMNS="200")
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def value_of(tree: Path, folder: Path, code: str) -> Any:
    """What a piece of code prints as JSON, run with the packages of a tree."""
    return json.loads(run(tree, folder, "-c", code).splitlines()[-1])
