"""Files in a bucket of S3, Google Cloud Storage or Azure, through Arrow.

Arrow's requests do not end when a signal comes, and some never end. So each runs in a thread of its own and has a
time limit. Arrow reports most errors by text alone; here those that trying again cannot mend become `Refused`.
"""

import contextlib
import functools
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from cvit.errors import NoAnswer, Refused, one_line

T = TypeVar("T")

CHECK_LIMIT_S = 30.0
"""The time limit for opening a bucket, and for checking it."""
LIMIT_S = 120.0
"""The time limit for any other request, besides a second for each `BYTES_PER_S` that it sends or receives."""
BYTES_PER_S = 100_000
_WITH_BUCKETS = ("s3", "gcs", "abfs")
"""The file systems of Arrow whose paths begin with a bucket."""
_ATTEMPTS = 8
"""The number of tries of a request to S3 that fails for a passing reason; with growing pauses, about 40 s in all."""
_SILENCE_S = 10.0
"""The time after which a try fails if S3 accepts no connection or sends nothing."""
_PATIENCE_S = 60
"""The time for which Arrow repeats a request to Google Cloud Storage; its default is 15 minutes."""
_AT_ONCE = (2, 1)
"""Tries and seconds of patience of a check, so that a mistyped endpoint costs a few seconds."""
_GRACE_S = 0.2
"""The time that a process that ends gives to each request under way."""
_THREAD = "storage request"

