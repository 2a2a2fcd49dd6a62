"""Every stage says with what it was trained, wherever that was, and whatever version reads or continues it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import cvit
import cvit.training.loop as loop
from cvit import provenance as here
from cvit.data.datasets import describe, load
from cvit.provenance import announce_code_version, code_version, provenance, source_hash
from cvit.results import Provenance, load_result
from cvit.storage import Storage, decode_records, encode_record
from tests.cvit.training.tiny import CPU, reports_of, stages

PACKAGE = Path(cvit.__file__ or "").parent
COMMIT = ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all")


@pytest.fixture
def announced() -> Iterator[None]:
    """Forgets the versions that a test has announced."""
    yield
    here._known_versions.clear()


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def copy_of_package(folder: Path) -> Path:
    """A folder with the files of the package that say which code it is."""
    for path in PACKAGE.glob("*.py"):
        target = folder / "cvit" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


def add(folder: Path, line: str) -> None:
    """Changes the package in a folder by a line that has no effect."""
    with (folder / "cvit" / "errors.py").open("a") as file:
        file.write(line)


def version_in(folder: Path, *announced: str) -> str:
    """The code version by the package in a folder, in a process of its own; announced by a driver, if there is one."""
    code = (
        "import sys; from cvit.provenance import announce_code_version, code_version; "
        "sys.argv[1:] and announce_code_version(*sys.argv[1:]); print(code_version())"
    )
    command = [sys.executable, "-c", code, *announced]
    return output_of(folder, *command)


def output_of(folder: Path, *command: str) -> str:
    """The output of a command that finds the package in a folder, and no other one."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_in_a_checkout_it_is_the_commit_and_changed_code_has_its_own_hash(tmp_path: Path) -> None:
    folder = copy_of_package(tmp_path / "checkout")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, *COMMIT)
    commit = git(folder, "describe", "--always")
    assert version_in(folder).endswith(f"+{commit}")
    version, source = output_of(folder, sys.executable, "-m", "cvit.provenance").split()
    assert version == version_in(folder)
    dirty = []
    for line in ("a = 1\n", "b = 2\n"):
        add(folder, line)
        dirty.append(version_in(folder))
    assert all(f"+{commit}-dirty." in version for version in dirty)
    assert len({source, *(version.rpartition(".")[2] for version in dirty)}) == 3


def test_without_a_repository_it_is_the_source(tmp_path: Path) -> None:
    """As on a cluster's nodes, which have the files alone; there, an outer repository would say nothing."""
    git(tmp_path, "init", "-q")
    (tmp_path / "other").write_text("a file")
    git(tmp_path, "add", "other")
    git(tmp_path, *COMMIT)
    first, second = (copy_of_package(tmp_path / name) for name in ("a", "b"))
    version = version_in(first)
    assert "+source." in version and version == version_in(second)
    assert version_in(second, version.rpartition(".")[2], "0.1.0+1a2b3c4") == "0.1.0+1a2b3c4"  # of the driver
    add(second, "a = 1\n")
    assert version_in(second) != version
    assert version_in(second, version.rpartition(".")[2], "0.1.0+1a2b3c4") == version_in(second), "other code"


def test_this_process_says_with_what_it_trains() -> None:
    assert provenance(CPU) == Provenance(
        code_version(), torch.__version__, "cpu", torch.backends.cpu.get_cpu_capability()
    )
    assert source_hash() in code_version() or "dirty" not in code_version()


def test_a_result_has_every_session_that_trained_it(
    tmp_path: Path, announced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_INTERVAL_S", 0.0)
    digits, storage = load(describe("digits", "nowhere", download=False)), Storage.open(str(tmp_path))
    (stage,) = stages()
    for version in ("0.1.0+older", "0.1.0+newer"):
        announce_code_version(source_hash(), version)
        next(reports_of(stage, digits, storage))
    announce_code_version(source_hash(), "0.1.0+older")
    list(reports_of(stage, digits, storage))
    result = load_result(storage, stage.key)
    assert result is not None and [each.code_version for each in result.trained_with] == ["0.1.0+newer", "0.1.0+older"]
    assert {each.torch_version for each in result.trained_with} == {torch.__version__}


def rewritten(storage: Storage, path: str, change: Any) -> None:
    (record,) = decode_records(storage.read(path))
    change(record)
    storage.write(path, encode_record(record))


def test_a_checkpoint_of_a_version_before_leaves_a_session_that_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_INTERVAL_S", 0.0)
    digits, storage = load(describe("digits", "nowhere", download=False)), Storage.open(str(tmp_path))
    (stage,) = stages()
    next(reports_of(stage, digits, storage))
    folder = f"stages/{stage.key}"
    for name in storage.names(folder):
        if name.endswith(".json"):
            rewritten(storage, f"{folder}/{name}", lambda record: record.pop("trained_with"))
    list(reports_of(stage, digits, storage))
    result = load_result(storage, stage.key)
    assert result is not None and result.trained_with == (Provenance(), provenance(CPU))
    rewritten(storage, f"{folder}/result.json", lambda record: record.pop("trained_with"))
    old = load_result(storage, stage.key)
    assert old is not None and old.trained_with == () and old.points == result.points
