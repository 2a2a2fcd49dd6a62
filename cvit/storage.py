"""A storage holds files under one root: a local folder, or a URL that pyarrow opens (s3://, gs://, file://).

Writes are atomic: a reader sees the old content or the new one, never a mixture. `cvit/folders.py` and
`cvit/buckets.py` do the work. What a storage refuses for good raises `Refused`.

A *record* is a JSON object on one line after a checksum, so that torn and altered lines are noticed. It has a `format`,
the number of the version of everything that is stored; records without one have the first. The number is raised when
an older version would misread what a newer one writes.
"""

import contextlib
import hashlib
import io
import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow.fs as pafs

from cvit import buckets, folders
from cvit.buckets import without_waiting as without_waiting
from cvit.errors import Refused, one_line
from cvit.redaction import redacted
from cvit.storage_urls import spelling_error

FORMAT = 1
"""The format of everything that this version stores, and the latest that it reads."""


class StorageError(Exception):
    """The storage cannot be opened, read or written; the message is one line that names the storage."""


def checksum(data: bytes) -> str:
    """SHA-256 of the data, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def encode_record(record: dict[str, Any]) -> bytes:
    """The record as one line: 16 hexadecimal digits of the JSON text's SHA-256, a space, the JSON text, a newline."""
    text = json.dumps(record, separators=(",", ":"), sort_keys=True).encode()
    return checksum(text)[:16].encode() + b" " + text + b"\n"


def with_format(record: dict[str, Any]) -> dict[str, Any]:
    """The record as it is stored, with its format."""
    return record | {"format": FORMAT}


def check_format(record: dict[str, Any], path: str) -> None:
    """Raises Refused if a record is of a later version, which this one could misread."""
    number = record.get("format", 1)
    if not isinstance(number, int) or number > FORMAT:
        raise later_version(path, f"format {number!r}, and this version knows formats up to {FORMAT}")


def later_version(path: str, reason: str) -> Refused:
    """The error about a file that this version cannot read although its checksum is right."""
    return Refused(f"{path} was written by a later version of this program ({reason}): use that version")


def decode_records(data: bytes) -> list[dict[str, Any]]:
    """The records of all whole lines; torn and altered lines are left out."""
    return list(each_record(data))


def each_record(data: bytes) -> Iterator[dict[str, Any]]:
    """The records of all whole lines, one after another: those of a large journal take ten times its size."""
    for line in io.BytesIO(data):
        digest, _, text = line.rstrip(b"\r\n").partition(b" ")
        if digest.decode(errors="replace") == checksum(text)[:16]:
            with contextlib.suppress(ValueError, RecursionError):  # no JSON, but somebody's text with its checksum
                record = json.loads(text)
                if isinstance(record, dict):
                    yield record


@dataclass(frozen=True)
class Storage:
    """Files below `url`. Paths are relative to it, with forward slashes.

    Every operation raises Refused for what trying again cannot mend, and another OSError for what may pass.
    """

    url: str
    _root: str = field(repr=False, compare=False)
    _filesystem: pafs.FileSystem | None = field(repr=False, compare=False)

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
            if "://" not in url:
                url = str(Path(url).expanduser().absolute())
                return cls(url, url, None)
            filesystem, root = buckets.open_url(url)
            return cls(url, root, None if isinstance(filesystem, pafs.LocalFileSystem) else filesystem)
        except (OSError, ValueError, NotImplementedError, RuntimeError) as error:
            raise StorageError(_message(url, "opened", error)) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage.open, (self.url,)

    @property
    def is_local(self) -> bool:
        return self._filesystem is None

    def _place(self, path: str) -> str:
        """The path of an object in its bucket."""
        return f"{self._root}/{path}" if path else self._root

    def check_writable(self) -> None:
        """Checks within a minute or two that files can be written, and leaves nothing behind.

        Raises:
            StorageError: files cannot be written.
        """
        try:
            if self._filesystem is None:
                folders.check_writable(self._root)
            else:
                buckets.check_writable(self._filesystem, self._place(f".probe-{uuid.uuid4().hex}"))
        except OSError as error:
            raise StorageError(_message(self.url, "written", error)) from error

    def check_readable(self) -> None:
        """Checks within a minute that files can be read; a folder that is not yet there is empty.

        Raises:
            StorageError: files cannot be read.
        """
        try:
            if self._filesystem is None:
                folders.names(self._root, "")
            else:
                buckets.check_readable(self._filesystem, self._root)
        except OSError as error:
            raise StorageError(_message(self.url, "read", error)) from error

    def read(self, path: str) -> bytes:
        """The file's content.

        Raises:
            FileNotFoundError: there is no such file.
        """
        _check_path(path)
        if self._filesystem is None:
            return folders.read(self._root, path)
        return buckets.read(self._filesystem, self._place(path))

    def write(self, path: str, data: bytes) -> None:
        """Writes the whole file at once, atomically, and creates folders as needed."""
        _check_path(path)
        if self._filesystem is None:
            folders.write(self._root, path, data)
        else:
            buckets.write(self._filesystem, self._place(path), data)

    def append_local(self, path: str, data: bytes, *, must_exist: bool = False) -> None:
        """Appends to a local file, which it creates if needed, and flushes it to the disk; object stores cannot append.

        Args:
            must_exist: for a file that was there: if it is missing, the storage has been removed.
        """
        _check_path(path)
        folders.append(self._root, path, data, create=not must_exist)

    def delete(self, path: str) -> None:
        """Removes a file; a missing file is no error."""
        _check_path(path)
        if self._filesystem is None:
            folders.delete(self._root, path)
        else:
            buckets.delete(self._filesystem, self._place(path))

    def delete_matching(self, folder: str, pattern: re.Pattern[str]) -> None:
        """Removes the files directly in a folder whose names match, and what killed writers left of such files."""
        for name in self._all_names(folder):
            partial = folders.PARTIAL.fullmatch(name)
            if pattern.fullmatch(partial["name"] if partial else name):
                self.delete(f"{folder}/{name}")

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files and folders directly in a folder; empty if there is no such folder."""
        return sorted(name for name in self._all_names(folder) if name and not folders.PARTIAL.fullmatch(name))

    def _all_names(self, folder: str) -> list[str]:
        _check_path(folder)
        if self._filesystem is None:
            return folders.names(self._root, folder)
        return buckets.names(self._filesystem, self._place(folder))


def _check_path(path: str) -> None:
    if path.startswith("/") or ".." in path.split("/"):
        raise StorageError(f"{path!r} is no path inside a storage")


def _message(url: str, done: str, error: BaseException) -> str:
    """The error as one line, without the keys that a URL may contain."""
    return redacted(f"storage {url!r} cannot be {done}: {one_line(error)}")
