"""Reads the headers of all images of a part before it is planned: sizes, channels, and whatever changes their pixels.

The images of a data set have few different headers, and Pillow takes 50 to 80 µs for one. So each header is read once,
and found again by the bytes in front of the pixels. Only images with transparency or 16 bits are decoded.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cvit.data.deep import ValueRange
from cvit.data.images import Form, is_opaque, read_form, read_value_range

_PNG = b"\x89PNG\r\n\x1a\n"
_START_OF_SCAN = 0xDA
_WEBP_SIZE = {b"WEBPVP8 ": slice(23, 30), b"WEBPVP8L": slice(20, 25)}
"""The place of the size in simple WebP files, lossy and lossless; the latter has a bit for transparency in it."""


@dataclass(frozen=True, eq=False)
class Survey:
    """The facts about the images of a part that are known before they are decoded.

    Attributes:
        forms: the header of each image; images that are opaque in spite of it count as such.
        digests: SHA-256 of each image as it is stored.
        value_range: the range of the values in images of 16 bits; None without any.
    """

    forms: Sequence[Form]
    digests: Sequence[bytes]
    value_range: ValueRange | None = None

    def count(self, is_counted: Callable[[Form], bool]) -> int:
        """The number of images whose header is counted."""
        return sum(map(is_counted, self.forms))


def survey_images(images: Iterable[bytes | None], name_of: Callable[[int], str]) -> Survey:
    """Surveys encoded images, given in order.

    Raises:
        DataError: one of them is no image that is read.
    """
    known: dict[bytes, Form] = {}
    forms, digests, ranges = [], [], []
    for index, encoded in enumerate(images):
        key = hashlib.sha256(header_bytes(encoded or b"")).digest()
        if (form := known.get(key)) is None or encoded is None:
            form = known[key] = read_form(encoded, name_of(index))
        if form.is_transparent and is_opaque(encoded, name_of(index)):
            form = replace(form, is_transparent=False)
        if form.is_deep:
            ranges.append(read_value_range(encoded, name_of(index)))
        forms.append(form)
        digests.append(hashlib.sha256(encoded or b"").digest())
    return Survey(forms, digests, joined_range(ranges))


def survey_array(images: np.ndarray) -> Survey:
    """Surveys images in memory, (N, C, H, W)."""
    _, channels, height, width = images.shape
    digests = [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images]
    return Survey([Form(width, height, channels)] * len(images), digests)


def joined_range(ranges: Iterable[ValueRange | None]) -> ValueRange | None:
    """The range that covers all given ones; None if there is none."""
    known = [each for each in ranges if each is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def header_bytes(encoded: bytes) -> bytes:
    """The bytes of an image file that decide its `Form`: those in front of the pixels of a JPEG or PNG file, a part of
    those of a simple WebP file; else the whole file."""
    if encoded[:2] == b"\xff\xd8":
        return _jpeg_header(encoded)
    if encoded[:8] == _PNG:
        return _png_header(encoded)
    if encoded[:4] == b"RIFF" and (place := _WEBP_SIZE.get(encoded[8:16])):
        return encoded[8:16] + encoded[place]
    return encoded


def _jpeg_header(encoded: bytes) -> bytes:
    """All segments up to the first scan; the whole file if a segment does not begin where it should."""
    at = 2
    while at + 4 <= len(encoded) and encoded[at] == 0xFF:
        if encoded[at + 1] == _START_OF_SCAN:
            return encoded[:at]
        at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return encoded


def _png_header(encoded: bytes) -> bytes:
    """All chunks up to the pixels; the whole file if EXIF data may follow them."""
    at = len(_PNG)
    while at + 8 <= len(encoded):
        if encoded[at + 4 : at + 8] == b"IDAT":
            return encoded if b"eXIf" in encoded[at:] else encoded[:at]
        at += 12 + int.from_bytes(encoded[at : at + 4], "big")
    return encoded
