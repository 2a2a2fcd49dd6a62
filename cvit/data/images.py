"""Decodes images (PNG, JPEG, ...) to uint8 arrays of one size and one number of channels."""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvit.cores import usable_cores
from cvit.errors import one_line

Pixels = NDArray[np.uint8]

_GRAY_MODES = ("1", "L", "LA", "I;16", "I;16L", "I;16B", "I;16N")
_UNREADABLE_MODES = ("I", "F")
_CHUNK = 64


class DataError(Exception):
    """A data set that cannot be found or used; the message is one line with the fault and the remedy."""


@dataclass(frozen=True)
class Form:
    """The size and channels in an image's header. A grayscale image has 1 channel, any other image 3."""

    width: int
    height: int
    channels: int


@dataclass(frozen=True)
class Target:
    """The form of decoded images: (channels, size, size). Images of another size are an error unless `resize`."""

    channels: int
    size: int
    resize: bool


def read_form(encoded: bytes | None, name: str) -> Form:
    """Reads an image's header; no pixel is decoded.

    Raises:
        DataError: the bytes are not an image.
    """
    image = _open(encoded, name)
    return Form(image.width, image.height, _channels(image))


def decode_images(encoded: Sequence[bytes | None], name_of: Callable[[int], str], target: Target) -> Pixels:
    """Decodes images in a thread pool.

    Args:
        encoded: the contents of N image files.
        name_of: the name of the i-th image, for errors.

    Returns:
        (N, C, S, S) uint8.

    Raises:
        DataError: an image cannot be decoded, has another size, or is in colour while the target has 1 channel.
    """

    def decode(start: int) -> bytes:
        chunk = encoded[start : start + _CHUNK]
        return b"".join(_decode(data, name_of, start + i, target) for i, data in enumerate(chunk))

    with ThreadPoolExecutor(usable_cores()) as pool:
        data = b"".join(pool.map(decode, range(0, len(encoded), _CHUNK)))
    return _channels_first(data, target)


def resize_images(images: Pixels, size: int) -> Pixels:
    """Resizes (N, C, H, W) uint8 to (N, C, size, size) by a centred square crop and bilinear interpolation."""
    target = Target(images.shape[1], size, resize=True)
    planes = images[:, 0] if target.channels == 1 else images.transpose(0, 2, 3, 1)
    resized = (_fitted(Image.fromarray(np.ascontiguousarray(image)), target).tobytes() for image in planes)
    return _channels_first(b"".join(resized), target)


def check_size(form: Form, name: str, target: Target) -> None:
    """Raises DataError if an image does not have the target's size and must not be resized."""
    if not target.resize and (form.width, form.height) != (target.size, target.size):
        raise DataError(
            f"{name} is {form.width}x{form.height} where others are {target.size}x{target.size}; "
            "give --image-size to crop and resize all images"
        )


def _open(encoded: bytes | None, name: str) -> Image.Image:
    if encoded is None:
        raise DataError(f"{name} holds no image bytes")
    try:
        image = Image.open(io.BytesIO(encoded))
    except Exception as error:
        raise DataError(f"{name} is not an image that can be decoded") from error
    if image.mode in _UNREADABLE_MODES:
        raise DataError(f"{name} has pixels of mode {image.mode}; 8 or 16 bits per channel can be read")
    return image


def _decode(encoded: bytes | None, name_of: Callable[[int], str], index: int, target: Target) -> bytes:
    name = name_of(index)
    image = _open(encoded, name)
    check_size(Form(image.width, image.height, 3), name, target)
    if target.channels == 1 and _channels(image) != 1:
        raise DataError(f"{name} is in colour where the first images are grayscale; convert all to one of them")
    try:
        return _fitted(_converted(image, target.channels), target).tobytes()
    except Exception as error:
        raise DataError(f"{name} cannot be decoded: {one_line(error)}") from error


def _channels(image: Image.Image) -> int:
    return 1 if image.mode in _GRAY_MODES else 3


def _converted(image: Image.Image, channels: int) -> Image.Image:
    """The image in mode L or RGB; transparency is dropped."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode:
        return image
    image.load()
    image.info.pop("transparency", None)
    return image.convert(mode)


def _fitted(image: Image.Image, target: Target) -> Image.Image:
    side = min(image.size)
    if image.size != (side, side):
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if side != target.size:
        image = image.resize((target.size, target.size), Image.Resampling.BILINEAR)
    return image


def _channels_first(data: bytes, target: Target) -> Pixels:
    images = np.frombuffer(data, np.uint8).reshape(-1, target.size, target.size, target.channels)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
