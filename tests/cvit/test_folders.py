"""A local storage: no path through links, only files of its own deleted, folders flushed, removals noticed."""

import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cvit.errors import Refused
from cvit.results import StageResult, load_result
from cvit.storage import Storage, StorageError, decode_records, encode_record
from cvit.training.checkpoint import StageProgress, load_checkpoint, save_checkpoint, save_result

KEY = "0123456789abcdef01234567"
RESULT = StageResult("ok", 2.3, 12.5, "cpu", [("m", 1, 0.5, 7)])
WEIGHTS = {"w": torch.ones(3)}
ANY = re.compile(".*")
USES: dict[str, Callable[[Storage], object]] = {
    "read": lambda storage: storage.read("stages/key/file"),
    "write": lambda storage: storage.write("stages/key/file", b"new"),
    "append": lambda storage: storage.append_local("stages/key/file", b"new"),
    "delete": lambda storage: storage.delete("stages/key/file"),
    "delete matching": lambda storage: storage.delete_matching("stages/key", ANY),
}


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder outside the storage, with files that are named like those of a stage."""
    folder = tmp_path / "foreign"
    (folder / "key").mkdir(parents=True)
    for name in ("file", "key/file", "step-00000001.json", "step-00000001.safetensors", "result.json"):
        (folder / name).write_bytes(b"foreign")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("link", ["stages", "stages/key", "stages/key/file"])
def test_no_use_goes_through_a_link(tmp_path: Path, foreign: Path, link: str, use: str) -> None:
    before = contents(foreign)
    place = tmp_path / "storage" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(foreign / "file" if link.endswith("file") else foreign)
    with pytest.raises(Refused, match=f"{link} is a link, and links are not followed"):
        USES[use](Storage.open(str(tmp_path / "storage")))
    assert contents(foreign) == before
    assert place.is_symlink()


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "storage").symlink_to(tmp_path / "disk")
    storage = Storage.open(str(tmp_path / "storage"))
    storage.check_writable()
    save_result(storage, KEY, WEIGHTS, RESULT)
    assert load_result(storage, KEY) == RESULT
    assert (tmp_path / "disk/stages" / KEY / "result.json").is_file()


def test_only_files_that_the_sweep_names_are_deleted(tmp_path: Path) -> None:
    storage, folder = Storage.open(str(tmp_path)), tmp_path / "stages" / KEY
    partial = f"{'0f' * 16}.partial"
    kept = ("notes.txt", "step-best.json", "step-00000001.txt", f"notes.{partial}", "step-00000003.json.partial")
    save_checkpoint(storage, KEY, WEIGHTS, StageProgress(step=1))
    for name in (*kept, f"step-00000002.json.{partial}"):
        (folder / name).write_bytes(b"x")
    (folder / "step-00000009.jsonl").mkdir()
    for step in (2, 3, 4):
        save_checkpoint(storage, KEY, WEIGHTS, StageProgress(step=step))
    assert {path.name for path in folder.iterdir()} >= {*kept}
    save_result(storage, KEY, WEIGHTS, RESULT)
    own = {"result.json", "weights.safetensors"}
    assert {path.name for path in folder.iterdir()} == {*kept, *own, "step-00000009.jsonl"}


@pytest.mark.parametrize("use", ["read", "write", "append", "delete"])
def test_a_folder_or_a_pipe_in_the_place_of_a_file_is_named(tmp_path: Path, use: str) -> None:
    storage, place = Storage.open(str(tmp_path)), tmp_path / "stages/key/file"
    place.mkdir(parents=True)
    with pytest.raises(Refused, match="stages/key/file is a folder, not a file"):
        USES[use](storage)
    place.rmdir()
    os.mkfifo(place)
    with pytest.raises(Refused, match="stages/key/file is a special file, not a file"):
        USES[use](storage)
    assert stat.S_ISFIFO(place.stat().st_mode)


@pytest.mark.parametrize("use", ["read", "write", "append", "delete"])
@pytest.mark.parametrize("file", ["stages", "stages/key"])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path, file: str, use: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(Refused, match=f"{file} is a file, not a folder"):
        USES[use](Storage.open(str(tmp_path)))


def test_a_file_that_goes_away_is_not_begun_anew(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path / "storage"))
    storage.append_local("journal/low_data/1.jsonl", b"x")
    storage.append_local("journal/low_data/1.jsonl", b"x", must_exist=True)
    shutil.rmtree(tmp_path / "storage")
    with pytest.raises(Refused, match=r"journal/low_data/1\.jsonl was removed while the sweep ran"):
        storage.append_local("journal/low_data/1.jsonl", b"x", must_exist=True)
    assert not (tmp_path / "storage").exists()


def test_a_rename_is_flushed_with_its_folder_and_a_new_folder_with_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, replace, events = os.fsync, os.replace, list[str]()

    def seen_fsync(descriptor: int) -> None:
        events.append(f"flush {os.readlink(f'/proc/self/fd/{descriptor}').removeprefix(str(tmp_path))}")
        fsync(descriptor)

    def seen_replace(old: str, new: str, **folders: int) -> None:
        events.append(f"rename to {new}")
        replace(old, new, **folders)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    Storage.open(str(tmp_path / "new")).write("stages/file", b"x")
    assert [re.sub(r"[0-9a-f]{32}", "…", event) for event in events] == [
        *("flush ", "flush /new", "flush /new/stages/file.….partial", "rename to file", "flush /new/stages"),
    ]
    events.clear()
    Storage.open(str(tmp_path / "new")).append_local("stages/lines", b"x")
    assert events == ["flush /new/stages/lines", "flush /new/stages"]


def test_what_a_later_version_stored_is_named_and_not_trained_anew(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    save_checkpoint(storage, KEY, WEIGHTS, StageProgress(step=1))
    checkpoint, result = f"stages/{KEY}/step-00000001.json", f"stages/{KEY}/result.json"

    def altered(path: str, **changes: object) -> None:
        (record,) = decode_records(storage.read(path))
        assert record["format"] == 1
        record = {name: value for name, value in {**record, **changes}.items() if value is not None}
        storage.write(path, encode_record(record))

    whole = storage.read(checkpoint)
    altered(checkpoint, new_field=1)
    loaded = load_checkpoint(storage, KEY)
    assert loaded is not None and loaded[1] == StageProgress(step=1), "a new field may be passed over"
    for changes in ({"format": 2}, {"format": "of another kind"}, {"points": {"m": 1}}, {"points": None}):
        storage.write(checkpoint, whole)
        altered(checkpoint, **changes)
        with pytest.raises(Refused, match=f"{checkpoint} was written by a later version of this program"):
            load_checkpoint(storage, KEY)
    save_result(storage, KEY, WEIGHTS, RESULT)
    whole = storage.read(result)
    altered(result, new_field=1)
    assert load_result(storage, KEY) == RESULT, "a new field may be passed over"
    for changes in ({"format": 2}, {"format": 1e400}, {"points": [["m", 1e400, 1, 1]]}, {"seconds": None}):
        storage.write(result, whole)
        altered(result, **changes)
        with pytest.raises(Refused, match=f"{result} was written by a later version of this program"):
            load_result(storage, KEY)


def test_results_without_a_format_are_of_the_first(tmp_path: Path) -> None:
    storage, path = Storage.open(str(tmp_path)), f"stages/{KEY}/result.json"
    save_result(storage, KEY, WEIGHTS, RESULT)
    (record,) = decode_records(storage.read(path))
    assert record.pop("format") == 1
    storage.write(path, encode_record(record))
    assert load_result(storage, KEY) == RESULT


def test_paths_that_lead_out_are_refused(tmp_path: Path) -> None:
    for use in (Storage.read, Storage.names, Storage.delete):
        with pytest.raises(StorageError, match="is no path inside a storage"):
            use(Storage.open(str(tmp_path)), "stages/../../x")
