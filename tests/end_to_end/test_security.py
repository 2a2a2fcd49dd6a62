"""No secret where others read, no code from what is read, no path out of the storage, no open server."""

import ast
import dataclasses
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

from cvit import vocabulary as v
from cvit.analysis import make_tables
from cvit.engine import book
from cvit.engine.recording.journal import Journal
from cvit.records import EndRecord, Record, StudyRecord
from cvit.results import StageResult
from cvit.storage import Storage, StorageError, checksum, encode_record
from cvit.training.checkpoint import StageProgress, load_checkpoint, load_weights, save_checkpoint, save_result
from tests.support.plans import SMALL, make_plan
from tests.support.scripts import ROOT, TINY, call

PASSWORD = "s3cr3t"


# Secrets


@pytest.mark.parametrize(
    ("options", "exit_code", "shown"),
    [
        (("--dry-run", "--tracking-uri", f"http://me:{PASSWORD}@127.0.0.1:1"), 0, "http://***@127.0.0.1:1"),
        (("--tracking-uri", f"ftp://me:{PASSWORD}@host"), 2, "ftp://***@host"),
        (("--storage", f"nowhere://me:{PASSWORD}@bucket/x"), 2, "nowhere://***@bucket/x"),
        (("--storage", f"s3://AKIA:{PASSWORD}@bucket/x"), 2, "holds a key: give it to AWS_ACCESS_KEY_ID"),
        (("--dataset", f"http://me:{PASSWORD}@host/x"), 2, "http://***@host"),
    ],
)
def test_a_sweep_prints_no_password(tmp_path: Path, options: tuple[str, ...], exit_code: int, shown: str) -> None:
    ended = call(tmp_path, *TINY, *options)
    printed = ended.output + ended.errors
    assert ended.exit_code == exit_code, printed
    assert PASSWORD not in printed
    assert shown in printed


@pytest.mark.parametrize("secret", ["s3@cr3t", "s3'cr3t&x=$y;", 's3"cr3t%20'])
def test_a_whole_sweep_leaves_no_password_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    """Nothing listens at the server: the closing lines quote its address and a command with it."""
    monkeypatch.setattr(book, "CLOSE_TIMEOUT_S", 0.1)
    uri = f"http://me:{secret}@127.0.0.1:1/?token={secret}"
    options = (*TINY, "--data-fraction", "0.1", "--seeds", "1", "--init-scheme", "random", "--tracking-uri", uri)
    ended = call(tmp_path, *options)
    assert "is incomplete" in ended.output and "--tracking-uri" in ended.output, ended.output + ended.errors
    assert make_tables.main(["--storage", str(tmp_path / "storage"), "--out", str(tmp_path / "out")]) == 0
    texts = [ended.output, ended.errors, *(path.read_text("latin-1") for path in tmp_path.rglob("*") if path.is_file())]
    assert len(texts) > 8
    assert not [text for text in texts if "cr3t" in text]


def test_the_journal_and_its_listeners_get_no_password(tmp_path: Path) -> None:
    """The tracker listens to the journal and copies tags and notes to MLflow."""
    plan = make_plan(tmp_path, *SMALL)
    command = f"python sweeps/low_data.py --tracking-uri postgresql://me:{PASSWORD}@host/db"
    journal = Journal(Storage.open(str(tmp_path)), "low_data")
    heard: list[Record] = []
    journal.listen(heard.extend)
    journal.record_plan(dataclasses.replace(plan.study, command=command), plan.trials, {})
    journal.record_end(plan.trials[0], v.STATUS_FAILED, {}, f"no answer from http://a:{PASSWORD}@host: 500")
    study, end = heard[0], heard[-1]
    assert isinstance(study, StudyRecord) and isinstance(end, EndRecord)
    assert study.command == "python sweeps/low_data.py --tracking-uri postgresql://***@host/db"
    assert end.note == "no answer from http://***@host: 500"
    segments = [path.read_text() for path in tmp_path.rglob("*.jsonl")]
    assert segments and not any(PASSWORD in text for text in segments)


# Code


FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNPICKLING = {"get_pickled_error", "pickled_error_file"}
"""Tune's ways to the error of a trial as a pickle, in a folder that others may be able to write."""
CALLS = {"torch.load", "np.load", "numpy.load", "eval", "exec", "yaml.load", "os.system", "pd.read_pickle"}


