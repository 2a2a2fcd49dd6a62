"""Decodes images (PNG, JPEG, WebP, BMP, GIF, TIFF) to uint8 arrays of one size and one number of channels."""

import contextlib
import io
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from cvit.cores import usable_cores
from cvit.data.deep import ValueRange, deep_values, eight_bits, is_deep, is_deep_gray
from cvit.errors import one_line, printable

Pixels = NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""The formats that are read, recognised by content. Pillow knows many more, and starts Ghostscript for one of them."""
MAX_PIXELS = 89_478_485
"""The largest number of pixels of an image, Pillow's own: a larger one may be made to fill the memory."""
_GRAY_MODES = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")
_UNREADABLE_MODES = ("I", "F")
_ANIMATED = ("GIF", "PNG", "WEBP")
_EXIF = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""For each EXIF orientation, the operation that turns the image upright."""
_FIRST_SIDEWAYS = 5
_CHUNK = 64

# Pillow refuses an image of more than twice its limit and only warns of one above it.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class DataError(Exception):
    """A data set that cannot be found or used; the message is one line with the fault and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@dataclass(frozen=True)
class Form:
    """The facts in an image's header.

    Attributes:
        width, height: pixels, as the image is seen.
        channels: 1 for a grayscale image, 3 for any other.
        is_transparent: True if it has an alpha channel or a transparent colour, whether a pixel uses it or not.
        is_deep: True if it has 16 bits per channel.
        is_turned: True if its EXIF data say that it is stored turned or mirrored.
        is_animated: True if it has several frames, of which the first is read.
    """

    width: int
    height: int
    channels: int
    is_transparent: bool = False
    is_deep: bool = False
    is_turned: bool = False
    is_animated: bool = False


@dataclass(frozen=True)
class Target:
    """The form of decoded images: (channels, size, size). Images of another size are an error unless `resize`.
    `value_range` holds the values of 16-bit images that become 0 and 255."""

    channels: int
    size: int
    resize: bool
    value_range: ValueRange | None = None


def read_form(encoded: bytes | None, name: str) -> Form:
    """Reads an image's header; no pixel is decoded.

    Raises:
        DataError: the bytes are not an image that is read.
    """
    image = _open(encoded, name)
    orientation = _orientation(image, encoded)
    width, height = _seen_size(image, orientation)
    try:
        is_animated = image.format in _ANIMATED and getattr(image, "is_animated", False)
    except Exception as error:
        raise DataError(f"{name} cannot be decoded: {one_line(error)}") from error
    return Form(
        *(width, height, _channels(image)),
        is_transparent=image.has_transparency_data,
        is_deep=is_deep(image),
        is_turned=orientation != 1,
        is_animated=is_animated,
    )


def read_value_range(encoded: bytes | None, name: str) -> ValueRange:
    """The least and the greatest value of an image of 16 bits, alpha left out.

    Raises:
        DataError: it cannot be decoded.
    """
    image = _open(encoded, name)
    try:
        colours, _ = deep_values(image, encoded or b"")
    except Exception as error:
        raise DataError(f"{name} cannot be decoded: {one_line(error)}") from error
    return int(colours.min()), int(colours.max())


def is_opaque(encoded: bytes | None, name: str) -> bool:
    """True if no pixel of an image is transparent; this decodes it.

    Raises:
        DataError: it cannot be decoded.
    """
    image = _open(encoded, name)
    try:
        return _with_alpha(image).getextrema()[-1] == (255, 255)
    except Exception as error:
        raise DataError(f"{name} cannot be decoded: {one_line(error)}") from error


def decode_images(encoded: Sequence[bytes | None], name_of: Callable[[int], str], target: Target) -> Pixels:
    """Decodes images in a thread pool. Transparency is put on white, and EXIF orientation is applied.

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


def check_size(width: int, height: int, name: str, target: Target) -> None:
    """Raises DataError if an image does not have the target's size and must not be resized."""
    if not target.resize and (width, height) != (target.size, target.size):
        raise DataError(
            f"{name} is {width}x{height} where others are {target.size}x{target.size}; "
            "give --image-size to crop and resize all images"
        )


def _open(encoded: bytes | None, name: str) -> Image.Image:
    if encoded is None:
        raise DataError(f"{name} holds no image bytes")
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name} has more than {MAX_PIXELS:,} pixels, the most that are read") from error
    except Exception as error:
        raise DataError(
            f"{name} is not an image that can be decoded (PNG, JPEG, WebP, BMP, GIF or TIFF, by content)"
        ) from error
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{name} has more than {MAX_PIXELS:,} pixels, the most that are read")
    if image.mode in _UNREADABLE_MODES:
        raise DataError(f"{name} has pixels of mode {image.mode}; 8 or 16 bits per channel can be read")
    return image


def _decode(encoded: bytes | None, name_of: Callable[[int], str], index: int, target: Target) -> bytes:
    name = name_of(index)
    image = _open(encoded, name)
    orientation = _orientation(image, encoded)
    check_size(*_seen_size(image, orientation), name, target)
    if target.channels == 1 and _channels(image) != 1:
        raise DataError(f"{name} is in colour where the first images are grayscale; convert all to one of them")
    try:
        if is_deep(image):
            image = eight_bits(image, encoded or b"", target.value_range)
        image = _opaque(image, target.channels)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        return _fitted(image, target).tobytes()
    except Exception as error:
        raise DataError(f"{name} cannot be decoded: {one_line(error)}") from error


def _channels(image: Image.Image) -> int:
    return 1 if image.mode in _GRAY_MODES or is_deep_gray(image) else 3


def _orientation(image: Image.Image, encoded: bytes | None) -> int:
    """The EXIF orientation, 1 to 8; 1 if there is none or it cannot be read. Pillow itself turns TIFF images.

    Pillow decodes a PNG file to look for EXIF data behind its pixels, so only those that hold some are asked.
    """
    has_exif = any(key in image.info for key in _EXIF) or (image.format == "PNG" and b"eXIf" in (encoded or b""))
    if image.format == "TIFF" or not has_exif:
        return 1
    orientation = None
    with contextlib.suppress(Exception):  # EXIF data are often broken where the image is not
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    return orientation if orientation in _UPRIGHT else 1


def _seen_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    return image.size if orientation < _FIRST_SIDEWAYS else (image.height, image.width)


def _opaque(image: Image.Image, channels: int) -> Image.Image:
    """The image in mode L or RGB, transparency on white."""
    if image.has_transparency_data:
        image = _with_alpha(image)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if channels == 1 else "RGB"
    image.load()
    return image if image.mode == mode else image.convert(mode)


def _with_alpha(image: Image.Image) -> Image.Image:
    """The image in mode RGBA."""
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


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
