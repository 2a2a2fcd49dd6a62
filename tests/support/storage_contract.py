"""The contract of a storage: what checkpoints, results and the journal rely on, as tests that every kind inherits."""

import pickle
import re
import subprocess
import sys

import pytest
import torch

from cvit.storage import Storage, StorageError
from cvit.training.checkpoint import StageProgress, load_checkpoint, save_checkpoint

WRITES = 15
# Writes one file over and over, each time with other content of another length, all of it the same byte.
WRITER = f"""
import sys
from cvit.storage import Storage

storage, number = Storage.open(sys.argv[1]), int(sys.argv[2])
for turn in range({WRITES}):
    storage.write("one/file", bytes([number]) * (100_000 + 1000 * number + turn))
"""


def is_whole(content: bytes) -> bool:
    number = content[0]
    return set(content) == {number} and 0 <= len(content) - 100_000 - 1000 * number < WRITES


class StorageContract:
    """Tests of one kind of storage. A subclass gives the URL of an empty storage as a fixture."""

    @pytest.fixture
    def url(self) -> str:
        """The URL of an empty storage, the same within a test."""
        raise NotImplementedError

    @pytest.fixture
    def storage(self, url: str) -> Storage:
        return Storage.open(url)

    def test_files_are_written_read_and_listed(self, storage: Storage) -> None:
        assert storage.names("") == storage.names("stages") == []
        content = bytes(range(256)) * 5000
        storage.write("stages/a/weights", content)
        storage.write("stages/a/empty", b"")
        storage.write("stages/b/weights", b"b")
        storage.write("top", b"t")
        assert storage.read("stages/a/weights") == content
        assert storage.read("stages/a/empty") == b""
        assert storage.names("stages") == ["a", "b"]
        assert storage.names("stages/a") == ["empty", "weights"]
        assert storage.names("") == ["stages", "top"]

    def test_a_missing_file_is_no_content_but_an_error(self, storage: Storage) -> None:
        with pytest.raises(FileNotFoundError):
            storage.read("stages/a/result.json")
        storage.write("stages/a/weights", b"w")
        with pytest.raises(FileNotFoundError):
            storage.read("stages/a/result.json")

    def test_a_file_is_replaced_as_a_whole(self, storage: Storage) -> None:
        storage.write("stages/a/weights", b"the first, longer content")
        storage.write("stages/a/weights", b"shorter")
        assert storage.read("stages/a/weights") == b"shorter"
        assert storage.names("stages/a") == ["weights"]

    def test_deleted_files_are_gone_and_may_be_deleted_again(self, storage: Storage) -> None:
        storage.write("stages/a/weights", b"w")
        storage.write("stages/a/result", b"r")
        storage.delete("stages/a/weights")
        storage.delete("stages/a/weights")  # gone already: no error
        storage.delete("nowhere/at all")
        assert storage.names("stages/a") == ["result"]
        with pytest.raises(FileNotFoundError):
            storage.read("stages/a/weights")

    def test_files_of_a_folder_can_be_deleted_by_their_names(self, storage: Storage) -> None:
        pattern = re.compile(r"step-\d")
        storage.delete_matching("stages/a", pattern)  # no such folder: no error
        for name in ("step-1", "step-2", "step-22", "step-x", "my-step-3"):
            storage.write(f"stages/a/{name}", b"x")
        storage.write("stages/a/below/step-2", b"x")
        storage.write("stages/b/step-2", b"x")
        storage.delete_matching("stages/a", pattern)
        assert storage.names("stages/a") == ["below", "my-step-3", "step-22", "step-x"]
        assert storage.names("stages/a/below") == storage.names("stages/b") == ["step-2"]

    def test_checking_whether_it_can_be_written_leaves_nothing_behind(self, storage: Storage) -> None:
        storage.check_writable()
        assert storage.names("") == []

    def test_paths_lead_nowhere_outside(self, storage: Storage) -> None:
        for path in ("/etc/passwd", "../x", "stages/../../x"):
            with pytest.raises(StorageError, match="is no path inside a storage"):
                storage.write(path, b"x")

    def test_it_travels_between_processes(self, storage: Storage) -> None:
        storage.write("a", b"1")
        copy = pickle.loads(pickle.dumps(storage))
        assert copy == storage
        assert copy.read("a") == b"1"

    def test_readers_see_one_writers_file_or_anothers(self, storage: Storage) -> None:
        storage.write("one/file", bytes(100_000))
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, storage.url, str(number)], stderr=subprocess.PIPE, text=True
            )
            for number in (1, 2, 3)
        ]
        seen = set()
        while any(writer.poll() is None for writer in writers):
            content = storage.read("one/file")
            assert is_whole(content)
            seen.add(content)
        for writer in writers:
            assert writer.communicate()[1] == ""
            assert writer.returncode == 0
        last = storage.read("one/file")
        assert is_whole(last) and len(last) % 1000 == WRITES - 1, "no writer's last write"
        assert len({content[0] for content in seen}) >= 3, "the writers did not overlap"
        assert storage.names("one") == ["file"]

    def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(self, storage: Storage) -> None:
        for step in (1, 2, 3):
            weights = {"w": torch.full((3,), step)}
            save_checkpoint(storage, "key", weights, StageProgress(step=step, points=[("m", 1, 0.5, 7)]))
        newest = storage.names("stages/key")[-1]
        assert newest == "step-00000003.safetensors"
        storage.write(f"stages/key/{newest}", storage.read(f"stages/key/{newest}")[:-1])
        loaded = load_checkpoint(storage, "key")
        assert loaded is not None
        assert loaded[0]["w"].tolist() == [2, 2, 2]
        assert loaded[1] == StageProgress(step=2, points=[("m", 1, 0.5, 7)])
