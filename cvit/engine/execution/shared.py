"""Memory that the driver shares with its workers: a data set lies in it once, however many they are."""

import mmap
import os
import pickle
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

_ALIGNMENT = 64


@dataclass(frozen=True)
class Layout:
    """The description of an object whose arrays lie in a file: what is needed to have it in another process.

    Attributes:
        pickled: the object without its arrays.
        spans: (offset, size) of each array in the file, bytes.
    """

    pickled: bytes
    spans: Sequence[tuple[int, int]]


def share(value: Any) -> tuple[Layout, BinaryIO]:
    """Copies the arrays of an object into a file in memory."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    file, spans = _file_in_memory(), []
    for buffer in buffers:
        raw = buffer.raw()
        offset = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
        file.seek(offset)
        file.write(raw)
        spans.append((offset, raw.nbytes))
    file.flush()
    return Layout(pickled, spans), file


def attach(layout: Layout, descriptor: int) -> Any:
    """The object in this process. A process that writes to an array changes a copy of its own."""
    if not layout.spans:
        return pickle.loads(layout.pickled)
    memory = memoryview(mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE))
    return pickle.loads(layout.pickled, buffers=[memory[offset : offset + size] for offset, size in layout.spans])


def _file_in_memory() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("cvit-data"), "w+b")
    return tempfile.TemporaryFile()