def dangerous(source: str) -> list[str]:
    """Finds imports of modules that unpickle, and calls that unpickle or that run text as code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in FORBIDDEN]
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [name for name in names if name in FORBIDDEN]
        elif isinstance(node, ast.Attribute) and node.attr in UNPICKLING:
            found.append(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS:
            found.append(ast.unparse(node.func))
        elif isinstance(node, ast.keyword) and node.arg == "shell":
            found.append("shell")
    return found


def test_what_is_dangerous_is_found() -> None:
    lines = ["import pickle.x", "from dill import a", "from ray import cloudpickle", "torch.load(1)", "model.eval()"]
    lines += ["run(shell=True)", "trial.pickled_error_file"]
    found = ["cloudpickle", "dill", "pickle.x", "pickled_error_file", "shell", "torch.load"]
    assert sorted(dangerous("\n".join(lines))) == found


def test_nothing_is_unpickled_or_run() -> None:
    files = [path for package in ("cvit", "sweeps", "analysis") for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 50
    assert {str(path): found for path in files if (found := dangerous(path.read_text()))} == {}


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def test_a_pickle_in_the_storage_is_not_opened(tmp_path: Path) -> None:
    """The pickle stays closed even if its author wrote the checksums that belong to it."""
    storage, sprung = Storage.open(str(tmp_path / "storage")), tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung))
    pickle.loads(trap)
    assert sprung.exists(), "the trap is none"
    sprung.unlink()
    save_result(storage, "key", {"w": torch.ones(1)}, StageResult(v.STATUS_OK, 1.0, 1.0, "cpu", []))
    record = {
        "weights": checksum(trap),
        "status": "ok",
        "initial_loss": 1.0,
        "seconds": 1.0,
        "device": "cpu",
        "points": [],
    }
    storage.write("stages/key/weights.safetensors", trap)
    storage.write("stages/key/result.json", encode_record(record))
    with pytest.raises(safetensors.SafetensorError):
        load_weights(storage, "key")
    save_checkpoint(storage, "other", {"w": torch.ones(1)}, StageProgress(step=1))
    storage.write("stages/other/step-00000001.safetensors", trap)
    assert load_checkpoint(storage, "other") is None
    storage.write("stages/other/step-00000001.json", trap)
    assert load_checkpoint(storage, "other") is None
    assert not sprung.exists()


# Paths


@pytest.mark.parametrize("path", ["../x", "a/../../x", "..", "/etc/passwd", "a/.."])
def test_no_path_leads_out_of_the_storage(tmp_path: Path, path: str) -> None:
    (tmp_path / "x").write_text("outside")
    storage = Storage.open(str(tmp_path / "storage"))
    storage.write("a/b", b"inside")
    for use in (storage.read, storage.names, storage.delete):
        with pytest.raises(StorageError, match="is no path inside a storage"):
            use(path)
    for write in (storage.write, storage.append_local):
        with pytest.raises(StorageError, match="is no path inside a storage"):
            write(path, b"overwritten")
    assert (tmp_path / "x").read_text() == "outside"
    assert [path.name for path in tmp_path.iterdir() if path.name != "storage"] == ["x"]


# Servers


def test_every_server_that_is_recommended_listens_on_loopback() -> None:
    pages = [ROOT / name for name in ("README.md", "Makefile", "Dockerfile")]
    pages += [*ROOT.glob("*.yaml"), *(ROOT / "docs").rglob("*.md")]
    for text in pages:
        for command in re.findall(r"mlflow (?:server|ui)\b.*", text.read_text()):
            assert re.findall(r"--host[ =](\S+)", command) in ([], ["127.0.0.1"]), f"{text.name}: {command}"
        assert not re.search(r"0\.0\.0\.0|--dashboard-host[ =](?!127\.0\.0\.1)", text.read_text()), text.name


def test_a_local_ray_wants_its_token(tmp_path: Path) -> None:
    """Ray's own ports listen on every interface, so who reaches them must know the token."""
    code = """
import os, subprocess, sys
from cvit.engine.execution.cluster import Cluster
import ray
with Cluster(None, "cpu") as cluster:
    assert cluster.workers.is_here
    status = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", ray.get_runtime_context().gcs_address]
    for mode in ("token", "disabled"):
        done = subprocess.run(status, env=os.environ | {"RAY_AUTH_MODE": mode}, capture_output=True, text=True)
        print(mode, done.returncode, "nauthenticated" in done.stdout + done.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.stdout.splitlines() == ["token 0 False", "disabled 1 True"], done.stderr
