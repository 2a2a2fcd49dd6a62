"""Finds image data sets by name or path, describes them without decoding a pixel, and loads them.

Only torchvision's data sets need torch: a description serves planning and dry runs, and a loaded data set consists of
numpy arrays, which travel between processes.
"""

import difflib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cvit.config import Augmentation
from cvit.data.formats import Place, all_formats
from cvit.data.images import DataError, Target
from cvit.data.stored import Labels, Part, Stored
from cvit.data.subsets import holdout

__all__ = ["NAMES", "DataError", "Dataset", "DatasetInfo", "Images", "describe", "load"]

AUGMENTATIONS: Mapping[str, Augmentation] = {
    name: augmentation for format in all_formats() for name, augmentation in format.known.items()
}
"""The default augmentation of the data sets that are known by name."""
NAMES = tuple(AUGMENTATIONS)
"""The data sets that are known by name."""
TEST_FRACTION = 0.2
"""Share of the images held out for testing if a data set has no test images of its own."""


@dataclass(frozen=True, eq=False)
class Images:
    """Decoded images (N, C, *shape) of uint8 or float32 and their class indices (N,) int64."""

    images: NDArray[np.uint8] | NDArray[np.float32]
    labels: Labels


@dataclass(frozen=True, eq=False)
class Dataset:
    """The decoded images of a data set."""

    train: Images
    test: Images


@dataclass(frozen=True, eq=False)
class DatasetInfo:
    """A data set before its images are decoded.

    Attributes:
        image_size: side of the decoded images, pixels.
        train_labels: (N,) class indices of the training images.
        num_test: number of test images.
        augmentation: the default augmentation.
        fingerprint: identifies the content, and the size if images are resized; independent of where they are stored.
        stored: the source of the images.
        resize: True if images are cropped and resized.
    """

    name: str
    image_size: int
    in_channels: int
    num_classes: int
    class_names: tuple[str, ...]
    train_labels: Labels
    num_test: int
    augmentation: Augmentation
    fingerprint: str
    stored: Stored = field(repr=False)
    resize: bool = field(repr=False)

    @cached_property
    def train_counts(self) -> NDArray[np.integer]:
        """Number of training images of each class."""
        return np.bincount(self.train_labels)

    @cached_property
    def test_counts(self) -> NDArray[np.integer]:
        """Number of test images of each class."""
        if self.stored.test is not None:
            return np.bincount(self.stored.test.labels)
        return np.bincount(self.stored.train.labels[_own_test_split(self.stored.train)[1]])


