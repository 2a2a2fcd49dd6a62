"""The demo is a part of the default sweep, and its end says truly how much of that is missing."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cvit.engine.demo import COMMANDS
from cvit.engine.missing import missing_line
from cvit.engine.planning.progress import Progress
from tests.support.plans import make_plan
from tests.support.scripts import ROOT, sweep
from tests.support.tree import copy_of_tree

LOW_DATA = "sweeps/low_data.py"


def commands() -> list[list[str]]:
    """The words of the demo's commands, without the interpreter."""
    return [shlex.split(command) for command in COMMANDS]


def test_the_demo_trains_a_part_of_the_default_sweep(tmp_path: Path) -> None:
    (options,) = [words[1:] for words in commands() if words[0] == LOW_DATA]
    part, whole = make_plan(tmp_path, *options), make_plan(tmp_path)
    assert part.study.key == whole.study.key
    assert {trial.key for trial in part.trials} < {trial.key for trial in whole.trials}
    assert len({trial.cell["seed"] for trial in part.trials}) == 3, "from 3 seeds on, a claim can be judged"


def test_the_end_of_the_demo_counts_what_the_storage_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = f"`{os.path.relpath(sys.executable)} {os.path.relpath(ROOT / LOW_DATA)}`"
    assert missing_line("low-data") == (
        f"0 of the 90 trials of low_data are done; {command} trains the 90 that are missing."
    )
    one = ("--seeds", "1", "--data-fraction", "0.02", "--init-scheme", "conv_structured", "--budget-unit", "steps")
    sweep(tmp_path, *one, "--tracking-uri", "none")
    # At equal FLOPs, a trial of attention alone is the same training.
    assert missing_line("low-data").startswith("2 of the 90 trials of low_data are done; ")
    assert missing_line("low-data").endswith(" trains the 88 that are missing.")
    monkeypatch.setattr(Progress, "num_done", 90)
    assert missing_line("low-data") == "All 90 trials of low_data are done."


@pytest.mark.demo
def test_make_demo_ends_with_what_is_missing_and_the_path_of_the_report(tmp_path: Path) -> None:
    tree = copy_of_tree(tmp_path)
    shutil.copy(ROOT / "Makefile", tree)
    (tree / ".venv").symlink_to(sys.prefix)
    command = ["make", "--old-file=.venv/.installed", "demo"]
    # As from a shell: a make that another one starts names its folder in lines of its own.
    environment = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL"}}
    environment["PYTHONPATH"] = str(tree)
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    missing, _, report = done.stdout.splitlines()[-3:]
    # 9 trials at equal steps; those of attention alone are the same at equal FLOPs.
    assert missing.startswith("15 of the 90 trials of low_data are done; `.venv/bin/python sweeps/low_data.py` trains")
    assert missing in (ROOT / "README.md").read_text(), "the README shows this screen"
    assert report == f"Report: {tree}/results/report.html" and Path(report.split()[1]).is_file()
    assert "0 of " not in done.stdout.split("analysis/make_tables.py")[-1], "theorem 2 is judged"
