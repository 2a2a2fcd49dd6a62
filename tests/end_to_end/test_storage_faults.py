"""Storages that refuse, go away or never answer while a sweep uses them: one line, the command that resumes, an end."""

import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvit import buckets
from cvit import vocabulary as v
from cvit.analysis import make_tables
from cvit.engine import sync
from cvit.engine.recording import lease
from cvit.storage import Storage, StorageError, decode_records, encode_record
from tests.support.faulty_s3 import Fault, FaultyS3, Refusal, faulty_s3, set_credentials
from tests.support.scripts import ROOT, TINY, call, start, sweep

ONE_TRIAL = (*TINY, "--data-fraction", "0.1", "--seeds", "1", "--init-scheme", "random", "--tracking-uri", "none")
TWO_TRIALS = (*TINY, "--data-fraction", "0.1", "--seeds", "2", "--init-scheme", "random", "--max-pack", "1")
TWO_TRIALS = (*TWO_TRIALS, "--tracking-uri", "none")


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    with faulty_s3() as server:
        yield server


@pytest.fixture
def s3(server: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    set_credentials(monkeypatch)
    yield server
    server.fault = lambda method, path: None


def refusing_after(uploads: int, answer: Refusal) -> Fault:
    """A fault: from the given upload of a stage's file on, the bucket refuses everything."""
    seen = [0]

    def fault(method: str, path: str) -> Refusal | None:
        seen[0] += method == "PUT" and "/stages/" in path
        return answer if seen[0] >= uploads else None

    return fault


def test_a_bucket_that_begins_to_refuse_ends_the_sweep_and_loses_nothing(s3: FaultyS3, tmp_path: Path) -> None:
    options = (*TWO_TRIALS, "--storage", s3.url("refusing"))
    s3.fault = refusing_after(3, (400, "ExpiredToken"))
    ended = call(tmp_path, *options)
    assert ended.exit_code == 1
    assert "Traceback" not in ended.output + ended.errors
    (reason,) = [line for line in ended.output.splitlines() if line.startswith("storage 's3://")]
    assert "ExpiredToken" in reason
    assert ended.output.splitlines()[-2].endswith("When the storage works again, continue with:")
    assert ended.output.splitlines()[-1].strip().startswith("python ")
    s3.fault = lambda method, path: None
    storage = Storage.open(s3.direct_url("refusing"))
    assert len(storage.names(v.STAGES_FOLDER)) == 1
    for name in storage.names(f"{v.LEASES_FOLDER}/low_data"):  # which names this process, and it lives
        storage.delete(f"{v.LEASES_FOLDER}/low_data/{name}")
    assert "2 of 2 trials done" in sweep(tmp_path, *options)


@pytest.mark.parametrize(
    ("beat_s", "files", "content"),
    # A result is written just before the journal's next lines, a claim when a training begins.
    [(lease.BEAT_S, "stages/*/result.json", b""), (0.01, "leases/low_data/*.json", b'"claims":["')],
    ids=["the journal notices", "the lease notices"],
)
def test_a_storage_that_is_removed_ends_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beat_s: float, files: str, content: bytes
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", beat_s)
    storage, removed = tmp_path / "storage", threading.Event()

    def remove() -> None:
        while not any(content in path.read_bytes() for path in storage.glob(files)):
            time.sleep(0.01)
        storage.rename(tmp_path / "elsewhere")
        removed.set()

    threading.Thread(target=remove, daemon=True).start()
    ended = call(tmp_path, *TWO_TRIALS)
    assert removed.is_set()
    assert ended.exit_code == 1
    assert "Traceback" not in ended.output + ended.errors
    (reason,) = [line for line in ended.output.splitlines() if line.startswith("storage '")]
    assert reason.endswith("was removed while the sweep ran")
    assert ended.output.splitlines()[-2].endswith("When the storage works again, continue with:")
    shutil.rmtree(storage, ignore_errors=True)
    (tmp_path / "elsewhere").rename(storage)
    shutil.rmtree(storage / v.LEASES_FOLDER, ignore_errors=True)  # names this process, and it lives
    assert "2 of 2 trials done" in sweep(tmp_path, *TWO_TRIALS)


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield server.getsockname()[1]


def urls(port: int) -> dict[str, str]:
    places = f"blob_storage_authority=127.0.0.1:{port}&dfs_storage_authority=127.0.0.1:{port}"
    return {
        "s3": f"s3://bucket/x?endpoint_override=127.0.0.1:{port}&scheme=http&region=x",
        "gs": f"gs://anonymous@bucket/x?endpoint_override=127.0.0.1:{port}&scheme=http",
        "abfs": f"abfs://bucket@account/x?{places}&enable_tls=false&credential_kind=anonymous",
    }


@pytest.mark.parametrize("kind", ["s3", "gs", "abfs"])
@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=["run", "dry-run"])
def test_a_bucket_that_never_answers_ends_a_sweep_in_time(
    silent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: tuple[str, ...]
) -> None:
    set_credentials(monkeypatch)
    assert buckets.CHECK_LIMIT_S == 30.0
    script = "import runpy, sys; from cvit import buckets; buckets.CHECK_LIMIT_S = 1.0; sys.argv = sys.argv[1:]; "
    script += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", script, str(ROOT / "sweeps/low_data.py"), *ONE_TRIAL, *options]
    started = time.monotonic()
    ended = subprocess.run(
        [*command, "--storage", urls(silent)[kind]], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert ended.stdout == "" and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(f"low_data.py: error: storage '{kind}://")
    assert ended.stderr.endswith(f"cannot be {'read' if options else 'written'}: no answer within 1 s\n")
    assert time.monotonic() - started < 20  # the server's silence would last for minutes


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_sigterm_ends_a_sweep_that_waits_for_a_bucket(
    silent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    set_credentials(monkeypatch)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        process = start(tmp_path, *ONE_TRIAL, "--storage", urls(server.getsockname()[1])[kind])
        with server.accept()[0]:  # the sweep waits for an answer from now on
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (130, "", "")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    sweep(folder, *ONE_TRIAL)
    return folder / "storage"


@pytest.fixture
def done(finished: Path, tmp_path: Path) -> Path:
    """The storage of a finished sweep."""
    shutil.copytree(finished, tmp_path / "storage")
    return tmp_path / "storage"


def one_line_each(folder: Path, capsys: pytest.CaptureFixture[str], *, is_read: bool = True) -> list[str]:
    """The texts of the commands that use a storage: each has to end with one line and exit code 2."""
    ended = call(folder, *ONE_TRIAL)
    assert (ended.exit_code, ended.output) == (2, "")
    lines = [ended.errors]
    if is_read:
        assert make_tables.main(["--storage", str(folder / "storage"), "--out", str(folder / "out")]) == 2
        lines.append(capsys.readouterr().err)
        with pytest.raises(StorageError) as caught:
            sync.sync(storage=str(folder / "storage"), tracking_uri=f"sqlite:///{folder / 'copy.db'}")
        lines.append(f"{caught.value}\n")
    assert [line.count("\n") for line in lines] == [1] * len(lines), lines
    return lines


@pytest.mark.parametrize("link", ["stages", "stages/KEY", "stages/KEY/result.json", "leases", "leases/low_data"])
def test_a_link_in_a_storage_is_refused_and_nothing_behind_it_changed(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], link: str
) -> None:
    (key,) = [path.name for path in (done / "stages").iterdir()]
    place = done / link.replace("KEY", key)
    place.parent.mkdir(exist_ok=True)
    if place.exists():
        place.rename(tmp_path / "foreign")
    else:
        (tmp_path / "foreign").mkdir()
    place.symlink_to(tmp_path / "foreign")
    before = sorted((tmp_path / "foreign").rglob("*"))
    (line,) = one_line_each(tmp_path, capsys, is_read=False)
    assert line.endswith(f"{link.replace('KEY', key)} is a link, and links are not followed\n")
    assert sorted((tmp_path / "foreign").rglob("*")) == before


def test_a_folder_or_a_link_among_the_journals_files_is_named(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = done / "journal/low_data/old"
    place.mkdir()
    for line in one_line_each(tmp_path, capsys):
        assert line.endswith("cannot be read: journal/low_data/old is a folder, not a file\n")
    place.rmdir()
    place.symlink_to("/etc/hostname")
    for line in one_line_each(tmp_path, capsys):
        assert line.endswith("cannot be read: journal/low_data/old is a link, and links are not followed\n")


@pytest.mark.parametrize(
    "record",
    [
        {"type": v.RECORD_END, "format": 2},
        {"type": "of a later version", "format": 2},
        {"type": v.RECORD_END, "trial_key": "a"},
        {"type": v.RECORD_POINTS, "trial_key": "a", "points": {"a": 1}},
        {"type": v.RECORD_STUDY, "study_key": "s", "cells": {"seed": 1}},
        {"type": v.RECORD_END, "trial_key": "a", "status": "ok", "note": "", "time_ms": 1, "tags": ["a"]},
    ],
    ids=str,
)
def test_a_record_that_this_version_cannot_read_is_named(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], record: dict[str, object]
) -> None:
    Storage.open(str(done)).write("journal/low_data/9.jsonl", encode_record(record))
    for line in one_line_each(tmp_path, capsys):
        assert "journal/low_data/9.jsonl was written by a later version of this program" in line


def test_a_stage_of_a_later_version_is_neither_trained_nor_replaced(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage.open(str(done))
    (path,) = [f"stages/{key}/result.json" for key in storage.names("stages")]
    (record,) = decode_records(storage.read(path))
    storage.write(path, encode_record(record | {"format": 2}))
    before = {name.name: name.read_bytes() for name in (done / path).parent.iterdir()}
    (line,) = one_line_each(tmp_path, capsys, is_read=False)
    assert f"{path} was written by a later version of this program (format 2" in line
    assert {name.name: name.read_bytes() for name in (done / path).parent.iterdir()} == before
