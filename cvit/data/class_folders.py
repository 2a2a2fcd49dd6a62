"""Lists the images below a folder: each file once, whatever links lead to it, and what is passed over beside them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cvit.data.images import DataError
from cvit.errors import one_line

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"))

Parts = tuple[str, ...]
"""A path below the folder, as its parts."""


@dataclass
class Listing:
    """The content of a folder; hidden files and folders are left out.

    Attributes:
        root: the folder, links resolved.
        suffixes: the endings of the names of images, in lower case.
        images: the images, sorted; the last part is the file's name.
        others: all other files.
        folders: all folders.
        back_links: links to folders that are listed already, or lie above.
        linked: the real places of images that a link leads to.
    """

    root: str
    suffixes: frozenset[str]
    images: list[Parts] = field(default_factory=list)
    others: list[Parts] = field(default_factory=list)
    folders: list[Parts] = field(default_factory=list)
    back_links: list[Parts] = field(default_factory=list)
    linked: dict[Parts, str] = field(default_factory=dict)


def list_images(root: Path, suffixes: frozenset[str] = SUFFIXES) -> Listing:
    """Lists a folder; files with one of the suffixes count as images. Below each folder in the root, no folder is
    listed twice, so that links in a circle end.

    Raises:
        DataError: a link leads nowhere, or a file or folder cannot be read.
    """
    listing = Listing(os.path.realpath(root), suffixes)
    above = real_and_above(root)
    try:
        for entry in _entries(root):
            if entry.is_dir():
                _list_below(listing, entry.name, entry.path, above.copy())
            else:
                _add_file(listing, (entry.name,), entry)
    except OSError as error:
        raise DataError(f"{root} cannot be read: {one_line(error)}") from error
    for paths in (listing.images, listing.others, listing.folders):
        paths.sort()
    return listing


def real_and_above(folder: Path) -> set[str]:
    """The real place of a folder, and all places above it: a link to one of them would lead round in a circle."""
    real = os.path.realpath(folder)
    return {real, *map(str, Path(real).parents)}


def without_doubles(images: list[Parts], listing: Listing) -> list[Parts]:
    """The images less links to images among them. A file in its own place comes before links to it."""
    if not listing.linked:
        return images
    taken: dict[str, Parts] = {}
    for parts in sorted(images, key=lambda parts: (parts in listing.linked, parts)):
        taken.setdefault(listing.linked.get(parts) or os.path.join(listing.root, *parts), parts)
    return sorted(taken.values())


def _list_below(listing: Listing, name: str, path: str, seen: set[str]) -> None:
    """Adds a folder and all below it. Folders in their own place come first, then those that links lead to."""
    waiting: list[tuple[Parts, str, bool]] = [((name,), path, os.path.islink(path))]
    links: list[tuple[Parts, str, bool]] = []
    while waiting or links:
        parts, path, is_linked = waiting.pop() if waiting else links.pop(0)
        if (real := os.path.realpath(path)) in seen:
            listing.back_links.append(parts)
            continue
        seen.add(real)
        listing.folders.append(parts)
        for entry in _entries(path):
            below = (*parts, entry.name)
            if entry.is_dir():
                (links if entry.is_symlink() else waiting).append((below, entry.path, is_linked or entry.is_symlink()))
                continue
            _add_file(listing, below, entry)
            if is_linked or entry.is_symlink():
                listing.linked[below] = os.path.realpath(entry.path)


def _entries(path: str | Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        yield from sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda each: each.name)


def _add_file(listing: Listing, parts: Parts, entry: os.DirEntry[str]) -> None:
    is_image = os.path.splitext(entry.name)[1].lower() in listing.suffixes
    if not entry.is_file():
        if entry.is_symlink() and not os.path.exists(entry.path):
            raise DataError(f"{entry.path} is a link to {os.readlink(entry.path)}, which does not exist")
        if is_image:
            raise DataError(f"{entry.path} is not a regular file")
    (listing.images if is_image else listing.others).append(parts)
