"""Storages of every kind, and records, which are lines of their files."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvit.storage import Storage, StorageError, decode_records, encode_record
from tests.support.faulty_s3 import BUCKET, FaultyS3, faulty_s3, set_credentials
from tests.support.storage_contract import StorageContract

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=5,
)
RECORDS = st.lists(st.dictionaries(st.text(), JSON, max_size=3), min_size=1, max_size=5)

# Forks a writer that writes one file over and over, kills it, and looks at what is there; again and again, until both
# contents were seen and a write was cut short, but 20 times at least.
KILLED_WRITERS = """
import json, os, random, signal, sys, time
from pathlib import Path
from cvit.storage import Storage

storage = Storage.open(sys.argv[1])
contents = [bytes([65 + i]) * (1_000_000 + i) for i in range(2)]
storage.write("folder/file", contents[0])
seen, torn, cut_short, kills = set(), 0, 0, 0
while kills < 20 or (kills < 500 and not (len(seen) == 2 and cut_short)):
    writer = os.fork()
    if writer == 0:
        try:
            for turn in range(kills, 1000):
                storage.write("folder/file", contents[turn % 2])
        finally:
            os._exit(1)
    time.sleep(random.uniform(0.0, 0.03))
    os.kill(writer, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(writer, 0)[1])
    kills += 1
    data = storage.read("folder/file")
    torn += data not in contents
    seen.add(data[:1].decode())
    names = storage.names("folder")
    for left in Path(sys.argv[1], "folder").glob("*.partial"):
        cut_short += 1
        left.unlink()
print(json.dumps({"torn": torn, "seen": sorted(seen), "cut_short": cut_short, "names": names}))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    """An S3 server of its own, on this machine."""
    with faulty_s3() as server:
        yield server


@pytest.fixture
def s3(server: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> FaultyS3:
    """The server, with credentials for it in the environment."""
    set_credentials(monkeypatch)
    return server


class TestFolder(StorageContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return str(tmp_path / "not yet there")


class TestFileUrl(StorageContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return (tmp_path / "not yet there").as_uri()


class TestS3(StorageContract):
    @pytest.fixture
    def url(self, s3: FaultyS3, tmp_path: Path) -> str:
        return s3.url(tmp_path.name)


def test_two_storages_in_one_bucket_are_apart(s3: FaultyS3) -> None:
    one, other = (Storage.open(s3.url(f"apart/{name}")) for name in ("one", "other"))
    one.write("stages/a", b"1")
    assert other.names("stages") == []
    with pytest.raises(FileNotFoundError):
        other.read("stages/a")


def test_a_killed_writer_leaves_the_old_content_or_the_new(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", KILLED_WRITERS, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["torn"] == 0
    assert found["seen"] == ["A", "B"], "no writer got as far as replacing the file"
    assert found["cut_short"] > 0, "no writer was killed in the middle of a write"
    assert found["names"] == ["file"], "what a killed writer leaves is not listed"


def test_readers_never_see_a_torn_file(tmp_path: Path) -> None:
    storage, done = Storage.open(str(tmp_path)), threading.Event()
    contents = [bytes([65 + i]) * (300_000 + i) for i in range(2)]
    storage.write("file", contents[0])
    read: set[bytes] = set()

    def reader() -> None:
        while not done.is_set():
            read.add(storage.read("file"))

    thread = threading.Thread(target=reader)
    thread.start()
    for turn in range(60):
        storage.write("file", contents[turn % 2])
    done.set()
    thread.join()
    assert read == set(contents)


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    storage.write("file", b"old")
    with pytest.raises(TypeError):
        storage.write("file", "not bytes")  # pyright: ignore[reportArgumentType]
    assert storage.read("file") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_appended_lines_follow_each_other(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    for i in range(3):
        storage.append_local("journal/segment", encode_record({"i": i}))
    assert decode_records(storage.read("journal/segment")) == [{"i": 0}, {"i": 1}, {"i": 2}]


@pytest.mark.parametrize(
    "url",
    [
        "nowhere://bucket/prefix",
        "s3://bucket/prefix?unknown_option=1",
        "s3:///no-bucket",
        "file://host/path",
        "~no-such-user/x",
    ],
)
def test_what_cannot_be_opened_is_named_in_one_line(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        Storage.open(url)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"storage {url!r} cannot be opened: ")


def test_a_folder_that_cannot_be_written_is_noticed(tmp_path: Path) -> None:
    # Tests may run as root, whom no permission stops: nobody writes below a regular file.
    (tmp_path / "file").write_bytes(b"kept")
    for path in ("file", "file/below", "file/far/below"):
        url = str(tmp_path / path)
        with pytest.raises(StorageError) as caught:
            Storage.open(url).check_writable()
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"storage {url!r} cannot be written: ")
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_a_bucket_that_is_not_there_is_noticed(s3: FaultyS3) -> None:
    url = s3.url("prefix").replace(BUCKET, "no-such-bucket", 1)
    with pytest.raises(StorageError) as caught:
        Storage.open(url).check_writable()
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"storage {url!r} cannot be written: ")


def test_checking_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    Storage.open(str(tmp_path)).check_writable()
    assert list(tmp_path.iterdir()) == []


@given(RECORDS)
def test_records_come_back(records: list[dict[str, Any]]) -> None:
    assert decode_records(b"".join(map(encode_record, records))) == records


@given(RECORDS, st.data())
def test_a_record_with_an_altered_byte_is_dropped_and_no_other(
    records: list[dict[str, Any]], data: st.DataObject
) -> None:
    lines = [encode_record(record) for record in records]
    hit = data.draw(st.integers(0, len(lines) - 1))
    place = data.draw(st.integers(0, len(lines[hit]) - 2))  # in the line, which its newline ends
    altered = bytearray(lines[hit])
    altered[place] ^= data.draw(st.integers(1, 255))
    others = records[:hit] + records[hit + 1 :]
    assert decode_records(b"".join([*lines[:hit], bytes(altered), *lines[hit + 1 :]])) == others


@given(RECORDS, st.data())
def test_an_altered_newline_costs_no_more_than_the_two_lines_it_parted(
    records: list[dict[str, Any]], data: st.DataObject
) -> None:
    lines = [encode_record(record) for record in records]
    hit = data.draw(st.integers(0, len(lines) - 1))
    altered = lines[hit][:-1] + bytes([data.draw(st.integers(0, 255))])
    decoded = decode_records(b"".join([*lines[:hit], altered, *lines[hit + 1 :]]))
    assert decoded[:hit] == records[:hit]
    assert decoded in (records, records[:hit] + records[hit + 2 :], records[:hit] + records[hit + 1 :])


@given(RECORDS, st.data())
def test_a_torn_end_costs_only_the_torn_record(records: list[dict[str, Any]], data: st.DataObject) -> None:
    lines = [encode_record(record) for record in records]
    whole = data.draw(st.integers(0, len(lines) - 1))
    rest = data.draw(st.integers(0, len(lines[whole]) - 2))
    assert decode_records(b"".join(lines[:whole]) + lines[whole][:rest]) == records[:whole]


def test_records_are_lines_that_people_can_read() -> None:
    # printf '{"a":"b","x":1.5}' | sha256sum: a stored journal must stay readable for later versions.
    assert encode_record({"x": 1.5, "a": "b"}) == b'4a66da906b28da9d {"a":"b","x":1.5}\n'
