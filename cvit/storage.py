"""A storage holds files under one root: a local folder, or a URL that pyarrow opens (s3://, gs://, file://).

Writes are atomic: a reader sees the old content or the new one, never a mixture. A local file is written under another
name beside its target, flushed to the disk and renamed. An object store publishes an object only when its upload is
complete.

A *record* is a JSON object on one line after a checksum, so that torn and altered lines are noticed.
"""

import hashlib
import json
import os
import re
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow.fs as pafs

from cvit.errors import one_line
from cvit.redaction import redacted
from cvit.storage_urls import spelling_error

_WITH_BUCKETS = ("s3", "gcs", "abfs")
"""The file systems of Arrow whose paths begin with a bucket."""
_ATTEMPTS = 8
"""The number of tries of a request to S3 that fails for a passing reason; with growing pauses, about 40 s in all."""


class StorageError(Exception):
    """The storage cannot be opened, read or written; the message is one line that names the storage."""


def checksum(data: bytes) -> str:
    """SHA-256 of the data, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def encode_record(record: dict[str, Any]) -> bytes:
    """The record as one line: 16 hexadecimal digits of the JSON text's SHA-256, a space, the JSON text, a newline."""
    text = json.dumps(record, separators=(",", ":"), sort_keys=True).encode()
    return checksum(text)[:16].encode() + b" " + text + b"\n"


def decode_records(data: bytes) -> list[dict[str, Any]]:
    """The records of all whole lines; torn and altered lines are left out."""
    records = []
    for line in data.splitlines():
        digest, _, text = line.partition(b" ")
        if digest.decode(errors="replace") == checksum(text)[:16]:
            records.append(json.loads(text))
    return records


@dataclass(frozen=True)
class Storage:
    """Files below `url`. Paths are relative to it, with forward slashes."""

    url: str
    _filesystem: pafs.FileSystem = field(repr=False, compare=False)
    _root: str = field(repr=False, compare=False)

    @classmethod
    def open(cls, url: str) -> Self:
        """Opens a folder or a filesystem URL without creating or reading anything there.

        Raises:
            StorageError: the URL is empty or misspelt, its scheme is unknown, its options are wrong, it names no
                bucket, or it contains a key, which would appear in logs and process lists.
        """
        if (rule := spelling_error(url)) is not None:
            raise StorageError(redacted(f"storage {url!r} is not valid: {rule}"))
        if re.match(r"\w+://[^/@]*:[^@]*@", url):
            raise StorageError(redacted(f"storage {url!r} holds a key: give it to AWS_ACCESS_KEY_ID and so on instead"))
        try:
            if "://" in url:
                filesystem, root = pafs.FileSystem.from_uri(url)
                if not root and filesystem.type_name in _WITH_BUCKETS:
                    raise ValueError("it names no bucket, as in s3://bucket/folder")
                if isinstance(filesystem, pafs.S3FileSystem):
                    filesystem = _patient(filesystem)
            else:
                url = str(Path(url).expanduser().absolute())
                filesystem, root = pafs.LocalFileSystem(), url
        except (OSError, ValueError, NotImplementedError, RuntimeError) as error:
            raise StorageError(_message(url, "opened", error)) from error
        return cls(url, filesystem, root.rstrip("/"))

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage.open, (self.url,)

    @property
    def is_local(self) -> bool:
        return isinstance(self._filesystem, pafs.LocalFileSystem)

    def _path(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise StorageError(f"{path!r} is no path inside a storage")
        return f"{self._root}/{path}" if path else self._root

    def check_writable(self) -> None:
        """Checks that files can be written, and leaves nothing behind.

        Raises:
            StorageError: files cannot be written.
        """
        try:
            if self.is_local and not os.path.exists(self._root):
                folder = Path(self._root)
                while not folder.exists():
                    folder = folder.parent
                if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
                    raise PermissionError(f"{folder} is not a folder that can be written")
                return
            # The file system without retries, so that a mistyped endpoint does not cost a minute.
            at_once = self if self.is_local else Storage(self.url, pafs.FileSystem.from_uri(self.url)[0], self._root)
            probe = f".probe-{uuid.uuid4().hex}"
            at_once.write(probe, b"cvit")
            at_once.delete(probe)
        except OSError as error:
            raise StorageError(_message(self.url, "written", error)) from error

    def read(self, path: str) -> bytes:
        """The file's content.

        Raises:
            FileNotFoundError: there is no such file.
        """
        place = self._path(path)
        while True:
            with self._filesystem.open_input_file(place) as file:  # one request for the size, one for the content
                data = file.read()
            # If another writer replaces the object between the two requests, a longer one is cut off: read again.
            if self.is_local or self._filesystem.get_file_info(place).size == len(data):
                return data

    def write(self, path: str, data: bytes) -> None:
        """Writes the whole file at once, atomically, and creates folders as needed."""
        target = self._path(path)
        if not self.is_local:
            with self._filesystem.open_output_stream(target) as stream:
                stream.write(data)
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        beside = f"{target}.{uuid.uuid4().hex}.partial"
        try:
            with open(beside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        finally:
            if os.path.exists(beside):
                os.unlink(beside)

    def append_local(self, path: str, data: bytes) -> None:
        """Appends to a local file and flushes it to the disk; object stores cannot append."""
        target = self._path(path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def delete(self, path: str) -> None:
        """Removes a file; a missing file is no error."""
        try:
            self._filesystem.delete_file(self._path(path))
        except FileNotFoundError:
            return

    def delete_others(self, folder: str, kept: set[str]) -> None:
        """Removes all files directly in a folder except the named ones, including partial files of killed writers."""
        for info in self._filesystem.get_file_info(pafs.FileSelector(self._path(folder), allow_not_found=True)):
            if info.is_file and info.base_name not in kept:
                self.delete(f"{folder}/{info.base_name}")

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files and folders directly in a folder; empty if there is no such folder."""
        selector = pafs.FileSelector(self._path(folder), allow_not_found=True)
        names = (info.base_name for info in self._filesystem.get_file_info(selector))
        return sorted(name for name in names if name and not name.endswith(".partial"))


def _patient(filesystem: pafs.S3FileSystem) -> pafs.S3FileSystem:
    """The file system with AWS's own strategy for failed requests. Arrow's default, which a URL cannot change, gives up
    after 6 s of broken connections and after 1.4 s of "slow down"."""
    _, (options,) = filesystem.__reduce__()
    return pafs.S3FileSystem(**options, retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS))


def _message(url: str, done: str, error: BaseException) -> str:
    """The error as one line, without the keys that a URL may contain."""
    return redacted(f"storage {url!r} cannot be {done}: {one_line(error)}")
