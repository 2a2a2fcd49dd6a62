"""Memory that the driver shares with its workers: a data set lies in it once, however many they are."""

import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from cvit.data.datasets import Dataset, Images

_ALIGNMENT = 64


@dataclass(frozen=True)
class Span:
    """The place of an array in a file: where it begins, bytes, its type, and its shape."""

    offset: int
    dtype: str
    shape: tuple[int, ...]


Layout = Sequence[Span]
"""The places of images and labels for training, then of those of the test; empty without a data set."""


def share(dataset: Dataset | None) -> tuple[Layout, BinaryIO]:
    """Copies the arrays of a data set into a file in memory."""
    parts = () if dataset is None else (dataset.train, dataset.test)
    file, layout = _file_in_memory(), []
    for array in (array for part in parts for array in (part.images, part.labels)):
        offset = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
        file.seek(offset)
        file.write(np.ascontiguousarray(array).data)
        layout.append(Span(offset, array.dtype.str, array.shape))
    file.truncate()  # here, behind the space before a last array that is empty
    return layout, file


def attach(layout: Layout, descriptor: int) -> Dataset | None:
    """The data set in this process. A process that writes to an array changes a copy of its own."""
    if not layout:
        return None
    memory = mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    arrays: list[NDArray] = [np.ndarray(span.shape, span.dtype, memory, span.offset) for span in layout]
    images, labels, test_images, test_labels = arrays
    return Dataset(train=Images(images, labels), test=Images(test_images, test_labels))


def _file_in_memory() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("cvit-data"), "w+b")
    return tempfile.TemporaryFile()
