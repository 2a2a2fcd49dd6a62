"""Images of 16 bits per channel, which Pillow reads in grayscale only: of colours it drops the lower 8 bits.

Scans and depth maps often use a small part of the range, so that nothing is left in the upper 8 bits. The values are
read in full here and scaled by the range that the whole data set uses.
"""

import io
import re
import sys

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ValueRange = tuple[int, int]
"""The least and the greatest value of the 16-bit images of a data set."""

_DEEP = re.compile(r"(?P<mode>L|LA|RGB|RGBA|RGBX|CMYK|RGBa);16(?P<order>[LBN])")
_GRAY_ALPHA = "LA;16B"
_COLOUR_MODES = ("RGB", "RGBA")
_OPPOSITE = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


def is_deep(image: Image.Image) -> bool:
    """True if the image has 16 bits per channel. `image` has just been opened, as for all functions here."""
    return image.mode.startswith("I;16") or _DEEP.fullmatch(_raw_mode(image)) is not None


def is_deep_gray(image: Image.Image) -> bool:
    """True if the image is in grayscale, with 16 bits per channel."""
    return image.mode.startswith("I;16") or _raw_mode(image) == _GRAY_ALPHA


def deep_values(image: Image.Image, encoded: bytes) -> tuple[NDArray[np.uint16], NDArray[np.uint16] | None]:
    """The colours (H, W, 1 or 3) and the alpha channel (H, W), if there is one, of a 16-bit image.

    Raises:
        ValueError: its colours are no RGB.
        OSError: it cannot be decoded.
    """
    transparent = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)[..., None]
    elif _raw_mode(image) == _GRAY_ALPHA:
        values = _with_raw_mode(image, encoded, "RGBA")  # the four bytes of a pixel: two of the gray, two of its alpha
        values = values[..., ::2] * np.uint16(256) + values[..., 1::2]
    elif image.mode in _COLOUR_MODES:
        raw_mode = _raw_mode(image)
        lower = _with_raw_mode(image, encoded, raw_mode[:-1] + _OPPOSITE[raw_mode[-1]])
        values = np.asarray(image).astype(np.uint16) * np.uint16(256) + lower
    else:
        raise ValueError(f"16 bits per channel can be read in grayscale and RGB, not in {image.mode}")
    num_colours = 1 if values.shape[-1] < 3 else 3
    colours, alpha = values[..., :num_colours], values[..., num_colours:]
    if transparent is not None:
        return colours, np.where((colours == np.asarray(transparent)).all(axis=-1), 0, 0xFFFF).astype(np.uint16)
    return colours, alpha[..., 0] if alpha.size else None


def eight_bits(image: Image.Image, encoded: bytes, value_range: ValueRange | None) -> Image.Image:
    """A 16-bit image with 8 bits per channel: the ends of the range become 0 and 255. Without a range, its own counts.

    Raises:
        ValueError, OSError: as for `deep_values`.
    """
    colours, alpha = deep_values(image, encoded)
    low, high = value_range or (int(colours.min()), int(colours.max()))
    scaled = (np.clip(colours.astype(np.float64), low, high) - low) * (255 / max(high - low, 1))
    channels = [np.rint(scaled).astype(np.uint8)]
    if alpha is not None:
        channels.append((alpha >> 8).astype(np.uint8)[..., None])
    pixels = np.concatenate(channels, axis=-1)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _raw_mode(image: Image.Image) -> str:
    """The layout of an image's pixels in its file; "" if it is unknown."""
    if not (tiles := getattr(image, "tile", None)):
        return ""
    arguments = tiles[0].args
    return str(arguments if isinstance(arguments, str) else next(iter(arguments or ()), ""))


def _with_raw_mode(image: Image.Image, encoded: bytes, raw_mode: str) -> NDArray[np.uint16]:
    """The pixels of a file, read as if it had another layout of the same number of bits.

    In the opposite order of bytes, Pillow keeps the lower 8 bits of each channel instead of the upper ones.
    """
    twin = Image.open(io.BytesIO(encoded), formats=(str(image.format),))
    tiles = []
    for tile in twin.tile:
        arguments = raw_mode if isinstance(tile.args, str) else (raw_mode, *(tile.args or ())[1:])
        tiles.append(tile._replace(args=arguments))
    twin.tile = tiles
    return np.asarray(twin).astype(np.uint16)
