"""An installed wheel is one package with everything that its command needs, away from the checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from cvit.engine.scripts import sweep_scripts
from tests.support.scripts import ROOT, TINY, sweep

LOCAL = ("--address", "local", "--tracking-uri", "none")
SMALL = ("--preset", "smoke", "--init-scheme", "random", "--data-fraction", "0.05", *TINY, "--min-steps", "8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(folder)]
    command = [sys.executable, "-m", "pip", "install", *options, str(wheel)]
    subprocess.run(command, capture_output=True, text=True, check=True)
    return folder


def run(installed: Path, folder: Path, arguments: Sequence[str]) -> str:
    """What a program of the installation prints; nothing of the checkout is on its path: without `site`, the editable
    installation of the tests is not."""
    libraries = sysconfig.get_paths()["purelib"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CVIT_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(installed), libraries])
    command = [sys.executable, "-S", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_has_one_package_with_the_sweeps_in_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"cvit"}
    for path in [*sorted((ROOT / "sweeps").glob("*.py")), *sorted((ROOT / "sweeps/settings").glob("*.json"))]:
        assert f"cvit/{path.relative_to(ROOT)}" in names
    assert {f"cvit/native/{path.name}" for path in (ROOT / "cvit/native").iterdir() if path.is_file()} <= set(names)
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    assert "cvit = cvit.command:main" in zipfile.ZipFile(wheel).read(entry_points).decode()


def test_an_installation_runs_away_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    sweep(tmp_path, *SMALL, *LOCAL)
    files = set(tmp_path.rglob("*"))
    where = run(installed, tmp_path, ["-c", "import cvit.engine.scripts as s, sys; print(s.SWEEPS_FOLDER, *sys.path)"])
    assert where.split()[0] == str(installed / "cvit/sweeps")
    assert not [path for path in where.split() if Path(path) == ROOT]
    help_text = run(installed, tmp_path, [str(installed / "bin/cvit")])
    assert "Usage: cvit COMMAND" in help_text and all(name in help_text for name in sweep_scripts())

    dry = ("low-data", *SMALL, *LOCAL, "--seeds", "2", "--dry-run", "--json")
    (plan,) = json.loads(run(installed, tmp_path, ["-m", "cvit", *dry]))["sweeps"]
    assert plan["command"] == " ".join(["python -m cvit", *dry])
    assert (plan["num_trials"], plan["num_trials_done"], plan["num_stages_to_train"]) == (2, 1, 1)
    assert set(tmp_path.rglob("*")) == files

    run(installed, tmp_path, ["-m", "cvit", "tables", "--storage", "storage"])
    assert (tmp_path / "results/report.html").stat().st_size > 1000
    assert "low_data" in (tmp_path / "results/claims.csv").read_text()
