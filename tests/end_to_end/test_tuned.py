"""A search as on a borrowed machine, without Ray and MLflow, and its winners in another sweep."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cvit.analysis.statistics.search_space import Interval, space_of
from cvit.settings import read_settings
from cvit.vocabulary import FINALIST_SEED, TAG_SEARCH_SPACE
from sweeps.tuned import RATES, SPACE
from tests.support.scripts import ROOT, journal, sweep

TINY = (
    *("--embed-dim", "16", "--depth", "1", "--head-dim", "4", "--batch-size", "16", "--epochs", "0"),
    *("--min-steps", "8", "--evaluations", "2", "--max-test-images", "50"),
)
BLOCKED = """
import importlib.abc, runpy, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "mlflow"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script as on a machine where neither Ray nor MLflow is installed."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a search has run to its end."""
    folder = tmp_path_factory.mktemp("tuned")
    options = ("--preset", "smoke", *TINY, "--address", "local", "--tracking-uri", "none", "--max-pack", "64")
    command = [sys.executable, "-c", BLOCKED, str(ROOT / "sweeps/tuned.py"), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "other sweeps take them by --settings-from results/tuned.json" in done.stdout
    return folder


def test_a_search_needs_neither_ray_nor_mlflow_and_writes_its_winners(folder: Path) -> None:
    (search,) = read_settings(folder / "results/tuned.json").searches
    assert (search.dataset, search.data_fraction, search.model["embed_dim"]) == ("digits", 0.02, 16)
    assert "--preset smoke" in search.command and search.code_version
    assert list(search.schemes) == ["random", "two_phase"]
    assert [(winner.trials, winner.seeds) for winner in search.schemes.values()] == [(4, 2)] * 2
    assert set(search.settings["two_phase"]) == set(SPACE)
    assert "transferred_learning_rate_factor" not in search.settings["random"]


def test_the_winners_are_those_that_were_trained_on_fresh_seeds(folder: Path) -> None:
    """The search chooses from its progress, the analysis from the journal: they choose the same."""
    (search,) = read_settings(folder / "results/tuned.json").searches
    trials = [record["params"] for record in journal(folder, "tuned") if record["type"] == "trial"]
    fresh = {params["init_scheme"]: params for params in trials if 0 < params["seed"] < FINALIST_SEED}
    for scheme, settings in search.settings.items():
        assert {name: fresh[scheme][name] for name in settings} == settings


def test_the_journal_says_what_was_searched(folder: Path) -> None:
    records = journal(folder, "tuned")
    spaces = [record["tags"].get(TAG_SEARCH_SPACE) for record in records if record["type"] == "study"]
    assert spaces and all(space_of(space).keys() == SPACE.keys() for space in spaces)
    rates = space_of(spaces[0])["learning_rate"]
    assert rates == Interval(RATES.low, RATES.high, RATES.log)
    assert all(TAG_SEARCH_SPACE not in record["tags"] for record in records if record["type"] == "trial")


def test_make_tables_writes_the_same_file(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "analysis/make_tables.py"), "--storage", "storage", "--out", str(tmp_path)]
    subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=True)
    assert (tmp_path / "tuned.json").read_bytes() == (folder / "results/tuned.json").read_bytes()


def test_run_again_it_trains_nothing_and_says_where_it_cannot_write(folder: Path) -> None:
    written = (folder / "results/tuned.json").read_bytes()
    stages = {path: path.stat().st_mtime_ns for path in (folder / "storage/stages").rglob("*.*")}
    (folder / "results").rename(folder / "kept")
    (folder / "results").write_text("a file, where a folder should be")
    options = ("--preset", "smoke", *TINY, "--tracking-uri", "none", "--max-pack", "64")
    output = sweep(folder, *options, script="sweeps/tuned.py")
    assert "results/tuned.json cannot be written: File exists; analysis/make_tables.py writes it too" in output
    (folder / "results").unlink()
    sweep(folder, *options, script="sweeps/tuned.py")
    again = (folder / "results/tuned.json").read_text()
    now, before = (read_settings(folder / name / "tuned.json").searches[0].command for name in ("results", "kept"))
    assert again.replace(now, before) == written.decode(), "nothing but the command differs"
    assert {path: path.stat().st_mtime_ns for path in (folder / "storage/stages").rglob("*.*")} == stages


def test_another_sweep_takes_the_winners(folder: Path) -> None:
    (search,) = read_settings(folder / "results/tuned.json").searches
    options = (*TINY, "--data-fraction", "0.02", "--seeds", "1", "--init-scheme", "random", "two_phase")
    options += ("--tracking-uri", "none", "--settings-from", "results/tuned.json")
    output = sweep(folder, *options)
    assert "settings  random two_phase from results/tuned.json: searched on digits (2 % of the images)" in output
    trials = [record["params"] for record in journal(folder) if record["type"] == "trial"]
    assert {params["init_scheme"] for params in trials} == {"random", "two_phase"}
    for params in trials:
        settings = search.settings[params["init_scheme"]]
        assert {name: params[name] for name in settings} == settings
