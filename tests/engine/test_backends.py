"""The tracking backends keep their contract, and another one is one file, as CONTRIBUTING says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cvit.engine.tracking.backend import backend_for
from cvit.parameters import ConfigError
from cvit.results import Point
from cvit.storage import Storage
from tests.support.backend_contract import BackendContract
from tests.support.mlflow_stores import empty_store
from tests.support.scripts import ROOT, TINY, journal, sweep


class TestMlflow(BackendContract):
    @classmethod
    def uri_in(cls, folder: Path) -> str:
        return f"sqlite:///{folder / 'mlflow.db'}"

    @pytest.fixture(scope="class")
    @classmethod
    def uri(cls, tmp_path_factory: pytest.TempPathFactory) -> str:
        return empty_store(tmp_path_factory.mktemp("store"))

    def measurements(self, uri: str, sweep: str, key: str) -> list[Point]:
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(sweep)
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id], f"tags.`cvit.trial_key` = '{key}'")
        histories = [client.get_metric_history(run.info.run_id, metric) for metric in run.data.metrics]
        return [(m.key, m.step, m.value, m.timestamp) for history in histories for m in history]


class TestNone(BackendContract):
    keeps_runs = False

    @classmethod
    def uri_in(cls, folder: Path) -> str:
        return "none"

    def measurements(self, uri: str, sweep: str, key: str) -> list[Point]:
        return []


def test_a_uri_that_no_backend_takes_is_refused_with_what_would_be_taken() -> None:
    with pytest.raises(ConfigError, match=r"'ftp://host' is not valid: it must begin with one of sqlite, .*, none$"):
        backend_for("ftp://host")


def test_a_sweep_without_tracking_leaves_its_storage_alone_and_says_so(tmp_path: Path) -> None:
    options = ("--data-fraction", "0.1", "--seeds", "1", "--init-scheme", "random")
    output = sweep(tmp_path, *TINY, *options, "--tracking-uri", "none")
    assert "1 of 1 trials done" in output
    assert [line for line in output.splitlines() if line.startswith("No tracking:  ")] == output.splitlines()[-1:]
    assert [path.name for path in tmp_path.iterdir()] == ["storage"]
    assert {record["type"] for record in journal(tmp_path)} == {"study", "trial", "points", "end", "session", "system"}


JSON_LINES = '''"""JSON lines: every change of a run is a line of a file."""

import json
from pathlib import Path

from cvit.engine.tracking.backend import RUNNING, ExistingRun, Refused

SCHEMES = ("jsonl",)


def open(uri):
    return JsonLines(Path(uri.removeprefix("jsonl://")))


class JsonLines:
    title = "JSON lines"

    def __init__(self, path):
        self._path, self._sweep = path, ""

    def connect(self, sweep, study):
        self._path.touch()
        self._sweep = sweep

    def existing(self, own):
        return [ExistingRun(key, key, r["status"], r["tags"], r["params"]) for key, r in self._runs().items()]

    def create(self, run):
        if run.key not in self._runs():
            self._append(run.key, status=RUNNING, tags=run.tags)
        return run.key

    def written_steps(self, run_id, metric):
        return {step for name, step, *_ in self._run(run_id)["points"] if name == metric}

    def write(self, run_id, params, tags, points):
        there = {(name, step) for name, step, *_ in self._run(run_id)["points"]}
        self._append(run_id, params=params, tags=tags, points=[p for p in points if p[:2] not in there])

    def set_status(self, run_id, status, end_time_ms=None):
        self._run(run_id)
        self._append(run_id, status=status)

    def how_to_look(self):
        return [f"Runs as JSON lines:  {self._path}"]

    def _run(self, run_id):
        runs = self._runs()
        if run_id not in runs:
            raise Refused(f"there is no run {run_id}")
        return runs[run_id]

    def _runs(self):
        runs = {}
        for line in self._path.read_text().splitlines():
            change = json.loads(line)
            if change["sweep"] == self._sweep:
                run = runs.setdefault(change["run"], {"status": "", "params": {}, "tags": {}, "points": []})
                run["status"] = change.get("status", run["status"])
                run["params"] |= change.get("params", {})
                run["tags"] |= change.get("tags", {})
                run["points"] += change.get("points", [])
        return runs

    def _append(self, run_id, **change):
        with self._path.open("a") as file:
            file.write(json.dumps({"sweep": self._sweep, "run": run_id, **change}) + "\\n")
'''
JSON_LINES_TEST = """import json
from pathlib import Path

from tests.support.backend_contract import BackendContract


class TestJsonLines(BackendContract):
    @classmethod
    def uri_in(cls, folder):
        return f"jsonl://{folder / 'runs.jsonl'}"

    def measurements(self, uri, sweep, key):
        changes = map(json.loads, Path(uri.removeprefix("jsonl://")).read_text().splitlines())
        of_run = [change for change in changes if (change["sweep"], change["run"]) == (sweep, key)]
        return [tuple(point) for change in of_run for point in change.get("points", [])]
"""


def test_a_backend_that_is_added_as_one_file_keeps_the_contract_and_gets_a_journal(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for folder in ("cvit", "sweeps", "tests/support", "tests/engine/fixtures"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "tests/__init__.py", "tests/conftest.py", "tests/engine/__init__.py"):
        shutil.copy(ROOT / file, tree / file)
    (tree / "cvit/engine/tracking/json_lines.py").write_text(JSON_LINES)
    (tree / "tests/engine/test_json_lines.py").write_text(JSON_LINES_TEST)

    def python(*arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(tree)}
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    told = python("pytest", "-q", "-p", "no:cacheprovider", "tests/engine/test_json_lines.py")
    assert " passed in " in told and "skipped" not in told
    uri = f"jsonl://{tmp_path / 'runs.jsonl'}"
    for file in (ROOT / "tests/engine/fixtures").glob("*.jsonl"):
        Storage.open(str(tmp_path / "storage")).write(f"journal/{file.stem}/1.jsonl", file.read_bytes())
    told = python("cvit.engine.sync", "--storage", str(tmp_path / "storage"), "--tracking-uri", uri)
    assert told.splitlines() == [
        f"expressivity: 12 trials, 12 of them ended, are in JSON lines at {uri}",
        f"low_data: 6 trials, 6 of them ended, are in JSON lines at {uri}",
    ]