_ERRORS = (
    re.compile(
        r"AWS Error (?P<name>\w+|\[code \d+\])(?: \(HTTP status (?P<status>\d+)\))? during \w+ operation:"
        r"(?: Unable to parse ExceptionName: (?P<code>[\w.]+))?"
    ),
    re.compile(r"google::cloud::Status\((?P<name>\w+):(?:.*?http_status_code=(?P<status>\d+))?", re.DOTALL),
    re.compile(r"Azure Error: \[(?P<name>\w*)\] (?P<status>\d{3}) "),
)
"""The texts of Arrow's errors, per kind of bucket."""
_DETAILS = re.compile(r" error_info=\{.*\}\)")
"""A part of Google's texts that says everything again."""
_PASSING_STATUS = {408, 409, 412, 425, 429}
"""Answers to a request that may be right a moment later, among those that say that the request was wrong."""
_REFUSING_STATUS = {301, 307, 501, 507}
"""Answers that say that the bucket is elsewhere, cannot do what is asked, or is full."""
_PASSING_NAMES = {"RequestTimeout", "RequestTimeTooSkewed", "RequestExpired", "NoSuchUpload"}
_REFUSING_NAMES = {
    *("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "INVALID_CLIENT_TOKEN_ID", "INVALID_SIGNATURE", "NO_SUCH_BUCKET"),
    *("INCOMPLETE_SIGNATURE", "MISSING_AUTHENTICATION_TOKEN", "OPT_IN_REQUIRED", "SIGNATURE_DOES_NOT_MATCH"),
    *("UNRECOGNIZED_CLIENT", "INVALID_ACTION", "INVALID_PARAMETER_VALUE", "VALIDATION", "[code 133]"),
    *("INVALID_ARGUMENT", "OUT_OF_RANGE", "PERMISSION_DENIED", "UNAUTHENTICATED"),
}
"""Errors of S3 and of Google that come without a status; [code 133] is InvalidObjectState, of an archived object."""


def open_url(url: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URL, and the path in it, without a slash at its end.

    Raises:
        OSError, ValueError, NotImplementedError: the URL is wrong, or the region of its bucket cannot be found out.
    """

    def opened() -> tuple[pafs.FileSystem, str]:
        filesystem, root = pafs.FileSystem.from_uri(url)
        return _patient(filesystem, _ATTEMPTS, _PATIENCE_S), root.rstrip("/")

    filesystem, root = _ask(opened, CHECK_LIMIT_S)
    if not root and filesystem.type_name in _WITH_BUCKETS:
        raise ValueError("it names no bucket, as in s3://bucket/folder")
    return filesystem, root


def check_writable(filesystem: pafs.FileSystem, probe: str) -> None:
    """Checks within `CHECK_LIMIT_S` that files can be written; leaves nothing behind."""

    def written_and_deleted() -> None:
        at_once = _patient(filesystem, *_AT_ONCE)
        _write(at_once, probe, b"cvit")
        at_once.delete_file(probe)

    _ask(written_and_deleted, CHECK_LIMIT_S)


def check_readable(filesystem: pafs.FileSystem, folder: str) -> None:
    """Checks within `CHECK_LIMIT_S` that a folder can be listed, or that its bucket is there."""

    def listed() -> bool:
        return bool(_patient(filesystem, *_AT_ONCE).get_file_info(_listing(folder)))

    if not _ask(listed, CHECK_LIMIT_S):
        _check_bucket(filesystem, folder)


def read(filesystem: pafs.FileSystem, place: str) -> bytes:
    """The object's content. Raises FileNotFoundError if there is no such object."""
    while True:
        with _explained(filesystem, place):
            file = _ask(lambda: filesystem.open_input_file(place), LIMIT_S)  # asks for the size
            data = _ask(functools.partial(_content, file), LIMIT_S + file.size() / BYTES_PER_S)
        # If another writer replaces the object between two requests, a longer one is cut off: read again.
        if _ask(lambda: filesystem.get_file_info(place).size, LIMIT_S) == len(data):
            return data


def write(filesystem: pafs.FileSystem, place: str, data: bytes) -> None:
    """Writes the whole object; a reader sees the old content or the new one."""
    try:
        _ask(lambda: _write(filesystem, place, data), LIMIT_S + len(data) / BYTES_PER_S)
    except FileNotFoundError as error:  # by which Google and Azure say that there is no such bucket
        raise Refused(one_line(error)) from error


def delete(filesystem: pafs.FileSystem, place: str) -> None:
    """Removes an object; a missing object is no error."""
    with contextlib.suppress(FileNotFoundError), _explained(filesystem, place):
        _ask(lambda: filesystem.delete_file(place), LIMIT_S)


def names(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    """The names of everything directly in a folder. Raises Refused if the bucket is missing."""
    found = [info.base_name for info in _ask(lambda: filesystem.get_file_info(_listing(folder)), LIMIT_S)]
    if not found:
        _check_bucket(filesystem, folder)
    return found


@contextlib.contextmanager
def without_waiting() -> Iterator[None]:
    """Lets SystemExit end the process at once, even if a request that was given up is still under way: Arrow's own end
    would wait for it."""
    try:
        yield
    except SystemExit as end:
        requests = [thread for thread in threading.enumerate() if thread.name == _THREAD]
        for thread in requests:
            thread.join(_GRACE_S)
        if any(thread.is_alive() for thread in requests):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        raise


def _ask(operation: Callable[[], T], limit_s: float) -> T:
    """Makes a request of Arrow's.

    Raises:
        NoAnswer: there is no answer within the limit. The request goes on in its thread.
        FileNotFoundError: there is no such object, or no such bucket.
        Refused: it is not granted.
        OSError: it failed, and may succeed later.
    """
    answers: queue.SimpleQueue[tuple[T, None] | tuple[None, Exception]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((operation(), None))
        # Whatever it is, it is raised in the thread that asked.
        except Exception as error:  # noqa: BLE001
            answers.put((None, error))

    threading.Thread(target=run, name=_THREAD, daemon=True).start()
    try:
        result, error = answers.get(timeout=limit_s)
    except queue.Empty:
        raise NoAnswer(f"no answer within {limit_s:.0f} s") from None
    if error is not None:
        raise _typed(error)
    return result  # pyright: ignore[reportReturnType]


def _typed(error: Exception) -> Exception:
    """The error of a request as FileNotFoundError, Refused or another OSError; any other exception as it is."""
    if isinstance(error, FileNotFoundError) or not isinstance(error, OSError | pa.ArrowException):
        return error
    text = one_line(error)
    brief = _DETAILS.sub(")", text)
    found = next((match for pattern in _ERRORS if (match := pattern.search(text))), None)
    parts = found.groupdict() if found else {}
    name, status = parts.get("code") or parts.get("name") or "", int(parts.get("status") or 0)
    if name in ("NO_SUCH_KEY", "NoSuchKey"):  # deleted between two requests of one operation
        return FileNotFoundError(text)
    says_no = 400 <= status < 500 and status not in _PASSING_STATUS and name not in _PASSING_NAMES
    if says_no or status in _REFUSING_STATUS or name in _REFUSING_NAMES:
        return Refused(brief)
    return error if isinstance(error, OSError) and brief == text else OSError(brief)


@contextlib.contextmanager
def _explained(filesystem: pafs.FileSystem, place: str) -> Iterator[None]:
    """Finds out why S3 refuses. Its answer to a question about an object has no reason, so that a denial and a wrong
    clock, which passes, look alike; its answer to a listing has one."""
    try:
        yield
    except Refused as error:
        if "No response body" in str(error):
            names(filesystem, place.rpartition("/")[0])
        raise


def _check_bucket(filesystem: pafs.FileSystem, place: str) -> None:
    """Raises Refused if a bucket is missing. Arrow lists a missing bucket as an empty folder."""
    bucket = place.partition("/")[0]
    try:
        kind = _ask(lambda: filesystem.get_file_info(bucket).type, LIMIT_S)
    except Refused:  # not everybody who may use a bucket may ask about it
        return
    if filesystem.type_name in _WITH_BUCKETS and kind == pafs.FileType.NotFound:
        raise Refused(f"there is no bucket {bucket!r}")


def _patient(filesystem: pafs.FileSystem, attempts: int, seconds: int) -> pafs.FileSystem:
    """The file system with time limits and retries of our choice, which a URL cannot change. Arrow's defaults for S3
    give up after 6 s of broken connections and after 1.4 s of "slow down", and for Google after 15 minutes."""
    options: dict[str, Any]
    match filesystem:
        case pafs.S3FileSystem():
            _, (options,) = filesystem.__reduce__()
            options |= {"connect_timeout": _SILENCE_S, "request_timeout": _SILENCE_S}
            return pafs.S3FileSystem(**options, retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=attempts))
        case pafs.GcsFileSystem():
            _, (options,) = filesystem.__reduce__()
            return pafs.GcsFileSystem(**options | {"retry_time_limit": timedelta(seconds=seconds)})
        case _:
            return filesystem


def _listing(folder: str) -> pafs.FileSelector:
    return pafs.FileSelector(folder, allow_not_found=True)


def _content(file: pa.NativeFile) -> bytes:
    with file:
        return file.read()


def _write(filesystem: pafs.FileSystem, place: str, data: bytes) -> None:
    with filesystem.open_output_stream(place) as stream:
        stream.write(data)