def describe(
    dataset: str, data_dir: str | os.PathLike[str], *, download: bool, image_size: int | None = None
) -> DatasetInfo:
    """Finds a data set and reads everything but its pixels.

    Args:
        dataset: one of NAMES, the name of a Parquet file, a folder of Parquet files or an image folder in `data_dir`,
            or a path to one.
        data_dir: the folder of the data sets, also for downloads.
        download: True if torchvision may download a missing data set.
        image_size: side in pixels to which all images are cropped and resized; None leaves them as they are.

    Raises:
        DataError: there is no such data set, or it cannot be used.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"--image-size {image_size} must be at least 1")
    name, stored = _find(dataset, Path(data_dir).expanduser(), download)
    if len(stored.class_names) < 2:
        raise DataError(f"dataset {dataset!r} has {len(stored.class_names)} class; at least 2 are needed")
    train_labels, num_test = stored.train.labels, 0 if stored.test is None else len(stored.test.labels)
    if stored.test is None:
        train, test = _own_test_split(stored.train)
        train_labels, num_test = train_labels[train], len(test)
    if num_test == 0:
        raise DataError(f"dataset {dataset!r} has too few images to hold some out for testing")
    sizes, channels = _sizes_and_channels(dataset, stored)
    size = image_size or _common_side(dataset, sizes)
    return DatasetInfo(
        name=name,
        image_size=size,
        in_channels=channels,
        num_classes=len(stored.class_names),
        class_names=stored.class_names,
        train_labels=train_labels,
        num_test=num_test,
        augmentation=AUGMENTATIONS.get(name, "shift" if channels == 1 else "crop_flip"),
        fingerprint=_fingerprint(stored.content, None if sizes == [(size, size)] else size),
        stored=stored,
        resize=image_size is not None,
    )


def load(info: DatasetInfo) -> Dataset:
    """Decodes the images of a data set that `describe` found.

    Raises:
        DataError: an image cannot be decoded, or differs from the first ones in size or kind.
    """
    target, stored = Target(info.in_channels, info.image_size, info.resize), info.stored
    train = Images(stored.train.pixels(target), stored.train.labels)
    if stored.test is not None:
        test = Images(stored.test.pixels(target), stored.test.labels)
    else:
        first, second = _own_test_split(stored.train)
        pool = train
        train = Images(pool.images[first], pool.labels[first])
        test = Images(pool.images[second], pool.labels[second])
    return Dataset(train, test)


def _find(dataset: str, data_dir: Path, download: bool) -> tuple[str, Stored]:
    """The data set's name, which is the last part of its path, and the stored data set."""
    for place in _places(dataset, data_dir, download):
        for format in all_formats():
            if stored := format.open(place):
                return _name(place.path) if place.path and dataset not in format.known else dataset, stored
    if dataset and Path(dataset).expanduser().exists():
        contents = " nor ".join(format.contents for format in all_formats() if format.contents)
        raise DataError(f"dataset {dataset!r} holds neither {contents}")
    close = difflib.get_close_matches(dataset, NAMES, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    *paths, last = (path for format in all_formats() for path in format.paths)
    raise DataError(
        f"dataset {dataset!r} is neither a path nor a name in {data_dir}: give {', '.join(NAMES)}, or a path to "
        f"{', '.join(paths)} or {last}{hint}"
    )


def _places(dataset: str, data_dir: Path, download: bool) -> Iterator[Place]:
    """The places where a data set may be. For a name: in the data folder, then without a path, for formats that know
    the name. Last, the text as a path."""
    if not dataset:
        return
    is_name = os.path.basename(dataset) == dataset and not dataset.startswith((".", "~"))
    if is_name:
        for suffix in ("", *(format.suffix for format in all_formats() if format.suffix)):
            if (path := data_dir / f"{dataset}{suffix}").exists():
                yield Place(dataset, path, data_dir, download)
        yield Place(dataset, None, data_dir, download)
    if (path := Path(dataset).expanduser()).exists():
        yield Place("", path, data_dir, download)


def _name(path: Path) -> str:
    path = path.resolve()
    return path.stem if path.is_file() else path.name


def _own_test_split(pool: Part) -> tuple[np.ndarray, np.ndarray]:
    return holdout(pool.labels, TEST_FRACTION, "test split")


def _sizes_and_channels(dataset: str, stored: Stored) -> tuple[list[tuple[int, int]], int]:
    """Sizes (width, height) and channels of the first images."""
    train = stored.train.forms()
    test = stored.test.forms() if stored.test else []
    channels = max(form.channels for _, form in train)
    if test and channels != (other := max(form.channels for _, form in test)):
        raise DataError(
            f"dataset {dataset!r} has {channels} channels in its training images, {other} in its test images"
        )
    return sorted({(form.width, form.height) for _, form in train + test}), channels


def _common_side(dataset: str, sizes: list[tuple[int, int]]) -> int:
    width, height = sizes[0]
    if len(sizes) > 1 or width != height:
        some = ", ".join(f"{width}x{height}" for width, height in sizes[:3]) + (", ..." if len(sizes) > 3 else "")
        raise DataError(
            f"dataset {dataset!r} has images of size {some}; they must be square and equal: "
            "give --image-size to crop and resize them"
        )
    return width


def _fingerprint(content: str, size: int | None) -> str:
    return hashlib.sha256(f"{content}|{size or 'as stored'}".encode()).hexdigest()[:16]
