"""Stored data sets of any format: parts (training, test) that know their labels and can be decoded."""

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cvit.data.deep import ValueRange
from cvit.data.images import DataError, Pixels, Target, decode_images, resize_images
from cvit.data.survey import Survey, joined_range, survey_array, survey_images
from cvit.errors import one_line
from cvit.vocabulary import noun_of

Labels = NDArray[np.int64]

_BATCH = 4096


class Part(ABC):
    """The images of one part of a data set, in a fixed order."""

    labels: Labels

    @cached_property
    @abstractmethod
    def survey(self) -> Survey:
        """The headers and digests of all images.

        Raises:
            DataError: one of them is no image that is read.
        """

    @abstractmethod
    def name_of(self, index: int) -> str:
        """The name of an image, for errors."""

    @abstractmethod
    def pixels(self, target: Target) -> Pixels | NDArray[np.float32]:
        """All images, (N, C, S, S) uint8, or sequences, (N, C, S) float32.

        Raises:
            DataError: an image cannot be converted to the target, or is another one than at the survey.
        """


@dataclass(frozen=True, eq=False)
class ArrayPart(Part):
    """Images in memory: (N, C, H, H) uint8."""

    images: Pixels
    labels: Labels

    @cached_property
    def survey(self) -> Survey:
        return survey_array(self.images)

    def name_of(self, index: int) -> str:
        return f"image {index}"

    def pixels(self, target: Target) -> Pixels:
        return self.images if self.images.shape[-1] == target.size else resize_images(self.images, target.size)


@dataclass(frozen=True, eq=False)
class EncodedPart(Part):
    """Images stored as encoded files (PNG, JPEG, ...)."""

    labels: Labels

    @abstractmethod
    def batches(self, size: int) -> Iterator[Sequence[bytes | None]]:
        """The encoded images in order, up to `size` at a time."""

    @cached_property
    def survey(self) -> Survey:
        survey = survey_images(itertools.chain.from_iterable(self.batches(_BATCH)), self.name_of)
        if len(survey.forms) != len(self.labels):
            raise DataError(f"{self.name_of(0)} and the images after it changed while they were read")
        return survey

    def pixels(self, target: Target) -> Pixels:
        digests = self.survey.digests
        images = np.empty((len(digests), target.channels, target.size, target.size), np.uint8)
        start = 0
        for batch in self.batches(_BATCH):
            stop = start + len(batch)
            for index, encoded in enumerate(batch, start):
                if index >= len(digests) or digests[index] != hashlib.sha256(encoded or b"").digest():
                    raise _changed(self.name_of(min(index, len(digests) - 1)))
            images[start:stop] = decode_images(batch, lambda i, start=start: self.name_of(start + i), target)
            start = stop
        if start < len(digests):
            raise _changed(self.name_of(start))
        return images


@dataclass(frozen=True, eq=False)
class Stored:
    """A stored data set.

    Attributes:
        content: a hash of its content, independent of where it is stored.
        notes: lines about files that are not used, and the like.
        dimensions: axes of an image: 2 for pictures, 1 for sequences.
        name: the name of the data set, where the format knows it better than the path.
    """

    train: Part
    test: Part | None
    class_names: tuple[str, ...]
    content: str
    notes: tuple[str, ...] = ()
    dimensions: int = 2
    name: str | None = None

    @property
    def parts(self) -> list[Part]:
        return [part for part in (self.train, self.test) if part is not None]

    @property
    def noun(self) -> str:
        """The word for one of its images."""
        return noun_of(self.dimensions)

    @property
    def value_range(self) -> ValueRange | None:
        """The range of the values in images of 16 bits; None without any."""
        return joined_range(part.survey.value_range for part in self.parts)


def _changed(name: str) -> DataError:
    return DataError(f"{name} has changed since the data set was read for the plan: run the command again")


def digest_of_names(digests: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 over names of files and the SHA-256 of their contents, in order."""
    total = hashlib.sha256()
    for name, digest in digests:
        total.update(f"{name}\0{digest.hex()}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def hash_files(files: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 over the names and contents of files, in order.

    Raises:
        DataError: a file cannot be read.
    """
    return digest_of_names((name, _digest(path)) for name, path in files)


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error


def hash_arrays(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 over the shapes and contents of arrays, in order."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
