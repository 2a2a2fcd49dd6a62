"""Image data sets in folders: one folder per class, in a folder for each split or directly in the data set's folder."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cvit.data.class_folders import SUFFIXES, Listing, Parts, list_images, without_doubles
from cvit.data.folder_layout import Labelled, Layout, find_layout
from cvit.data.formats import Format, Place
from cvit.data.images import DataError
from cvit.data.stored import EncodedPart, Stored, digest_of_names
from cvit.errors import counted, one_line, some_of

_OTHER_IMAGES = frozenset((".jfif", ".jpe", ".jp2", ".ppm", ".pgm", ".pnm", ".avif", ".heic", ".svg", ".eps"))


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
    """Lists a folder's images and reads their contents; None if no class folder holds any.

    `find_layout` tells which folders are the classes, and which hold training and test images. Other files and hidden
    files are passed over; the notes count the former.

    Raises:
        DataError: the layout leaves a choice, the test images have a class that the training images lack, or a file
            cannot be read.
    """
    listing = list_images(folder)
    layout = find_layout(folder, listing)
    if layout is None:
        _refuse_other_images(folder, listing)
        return None
    classes = [_classes(part, listing) for part in (layout.train, layout.test) if part is not None]
    names = tuple(classes[0])
    if unknown := sorted(set(classes[-1]) - set(names)):
        raise DataError(f"{folder} has test images of class {unknown[0]!r}, which no training image has")
    parts = [_part(folder, part, names) for part in classes]
    content = digest_of_names(
        (path.relative_to(folder.joinpath(*layout.base)).as_posix(), digest)
        for part in parts
        for path, digest in zip(part.files, part.survey.digests, strict=True)
    )
    num_read = sum(len(part.files) for part in parts)
    notes = (*layout.notes, *_passed_over(layout, listing, num_read))
    return Stored(parts[0], parts[1] if len(parts) > 1 else None, names, content, notes)


def _classes(part: Labelled, listing: Listing) -> dict[str, list[Parts]]:
    """The sorted images of each class, in the order of the class names."""
    depth_of = dict(part.images)
    classes: dict[str, list[Parts]] = {}
    for parts in without_doubles(sorted(depth_of), listing):
        classes.setdefault(parts[depth_of[parts]], []).append(parts)
    return dict(sorted(classes.items()))


def _part(folder: Path, classes: dict[str, list[Parts]], names: Sequence[str]) -> FolderPart:
    labels = [np.full(len(files), names.index(name), np.int64) for name, files in classes.items()]
    files = (folder.joinpath(*parts) for paths in classes.values() for parts in paths)
    return FolderPart(np.concatenate(labels), tuple(files))


def _passed_over(layout: Layout, listing: Listing, num_read: int) -> list[str]:
    """Notes about the files and folders in use that hold no image that is read."""

    def is_used(parts: Parts) -> bool:
        return any(parts[: len(top)] == top for top in layout.used)

    labelled = [part for part in (layout.train, layout.test) if part is not None]
    notes = []
    if others := _by_suffix(filter(is_used, listing.others)):
        notes.append(f"passed over: {others}")
    if outside := layout.outside + sum(part.outside for part in labelled):
        notes.append(f"passed over: {counted(outside, 'image')} outside class folders")
    num_links = sum(len(part.images) for part in labelled) - num_read + len([*filter(is_used, listing.back_links)])
    if num_links:
        notes.append(f"passed over: {counted(num_links, 'link')} to what is listed already")
    if empty := _empty(layout, listing):
        notes.append(f"passed over: no image in {some_of(empty)}")
    return notes


def _empty(layout: Layout, listing: Listing) -> list[str]:
    """The folders beside the class folders that hold no image."""
    class_folders = {parts[: depth + 1] for parts, depth in layout.train.images}
    places = {folder[:-1] for folder in class_folders}
    empty = (folder for folder in listing.folders if folder[:-1] in places and folder not in class_folders)
    return ["/".join(folder[len(layout.base) :]) for folder in empty]


def _by_suffix(files: Iterable[Parts]) -> str:
    counts = Counter(Path(parts[-1]).suffix.lower() or "without suffix" for parts in files)
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))


def _refuse_other_images(folder: Path, listing: Listing) -> None:
    """Raises DataError if the folders hold images only of kinds that are not read."""
    others = [parts for parts in listing.others if Path(parts[-1]).suffix.lower() in _OTHER_IMAGES and len(parts) > 1]
    if others:
        raise DataError(f"{folder} holds {_by_suffix(others)}, which are not read: only {', '.join(sorted(SUFFIXES))}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error


FORMAT = Format(open=open_image_folder, order=60, paths=("an image folder",), contents="class folders with images")
