"""A storage on S3 that several machines share: listings that lag, connections cut in the middle of a write, wrong
credentials, and a whole sweep while such things happen."""

import http.client
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cvit import vocabulary as v
from cvit.results import StageResult, load_result
from cvit.storage import Storage, StorageError, decode_records
from cvit.training.checkpoint import StageProgress, load_checkpoint, save_checkpoint, save_result
from tests.support.faulty_s3 import CUT, SECRET, SLOW_DOWN, STALE, FaultyS3, faulty_s3, set_credentials
from tests.support.scripts import TINY, call, sweep, sweep_with_ray


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    set_credentials(monkeypatch)
    with faulty_s3() as server:
        yield server


def test_a_listing_that_lags_costs_a_checkpoint_and_no_more(s3: FaultyS3) -> None:
    storage = Storage.open(s3.url("lag"))
    for step in (1, 2, 3):
        save_checkpoint(storage, "key", {"w": torch.full((3,), step)}, StageProgress(step=step))
    assert newest_step(storage) == 3
    s3.fault = lambda method, path: STALE if "list-type=2" in path else None
    for step in (4, 5):  # unseen, and those that were listed last are pruned
        save_checkpoint(storage, "key", {"w": torch.full((3,), step)}, StageProgress(step=step))
    assert newest_step(storage) == 3
    save_checkpoint(storage, "key", {"w": torch.full((3,), 6)}, StageProgress(step=6))
    result = StageResult(v.STATUS_OK, 2.3, 1.0, "cpu", [])
    save_result(storage, "key", {"w": torch.ones(3)}, result)
    assert load_result(storage, "key") == result, "what decides whether a stage is done needs no listing"
    assert newest_step(storage) is None, "checkpoints that are listed and gone are passed over"
    s3.fault = lambda method, path: None
    assert s3.faults[STALE] > 5
    save_result(storage, "key", {"w": torch.ones(3)}, result)
    assert storage.names("stages/key") == ["result.json", "weights.safetensors"]


def newest_step(storage: Storage) -> int | None:
    loaded = load_checkpoint(storage, "key")
    return loaded[1].step if loaded is not None else None


@pytest.mark.parametrize("kind", [CUT, SLOW_DOWN])
def test_a_request_that_fails_for_a_moment_is_repeated(s3: FaultyS3, kind: str) -> None:
    storage = Storage.open(s3.url("moment"))
    storage.write("file", b"old")
    s3.fault = lambda method, path: kind if method == "PUT" and s3.faults[kind] < 3 else None
    storage.write("file", bytes(1_000_000))
    assert s3.faults[kind] == 3
    assert storage.read("file") == bytes(1_000_000)
    s3.fault = lambda method, path: kind if method == "GET" and s3.faults[kind] < 6 else None
    assert storage.read("file") == bytes(1_000_000)
    assert storage.names("") == ["file"]
    assert s3.faults[kind] == 6


def test_a_write_that_is_cut_for_good_leaves_the_old_content(s3: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvit.buckets._ATTEMPTS", 3)  # all of them take 40 s to a minute
    storage = Storage.open(s3.url("cut"))
    storage.write("file", b"old")
    s3.fault = lambda method, path: CUT if method == "PUT" else None
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        storage.write("file", bytes(1_000_000))
    s3.fault = lambda method, path: None
    assert storage.read("file") == b"old"
    assert storage.names("") == ["file"]
    storage.write("file", b"new")
    assert storage.read("file") == b"new"


def test_an_endpoint_where_nobody_listens_is_named_soon() -> None:
    with pytest.raises(StorageError, match=r"cannot be written: .*Could not connect") as caught:
        Storage.open("s3://bucket/x?endpoint_override=127.0.0.1:1&scheme=http&region=x").check_writable()
    assert "\n" not in str(caught.value)


def authenticate(s3: FaultyS3, after: str) -> None:
    """Has moto check credentials from that many requests on."""
    connection = http.client.HTTPConnection(*s3.server)
    connection.request("POST", "/moto-api/reset-auth", after)
    assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=["run", "dry-run"])
def test_wrong_credentials_end_a_sweep_before_anything_starts(
    s3: FaultyS3, tmp_path: Path, options: tuple[str, ...]
) -> None:
    authenticate(s3, after="0")
    try:
        ended = call(tmp_path, *TINY, "--storage", s3.url("x"), *options)
    finally:
        authenticate(s3, after="inf")
    errors = ended.errors
    assert ended.exit_code == 2, errors
    assert ended.output == "" and errors.count("\n") == 1
    assert errors.startswith("low_data.py: error: storage 's3://cvit/x?")
    assert "ACCESS_DENIED" in errors or "The AWS Access Key Id you provided does not exist" in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(600)
def test_a_sweep_on_an_unsteady_s3_ends_with_every_trial_and_tells_no_key(s3: FaultyS3, tmp_path: Path) -> None:
    chance = random.Random(0)
    s3.fault = lambda method, path: chance.choice((CUT, SLOW_DOWN)) if chance.random() < 0.1 else None
    options = (*TINY, "--data-fraction", "0.1", "--seeds", "2", "--init-scheme", "random", "two_phase")
    options += ("--storage", s3.url("sweep"))
    output = sweep_with_ray(tmp_path, *options)
    assert "4 of 4 trials done" in output
    assert s3.faults[CUT] > 2 and s3.faults[SLOW_DOWN] > 2
    s3.fault = lambda method, path: None
    storage = Storage.open(s3.url("sweep"))
    assert len([key for key in storage.names(v.STAGES_FOLDER) if load_result(storage, key)]) == 6
    ends = [record for record in journal(storage) if record["type"] == v.RECORD_END]
    assert len({record["trial_key"] for record in ends}) == len(ends) == 4
    output += sweep(tmp_path, *options)
    assert "Nothing to train: every trial is done." in output
    assert SECRET not in output
    places = (tmp_path, Path(os.environ["RAY_TMPDIR"]))  # what MLflow has, and Ray's logs
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert {"mlflow.db", "raylet.out"} <= {path.name for path in files}
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def journal(storage: Storage) -> list[dict[str, str]]:
    below = f"{v.JOURNAL_FOLDER}/low_data"
    return [r for segment in storage.names(below) for r in decode_records(storage.read(f"{below}/{segment}"))]
