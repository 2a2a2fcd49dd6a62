import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from cvit.storage import Storage, StorageError, decode_records, encode_record
from cvit.training.checkpoint import Progress, load_checkpoint, save_checkpoint

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=5,
)
RECORDS = st.lists(st.dictionaries(st.text(), JSON, max_size=3), min_size=1, max_size=5)
BUCKET = "cvit"

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
def endpoint() -> Iterator[str]:
    """An S3 server of its own, on this machine."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        set_credentials(patch)
        made = pafs.S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True)
        made.create_dir(BUCKET)
    yield f"http://{host}:{port}"
    server.stop()


def set_credentials(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def s3_url(endpoint: str, path: str) -> str:
    return f"s3://{path}?endpoint_override={endpoint.removeprefix('http://')}&scheme=http"


@pytest.fixture(params=["folder", "file-url", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """An empty storage of each kind."""
    if request.param == "folder":
        return Storage.open(str(tmp_path / "not yet there"))
    if request.param == "file-url":
        return Storage.open((tmp_path / "not yet there").as_uri())
    set_credentials(monkeypatch)
    return Storage.open(s3_url(request.getfixturevalue("endpoint"), f"{BUCKET}/{tmp_path.name}"))


def test_files_are_written_read_listed_and_deleted(storage: Storage) -> None:
    assert storage.names("") == storage.names("stages") == []
    with pytest.raises(FileNotFoundError):
        storage.read("stages/a/result.json")
    storage.check_writable()
    assert storage.names("") == []
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
    storage.write("stages/a/weights", b"shorter")
    assert storage.read("stages/a/weights") == b"shorter"
    storage.delete("stages/a/weights")
    storage.delete("stages/a/weights")  # gone already: no error
    storage.delete("nowhere/at all")
    assert storage.names("stages/a") == ["empty"]
    with pytest.raises(FileNotFoundError):
        storage.read("stages/a/weights")


def test_a_storage_travels_between_processes(storage: Storage) -> None:
    storage.write("a", b"1")
    copy = pickle.loads(pickle.dumps(storage))
    assert copy == storage
    assert copy.read("a") == b"1"


def test_checkpoints_lie_in_any_storage(storage: Storage) -> None:
    for step in (1, 2, 3):
        save_checkpoint(storage, "key", {"w": torch.full((3,), step)}, Progress(step=step, points=[("m", 1, 0.5, 7)]))
    newest = storage.names("stages/key")[-1]
    assert newest == "step-00000003.safetensors"
    storage.write(f"stages/key/{newest}", storage.read(f"stages/key/{newest}")[:-1])
    loaded = load_checkpoint(storage, "key")
    assert loaded is not None
    assert loaded[0]["w"].tolist() == [2, 2, 2]
    assert loaded[1] == Progress(step=2, points=[("m", 1, 0.5, 7)])


def test_two_storages_in_one_bucket_are_apart(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_credentials(monkeypatch)
    one, other = (Storage.open(s3_url(endpoint, f"{BUCKET}/apart/{name}")) for name in ("one", "other"))
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


def test_a_bucket_that_is_not_there_is_noticed(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_credentials(monkeypatch)
    url = s3_url(endpoint, "no-such-bucket/prefix")
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
