"""Files under one root that is a local folder or any filesystem URL that pyarrow opens (s3://, gs://, file://).

Writes are atomic: a reader sees the old content or the new, never a torn one. Local files are written beside their
place, flushed to the disk and renamed; object stores publish an object only when its upload is complete.

A *record* is a JSON object on one line, preceded by a checksum, so that a torn or altered line is noticed.
"""

import hashlib
import json
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow.fs as pafs


class StorageError(Exception):
    """The storage cannot be opened, read or written; the message is one line that names it."""


def checksum(data: bytes) -> str:
    """SHA-256 of the data, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def encode_record(record: dict[str, Any]) -> bytes:
    """One line: 16 hexadecimal digits of the JSON text's SHA-256, a space, the JSON text, a newline."""
    text = json.dumps(record, separators=(",", ":"), sort_keys=True).encode()
    return checksum(text)[:16].encode() + b" " + text + b"\n"


def decode_records(data: bytes) -> list[dict[str, Any]]:
    """The records whose line is whole; torn and altered lines are left out."""
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
            StorageError: the URL's scheme is unknown or its options are wrong.
        """
        try:
            if "://" in url:
                filesystem, root = pafs.FileSystem.from_uri(url)
            else:
                url = str(Path(url).expanduser().absolute())
                filesystem, root = pafs.LocalFileSystem(), url
        except (OSError, ValueError, NotImplementedError, RuntimeError) as error:
            raise StorageError(f"storage {url!r} cannot be opened: {_one_line(error)}") from error
        return cls(url, filesystem, root.rstrip("/"))

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage.open, (self.url,)

    @property
    def is_local(self) -> bool:
        return isinstance(self._filesystem, pafs.LocalFileSystem)

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def check_writable(self) -> None:
        """Finds out whether files could be written, leaving nothing behind.

        Raises:
            StorageError: they could not.
        """
        try:
            if self.is_local and not os.path.exists(self._root):
                folder = Path(self._root)
                while not folder.exists():
                    folder = folder.parent
                if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
                    raise PermissionError(f"{folder} is not a folder that can be written")
                return
            probe = f".probe-{uuid.uuid4().hex}"
            self.write(probe, b"cvit")
            self.delete(probe)
        except OSError as error:
            raise StorageError(f"storage {self.url!r} cannot be written: {_one_line(error)}") from error

    def read(self, path: str) -> bytes:
        """The file's content. Raises FileNotFoundError where there is none."""
        with self._filesystem.open_input_stream(self._path(path)) as stream:
            return stream.read()

    def write(self, path: str, data: bytes) -> None:
        """Writes the whole file at once, atomically; folders are made as needed."""
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
        """Appends to a local file and flushes it to the disk (object stores cannot append)."""
        target = self._path(path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def delete(self, path: str) -> None:
        """Removes a file; one that is not there is no error."""
        try:
            self._filesystem.delete_file(self._path(path))
        except FileNotFoundError:
            return

    def delete_others(self, folder: str, kept: set[str]) -> None:
        """Removes all files directly in a folder but those named, what killed writers left there included."""
        for info in self._filesystem.get_file_info(pafs.FileSelector(self._path(folder), allow_not_found=True)):
            if info.is_file and info.base_name not in kept:
                self.delete(f"{folder}/{info.base_name}")

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files and folders directly in a folder; empty where there is none."""
        selector = pafs.FileSelector(self._path(folder), allow_not_found=True)
        names = (info.base_name for info in self._filesystem.get_file_info(selector))
        return sorted(name for name in names if name and not name.endswith(".partial"))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
