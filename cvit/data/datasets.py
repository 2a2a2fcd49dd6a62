"""Finds data sets of images or sequences by name or path, describes them without decoding a pixel, and loads them.

Only torchvision's data sets need torch: a description serves planning and dry runs, and a loaded data set consists of
numpy arrays, which travel between processes.
"""

import difflib
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cvit.config import Augmentation
from cvit.data.formats import Place, all_formats
from cvit.data.formats.wav import has_recordings
from cvit.data.images import DataError, Target, check_size
from cvit.data.notes import class_notes, double_notes, pixel_notes
from cvit.data.sequences import check_not_constant, common_length
from cvit.data.splits import other_splits, split_name
from cvit.data.stored import Labels, Part, Stored
from cvit.data.subsets import holdout
from cvit.errors import one_line, printable, some_of

__all__ = ["NAMES", "DataError", "Dataset", "DatasetInfo", "Images", "describe", "load"]

AUGMENTATIONS: Mapping[str, Augmentation] = {
    name: augmentation for format in all_formats() for name, augmentation in format.known.items()
}
"""The default augmentation of the data sets that are known by name."""
NAMES = tuple(AUGMENTATIONS)
"""The data sets that are known by name."""
TEST_FRACTION = 0.2
"""Share of the images held out for testing if a data set has no test images of its own."""
SAMPLED = 32
"""The number of images of each part whose sizes decide about the size of all."""
BLANK = 0.5
"""Images whose pixels deviate less from their mean, of 255, are refused."""
_DECODING = 2
"""The version of how transparent, 16-bit and turned images are decoded."""


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
        notes: lines that a user has to know about the data: what is not used, and how pixels are changed.
        dimensions: axes of an image: 2 for pictures; 1 for sequences, whose image_size is their length in samples.
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
    notes: tuple[str, ...] = ()
    dimensions: int = 2

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
    dataset: str,
    data_dir: str | os.PathLike[str],
    *,
    download: bool,
    image_size: int | None = None,
    label_pattern: str | None = None,
    test_pattern: str | None = None,
) -> DatasetInfo:
    """Finds a data set and reads everything but its pixels.

    Args:
        dataset: one of NAMES, the name of a Parquet file, a folder of Parquet files, an image folder, an .npz or
            .ts file or a folder of WAV recordings in `data_dir`, or a path to one.
        data_dir: the folder of the data sets, also for downloads.
        download: True if torchvision may download a missing data set.
        image_size: side in pixels to which all images are cropped and resized; None leaves them as they are. Sequences
            are cut or padded to this length; None pads them to the longest.
        label_pattern, test_pattern: regular expressions for the paths of WAV recordings below their folder: one finds
            the class, the other the test recordings.

    Raises:
        DataError: there is no such data set, or it cannot be used.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"--image-size {image_size} must be at least 1")
    with _one_line(dataset):
        name, stored = _find(Place(dataset, None, Path(data_dir).expanduser(), download, label_pattern, test_pattern))
        _check_patterns(dataset, stored, label_pattern, test_pattern)
        return _described(dataset, name, stored, image_size)


def load(info: DatasetInfo) -> Dataset:
    """Decodes the images of a data set that `describe` found.

    Raises:
        DataError: an image cannot be decoded, differs from others in size, or has changed since; or the images of a
            part are blank.
    """
    stored = info.stored
    target = Target(info.in_channels, info.image_size, info.resize, stored.value_range)
    with _one_line(info.name):
        train = Images(stored.train.pixels(target), stored.train.labels)
        if stored.test is not None:
            test = Images(stored.test.pixels(target), stored.test.labels)
        else:
            first, second = _own_test_split(stored.train)
            pool = train
            train = Images(pool.images[first], pool.labels[first])
            test = Images(pool.images[second], pool.labels[second])
    for part, images in (("training", train.images), ("test", test.images)):
        if info.dimensions == 1:
            check_not_constant(info.name, part, images)
        elif (deviation := _deviation(images)) < BLANK:
            raise DataError(
                f"dataset {info.name!r} has blank {part} images: the values of their pixels deviate by {deviation:.2g} "
                "of 255 from their mean, so there is nothing to learn from"
            )
    return Dataset(train, test)


@contextmanager
def _one_line(dataset: str) -> Iterator[None]:
    """Turns errors of the system, of an unknown home, and of data that are too large or too deep, into DataError."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        raise DataError(f"dataset {dataset!r} cannot be read: {one_line(error)}") from error


