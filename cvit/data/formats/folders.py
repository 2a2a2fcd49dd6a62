"""Image data sets in folders: one folder per class, below `train` and `test` or directly in the data set's folder."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cvit.data.formats import Format, Place
from cvit.data.images import DataError
from cvit.data.stored import EncodedPart, Stored, hash_files
from cvit.errors import one_line

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
_TEST_FOLDERS = ("test", "val", "valid", "validation")


@dataclass(frozen=True, eq=False)
class FolderPart(EncodedPart):
    """Images with one file each."""

    files: tuple[Path, ...]

    def batches(self, size: int) -> Iterator[Sequence[bytes]]:
        for start in range(0, len(self.files), size):
            yield [_read(path) for path in self.files[start : start + size]]

    def name_of(self, index: int) -> str:
        return str(self.files[index])


def open_image_folder(place: Place) -> Stored | None:
    """Lists the images of a folder; None if there is no folder, or no class folder in it holds any image.

    Raises:
        DataError: as for `read_image_folder`.
    """
    return read_image_folder(place.path) if place.path is not None and place.path.is_dir() else None


def read_image_folder(folder: Path) -> Stored | None:
    """Lists a folder's images; None if no class folder holds any.

    With `<folder>/train` the classes are its folders, and the test images are in `test` (else `val`, `valid` or
    `validation`), in folders of the same names. Without it the classes are the folders of `folder` itself, one pool
    without test images of its own. Other files and hidden files are ignored.

    Raises:
        DataError: the test images have a class that the training images lack.
    """
    train_folder = folder / "train" if (folder / "train").is_dir() else folder
    train = _classes(train_folder)
    if not train:
        return None
    test: dict[str, list[Path]] = {}
    if train_folder != folder:
        test = next(filter(None, (_classes(folder / name) for name in _TEST_FOLDERS)), {})
    if unknown := sorted(set(test) - set(train)):
        raise DataError(f"{folder} has test images of class {unknown[0]!r}, which no training image has")
    names = tuple(train)
    files = [path for part in (train, test) for paths in part.values() for path in paths]
    content = hash_files((path.relative_to(folder).as_posix(), path) for path in files)
    return Stored(_part(train, names), _part(test, names) if test else None, names, content)


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The sorted image files of each class, in the order of the class names; classes without images are left out."""
    if not folder.is_dir():
        return {}
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    classes = {name: sorted(_images(folder / name)) for name in names}
    return {name: files for name, files in classes.items() if files}


def _images(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(place, name)


def _part(classes: dict[str, list[Path]], names: Sequence[str]) -> FolderPart:
    labels = [np.full(len(files), names.index(name), np.int64) for name, files in classes.items()]
    return FolderPart(np.concatenate(labels), tuple(path for files in classes.values() for path in files))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error


FORMAT = Format(open=open_image_folder, order=60, paths=("an image folder",), contents="class folders with images")
