"""Stored data sets of any format: parts (training, test) that know their labels and can be decoded."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cvit.data.images import Form, Pixels, Target, check_size, decode_images, read_form, resize_images

Labels = NDArray[np.int64]

SAMPLED = 32
"""The number of headers read in each part to find the size and the number of channels."""


class Part(ABC):
    """The images of one part of a data set, in a fixed order."""

    labels: Labels

    @abstractmethod
    def forms(self) -> list[tuple[str, Form]]:
        """Names and headers of the first images; at least one if the part is not empty."""

    @abstractmethod
    def pixels(self, target: Target) -> Pixels:
        """All images, (N, C, S, S) uint8.

        Raises:
            DataError: an image cannot be converted to the target.
        """


@dataclass(frozen=True, eq=False)
class ArrayPart(Part):
    """Images in memory: (N, C, H, H) uint8."""

    images: Pixels
    labels: Labels

    def forms(self) -> list[tuple[str, Form]]:
        _, channels, height, width = self.images.shape
        return [("image 0", Form(width, height, channels))]

    def pixels(self, target: Target) -> Pixels:
        return self.images if self.images.shape[-1] == target.size else resize_images(self.images, target.size)


@dataclass(frozen=True, eq=False)
class EncodedPart(Part):
    """Images stored as encoded files (PNG, JPEG, ...)."""

    labels: Labels

    @abstractmethod
    def batches(self, size: int) -> Iterator[Sequence[bytes | None]]:
        """The encoded images in order, up to `size` at a time."""

    @abstractmethod
    def name_of(self, index: int) -> str:
        """The name of an image, for errors."""

    def forms(self) -> list[tuple[str, Form]]:
        first = next(self.batches(SAMPLED))
        return [(self.name_of(i), read_form(data, self.name_of(i))) for i, data in enumerate(first)]

    def pixels(self, target: Target) -> Pixels:
        for name, form in self.forms():
            check_size(form, name, target)
        images = np.empty((len(self.labels), target.channels, target.size, target.size), np.uint8)
        start = 0
        for batch in self.batches(4096):
            stop = start + len(batch)
            images[start:stop] = decode_images(batch, lambda i, start=start: self.name_of(start + i), target)
            start = stop
        return images


@dataclass(frozen=True, eq=False)
class Stored:
    """A stored data set. `content` is a hash of its content, independent of where it is stored."""

    train: Part
    test: Part | None
    class_names: tuple[str, ...]
    content: str


def hash_files(files: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 over the names and contents of files, in order."""
    total = hashlib.sha256()
    for name, path in files:
        with path.open("rb") as file:
            total.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def hash_arrays(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 over the shapes and contents of arrays, in order."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