def _described(dataset: str, name: str, stored: Stored, image_size: int | None) -> DatasetInfo:
    if printable(name) != name:
        raise DataError(f"the name of dataset {dataset!r} is not printable: rename it")
    if len(stored.class_names) < 2:
        raise DataError(f"dataset {dataset!r} has {len(stored.class_names)} class; at least 2 are needed")
    train, test = np.arange(len(stored.train.labels)), np.arange(0)
    if stored.test is None:
        train, test = _own_test_split(stored.train)
    num_test = len(test if stored.test is None else stored.test.labels)
    if num_test == 0:
        raise DataError(f"dataset {dataset!r} has too few {stored.noun}s to hold some out for testing")
    train_labels = stored.train.labels if stored.test is not None else stored.train.labels[train]
    for part in stored.parts:
        _check_labels(dataset, part, len(stored.class_names))
    sizes, channels = _sizes_and_channels(stored)
    if is_of_sequences := stored.dimensions == 1:
        size, length_notes = common_length(stored, image_size)
    else:
        size, length_notes = image_size or _common_side(dataset, sizes), []
        for part in stored.parts:
            _check_sizes(part, Target(channels, size, image_size is not None))
    test_labels = stored.train.labels[test] if stored.test is None else stored.test.labels
    return DatasetInfo(
        name=name,
        image_size=size,
        in_channels=channels,
        num_classes=len(stored.class_names),
        class_names=stored.class_names,
        train_labels=train_labels,
        num_test=num_test,
        augmentation=AUGMENTATIONS.get(name, "shift" if channels == 1 or is_of_sequences else "crop_flip"),
        fingerprint=_fingerprint(
            stored, None if not length_notes and (is_of_sequences or sizes == [(size, size)]) else size
        ),
        stored=stored,
        resize=image_size is not None,
        dimensions=stored.dimensions,
        notes=tuple(
            printable(note)
            for note in (
                *stored.notes,
                *length_notes,
                *class_notes(stored.class_names, train_labels, test_labels, stored.noun),
                *pixel_notes(stored, channels),
                *double_notes(stored, train, test),
            )
        ),
    )


