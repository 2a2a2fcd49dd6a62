"""Buckets that refuse, told from those that fail for a moment; and servers that never answer."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cvit import buckets
from cvit.engine.execution.faults import fault_of_exception
from cvit.engine.recording.backoff import is_refused
from cvit.errors import NoAnswer, Refused
from cvit.storage import Storage, StorageError
from tests.support.faulty_s3 import BUCKET, SILENCE, FaultyS3, faulty_s3, set_credentials

OPERATIONS: dict[str, Callable[[Storage], Any]] = {
    "read": lambda storage: storage.read("folder/file"),
    "write": lambda storage: storage.write("folder/file", b"x"),
    "names": lambda storage: storage.names("folder"),
    "delete": lambda storage: storage.delete("folder/file"),
}
NO_BUCKET = (404, "NoSuchBucket")
REFUSALS = [
    *((403, name) for name in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AccountProblem")),
    *((403, name) for name in ("AllAccessDisabled", "QuotaExceeded", "InvalidObjectState")),
    *((400, name) for name in ("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "EntityTooLarge")),
    *((507, name) for name in ("InsufficientStorage", "XMinioStorageFull")),
    *(NO_BUCKET, (405, "MethodNotAllowed"), (301, "PermanentRedirect")),
]
PASSING = [(503, "SlowDown"), (500, "InternalError"), (403, "RequestTimeTooSkewed"), (400, "RequestTimeout")]
PASSING += [(429, "TooManyRequests"), (409, "OperationAborted")]


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    with faulty_s3() as server:
        yield server


@pytest.fixture
def s3(server: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    set_credentials(monkeypatch)
    monkeypatch.setattr(buckets, "_ATTEMPTS", 1)
    yield server
    server.fault = lambda method, path: None


@pytest.mark.parametrize(
    ("answer", "operation"),
    # S3 says only "not found" to a question about an object in no bucket; whoever lists or writes learns more.
    [(a, o) for a in REFUSALS for o in OPERATIONS if a != NO_BUCKET or o in ("write", "names")],
    ids=str,
)
def test_a_bucket_that_refuses_is_told_from_one_that_fails(
    s3: FaultyS3, answer: tuple[int, str], operation: str
) -> None:
    storage = Storage.open(s3.url("refused"))
    storage.write("folder/file", b"x")
    s3.fault = lambda method, path: answer
    with pytest.raises(Refused) as caught:
        OPERATIONS[operation](storage)
    assert is_refused(caught.value)
    assert fault_of_exception(caught.value).kind == "storage"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("answer", PASSING, ids=str)
def test_what_may_pass_is_no_refusal(s3: FaultyS3, answer: tuple[int, str], operation: str) -> None:
    storage = Storage.open(s3.url("passing"))
    storage.write("folder/file", b"x")
    s3.fault = lambda method, path: answer
    with pytest.raises(OSError, match="AWS Error") as caught:
        OPERATIONS[operation](storage)
    assert not is_refused(caught.value)
    assert fault_of_exception(caught.value).kind == "machine"


def test_a_wrong_key_says_so_where_only_a_listing_tells_it(s3: FaultyS3) -> None:
    storage = Storage.open(s3.url("explained"))
    s3.fault = lambda method, path: (400, "ExpiredToken")
    with pytest.raises(Refused, match="ExpiredToken"):
        storage.read("folder/file")


def test_a_bucket_that_goes_away_is_no_empty_folder(s3: FaultyS3) -> None:
    storage = Storage.open(s3.url("x").replace(BUCKET, "no-such-bucket", 1))
    with pytest.raises(Refused, match="there is no bucket 'no-such-bucket'"):
        storage.names("journal")
    with pytest.raises(StorageError, match="there is no bucket 'no-such-bucket'"):
        storage.check_readable()


def test_an_s3_that_never_answers_is_given_up(s3: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "LIMIT_S", 0.5)
    monkeypatch.setattr(buckets, "CHECK_LIMIT_S", 0.5)
    storage = Storage.open(s3.url("silent"))
    s3.fault = lambda method, path: SILENCE
    for name, operation in OPERATIONS.items():
        with pytest.raises(NoAnswer, match=r"no answer within \d s") as caught:
            operation(storage)
        assert not is_refused(caught.value), name
    with pytest.raises(StorageError, match="cannot be written: no answer within"):
        storage.check_writable()


# --- Google and Azure: servers that answer everything with one error, or never ---------------------------------------


class _Answering(BaseHTTPRequestHandler):
    """Answers every request with the server's `answer`: a status and a body; None never answers."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, code = self.server.answer  # pyright: ignore[reportAttributeAccessIssue]
        google = {"error": {"code": status, "message": "no", "errors": [{"reason": code, "message": "no"}]}}
        body = b"" if self.command == "HEAD" else json.dumps(google).encode()
        self.send_response_only(status)
        self.send_header("x-ms-error-code", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def answering() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answering) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def google(port: int) -> str:
    return f"gs://anonymous@{BUCKET}/x?endpoint_override=127.0.0.1:{port}&scheme=http"


def azure(port: int) -> str:
    places = f"blob_storage_authority=127.0.0.1:{port}&dfs_storage_authority=127.0.0.1:{port}"
    return f"abfs://{BUCKET}@account/x?{places}&enable_tls=false&credential_kind=anonymous"


@pytest.mark.parametrize(
    ("url", "answer"),
    [(url, (status, "no")) for url in (google, azure) for status in (400, 401, 403, 413)] + [(azure, (507, "full"))],
)
def test_other_buckets_that_refuse(
    answering: ThreadingHTTPServer, url: Callable[[int], str], answer: tuple[int, str]
) -> None:
    storage = Storage.open(url(answering.server_address[1]))
    answering.answer = answer  # pyright: ignore[reportAttributeAccessIssue]
    for operation in OPERATIONS.values():
        with pytest.raises(Refused):
            operation(storage)


@pytest.mark.parametrize("url", [google, azure])
def test_other_buckets_that_are_not_there(answering: ThreadingHTTPServer, url: Callable[[int], str]) -> None:
    storage = Storage.open(url(answering.server_address[1]))
    answering.answer = (404, "NotFound")  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("write", "names"):
        with pytest.raises(Refused):
            OPERATIONS[name](storage)


@pytest.mark.parametrize("url", [google, azure])
def test_a_conflict_passes(answering: ThreadingHTTPServer, url: Callable[[int], str]) -> None:
    storage = Storage.open(url(answering.server_address[1]))
    answering.answer = (409, "conflict")  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(OSError, match=r"(?i)conflict|aborted") as caught:
        storage.write("file", b"x")
    assert not is_refused(caught.value)
