"""Files below a local folder, its root: written whole or not at all, kept after a power cut, never reached by a link.

Every folder on the way from the root to a file is opened relative to the one above it, and links are refused, so that
nobody who can write in the storage leads a sweep to files elsewhere. The root itself may be a link. A file is written
under another name beside its target, flushed to the disk and renamed; then the folder is flushed, because a rename is
kept only when the folder is.
"""

import contextlib
import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

from cvit.errors import Refused

PARTIAL = re.compile(r"(?P<name>.+)\.[0-9a-f]{32}\.partial")
"""The name of a half-written file, and the name that it was to get."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NOT_FLUSHABLE = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}
"""The errors of file systems that cannot flush a folder."""


def check_writable(root: str) -> None:
    """Checks that files can be written, or that the root can be created; leaves nothing behind.

    Raises:
        OSError: files cannot be written.
    """
    if os.path.lexists(root):
        probe = f".probe-{uuid.uuid4().hex}"
        write(root, probe, b"cvit")
        delete(root, probe)
        return
    folder = Path(root)
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} is not a folder that can be written")


def read(root: str, path: str) -> bytes:
    """The file's content. Raises FileNotFoundError if there is no such file."""
    flags = os.O_RDONLY | os.O_NONBLOCK  # opening a pipe would hang
    with _folder_of(root, path) as (folder, name), open(_opened(folder, name, path, flags), "rb") as file:
        return file.read()


def write(root: str, path: str, data: bytes) -> None:
    """Writes the whole file, and creates folders as needed."""
    with _noticing_removal(path), _folder_of(root, path, create=True) as (folder, name):
        _refuse_unless_file(folder, name, path)
        beside = f"{name}.{uuid.uuid4().hex}.partial"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(beside, flags, 0o666, dir_fd=folder), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside, dir_fd=folder)
        _flush(folder)


def append(root: str, path: str, data: bytes, create: bool) -> None:
    """Appends to a file and flushes it to the disk.

    Args:
        create: creates the file if it is missing; otherwise that raises Refused.
    """
    with _noticing_removal(path), _folder_of(root, path, create=create) as (folder, name):
        flags = os.O_WRONLY | os.O_APPEND | (os.O_CREAT if create else 0)
        with open(_opened(folder, name, path, flags), "ab") as file:
            is_new = file.tell() == 0
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            _flush(folder)


def delete(root: str, path: str) -> None:
    """Removes a file; a missing file is no error."""
    with contextlib.suppress(FileNotFoundError), _folder_of(root, path) as (folder, name):
        _refuse_unless_file(folder, name, path)
        os.unlink(name, dir_fd=folder)


def names(root: str, path: str) -> list[str]:
    """The names of everything directly in a folder; empty if there is no such folder."""
    try:
        with _folder(root, path.split("/") if path else []) as folder:
            return os.listdir(folder)
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def _noticing_removal(path: str) -> Iterator[None]:
    """Raises Refused if a folder or file goes away while it is written. Nothing in this project removes folders, so
    somebody has removed or moved the storage, or its disk is gone."""
    try:
        yield
    except FileNotFoundError as error:
        raise Refused(f"{path} was removed while the sweep ran") from error


@contextlib.contextmanager
def _folder_of(root: str, path: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
    """The open folder of a file, and the file's name in it."""
    *parents, name = path.split("/")
    with _folder(root, parents, create=create) as folder:
        yield folder, name


@contextlib.contextmanager
def _folder(root: str, parts: list[str], *, create: bool = False) -> Iterator[int]:
    """An open folder below the root."""
    try:
        if create:
            _make_root(Path(root))
        folder = os.open(root, _FOLDER)
    except (NotADirectoryError, FileExistsError) as error:
        raise Refused(f"{root} is not a folder") from error
    try:
        for depth, part in enumerate(parts, start=1):
            if create:
                _make(folder, part)
            below = _opened_folder(folder, part, "/".join(parts[:depth]))
            os.close(folder)
            folder = below
        yield folder
    finally:
        os.close(folder)


def _make_root(root: Path) -> None:
    if not root.is_dir():
        _make_root(root.parent)
        root.mkdir(exist_ok=True)
        with _folder(str(root.parent), []) as folder:
            _flush(folder)


def _make(folder: int, name: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=folder)
        _flush(folder)


def _opened_folder(folder: int, name: str, path: str) -> int:
    try:
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        is_link = stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
        raise Refused(
            f"{path} is a {'link, and links are not followed' if is_link else 'file, not a folder'}"
        ) from error


def _opened(folder: int, name: str, path: str, flags: int) -> int:
    """A regular file, opened."""
    _refuse_unless_file(folder, name, path)
    return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=folder)


def _refuse_unless_file(folder: int, name: str, path: str) -> None:
    """Raises Refused if a name stands for something else than a regular file; a missing one is no error."""
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise Refused(f"{path} is a link, and links are not followed")
    if not stat.S_ISREG(mode):
        raise Refused(f"{path} is a {'folder' if stat.S_ISDIR(mode) else 'special file'}, not a file")


def _flush(folder: int) -> None:
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in _NOT_FLUSHABLE:
            raise