def _find(asked: Place) -> tuple[str, Stored]:
    """The data set's name, which is the last part of its path, and the stored data set."""
    dataset, data_dir = asked.name, asked.data_dir
    for place in _places(asked):
        for format in all_formats():
            if stored := format.open(place):
                if place.path is None or dataset in format.known:
                    return dataset, stored
                if stored.name is not None:
                    return stored.name, stored
                return _name(place.path), replace(stored, notes=(*stored.notes, *_beside(place.path)))
    if dataset and Path(dataset).expanduser().exists():
        *contents, last = (format.contents for format in all_formats() if format.contents)
        raise DataError(f"dataset {dataset!r} holds neither {', '.join(contents)} nor {last}")
    close = difflib.get_close_matches(dataset, NAMES, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    *paths, last = (path for format in all_formats() for path in format.paths)
    raise DataError(
        f"dataset {dataset!r} is neither a path nor a name in {data_dir}: give {', '.join(NAMES)}, or a path to "
        f"{', '.join(paths)} or {last}{hint}"
    )


def _places(asked: Place) -> Iterator[Place]:
    """The places where a data set may be. For a name: in the data folder, then without a path, for formats that know
    the name. Last, the text as a path."""
    dataset, data_dir = asked.name, asked.data_dir
    if not dataset:
        return
    is_name = os.path.basename(dataset) == dataset and not dataset.startswith((".", "~"))
    if is_name:
        for suffix in ("", *(format.suffix for format in all_formats() if format.suffix)):
            if (path := data_dir / f"{dataset}{suffix}").exists():
                yield replace(asked, path=path)
        yield asked
    if (path := Path(dataset).expanduser()).exists():
        yield replace(asked, name="", path=path)


def _name(path: Path) -> str:
    path = path.resolve()
    return path.stem if path.is_file() else path.name


def _beside(path: Path) -> Iterator[str]:
    """A line about other splits of the same data set that lie beside the path, and so are not used."""
    path = path.absolute()

    def name_of(path: Path) -> str:
        return path.stem if path.suffix in {format.suffix for format in all_formats()} else path.name

    if split_name(name_of(path)).role is None:
        return
    with suppress(OSError):  # only the path itself has to be readable
        names = {name_of(each): each.name for each in path.parent.iterdir() if each.is_file() == path.is_file()}
        if others := other_splits(name_of(path), sorted(names)):
            yield f"not used: {some_of(names[each] for each in others)}, beside it; give the folder to use all splits"


def _own_test_split(pool: Part) -> tuple[np.ndarray, np.ndarray]:
    return holdout(pool.labels, TEST_FRACTION, "test split")


def _sizes_and_channels(stored: Stored) -> tuple[list[tuple[int, int]], int]:
    """Sizes (width, height) of the first images, and the channels of all."""
    forms = [part.survey.forms for part in stored.parts]
    sizes = {(form.width, form.height) for each in forms for form in each[:SAMPLED]}
    return sorted(sizes), max(form.channels for each in forms for form in each)


def _check_patterns(dataset: str, stored: Stored, *patterns: str | None) -> None:
    if any(pattern is not None for pattern in patterns) and not has_recordings(stored):
        raise DataError(f"dataset {dataset!r} has no WAV recordings: --label-pattern and --test-pattern are for these")


def _check_labels(dataset: str, part: Part, num_classes: int) -> None:
    if len(part.survey.forms) != len(part.labels):
        raise DataError(f"dataset {dataset!r} has {len(part.survey.forms)} images and {len(part.labels)} labels")
    if part.labels.min() < 0 or part.labels.max() >= num_classes:
        raise DataError(f"dataset {dataset!r} has labels outside 0..{num_classes - 1}")


def _common_side(dataset: str, sizes: list[tuple[int, int]]) -> int:
    width, height = sizes[0]
    if len(sizes) > 1 or width != height:
        some = ", ".join(f"{width}x{height}" for width, height in sizes[:3]) + (", ..." if len(sizes) > 3 else "")
        raise DataError(
            f"dataset {dataset!r} has images of size {some}; they must be square and equal: "
            "give --image-size to crop and resize them"
        )
    return width


def _check_sizes(part: Part, target: Target) -> None:
    for index, form in enumerate(part.survey.forms):
        if not target.resize and (form.width, form.height) != (target.size, target.size):
            check_size(form.width, form.height, part.name_of(index), target)


def _deviation(images: np.ndarray) -> float:
    """The deviation of the pixels from their mean, over the channels, on up to 2,000 images spread evenly.

    The images are taken one by one, because all of them as float32 may not fit into the memory.
    """
    sample = images[:: max(1, len(images) // 1000)]
    means = np.mean([image.mean(axis=(1, 2)) for image in sample], axis=0)
    squares = np.mean([np.square(image, dtype=np.float32).mean(axis=(1, 2)) for image in sample], axis=0)
    return float(np.sqrt(np.maximum(squares - means**2, 0)).mean())


def _fingerprint(stored: Stored, size: int | None) -> str:
    """A hash of the content and size. Where images are not decoded as in the first version, the version is in it."""
    content = stored.content
    if any(
        part.survey.count(lambda form: form.is_transparent or form.is_deep or form.is_turned) for part in stored.parts
    ):
        content += f"|decoding {_DECODING}"
    return hashlib.sha256(f"{content}|{size or 'as stored'}".encode()).hexdigest()[:16]
