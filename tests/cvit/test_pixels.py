"""No pixel vanishes without a word: in transparency, in the lower bits of 16, in turned or in blank images."""

import hashlib
import io
import itertools
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from cvit.data.images import DataError, Target, decode_images, read_form, read_value_range
from cvit.data.survey import header_bytes, survey_images
from tests.support.images import alternating, encoded, error_of, info_of, loaded, picture, write_parquet

SHAPES = {"L": (4, 4), "LA": (4, 4, 2), "RGB": (4, 4, 3), "RGBA": (4, 4, 4)}
COLOUR_TYPES = {"L": 0, "LA": 4, "RGB": 2, "RGBA": 6}


def png_of_16_bits(values: np.ndarray, mode: str) -> bytes:
    """A PNG file of 16 bits per channel, which Pillow does not write in colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[mode], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def tiff_of_16_bits(values: np.ndarray, order: str) -> bytes:
    """A TIFF file of 16 bits per channel in colour, in either order of bytes."""
    height, width, _ = values.shape
    data = values.astype(f"{order}u2").tobytes()
    end = 8 + 2 + 9 * 12 + 4
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, end), (259, 4, 1, 1), (262, 4, 1, 2)]
    tags += [(273, 4, 1, end + 6), (277, 4, 1, 3), (278, 4, 1, height), (279, 4, 1, len(data))]
    directory = b"".join(struct.pack(f"{order}HHII", *tag) for tag in tags)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return start + directory + struct.pack(f"{order}IHHH", 0, 16, 16, 16) + data


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def decoded(data: bytes, channels: int = 3, value_range: tuple[int, int] | None = None) -> np.ndarray:
    """The pixels of one image, (H, W, C)."""
    form = read_form(data, "x")
    target = Target(channels, max(form.width, form.height), False, value_range)
    return decode_images([data], str, target)[0].transpose(1, 2, 0)


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


# Transparency


def test_a_picture_in_the_alpha_channel_is_seen(tmp_path: Path) -> None:
    rgba = [np.zeros((4, 4, 4), np.uint8) for _ in range(20)]
    for i, image in enumerate(rgba):
        image[..., 3] = np.asarray(picture(i, mode="L"))
    path = write_parquet(tmp_path / "a.parquet", [encoded(Image.fromarray(image)) for image in rgba], alternating(20))
    data = loaded(path)
    assert {image[0].tobytes() for part in (data.train, data.test) for image in part.images} == {
        (255 - image[..., 3]).tobytes() for image in rgba
    }
    assert data.info.notes == ("transparency is put on white: in 20 images",)


@given(arrays(np.uint8, (4, 4, 4)))
def test_transparency_is_put_on_white(rgba: np.ndarray) -> None:
    expected = on_white(rgba[..., :3], rgba[..., 3])
    for format in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True, "exact": True} if format == "WEBP" else {}
        file = io.BytesIO()
        Image.fromarray(rgba).save(file, format, **options)
        np.testing.assert_allclose(decoded(file.getvalue()), expected, atol=1)
    gray = on_white(rgba[..., :1], rgba[..., 3])
    image = encoded(Image.fromarray(np.ascontiguousarray(rgba[..., [0, 3]]), "LA"))
    np.testing.assert_allclose(decoded(image, channels=1), gray, atol=1)


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_transparent_colours_of_palettes_are_white(format: str) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 0, 0, 0])
    image.putpixel((2, 1), 0)
    file = io.BytesIO()
    image.save(file, format, transparency=1)
    expected = np.full((4, 4, 3), 255)
    expected[1, 2] = (10, 20, 30)
    np.testing.assert_array_equal(decoded(file.getvalue()), expected)


@pytest.mark.parametrize(("mode", "colour"), [("L", 7), ("RGB", (7, 7, 7)), ("1", 0)])
def test_a_colour_that_stands_for_transparency_is_white(mode: str, colour: object) -> None:
    image = Image.new(mode, (4, 4), colour)  # pyright: ignore[reportArgumentType]
    file = io.BytesIO()
    image.save(file, "PNG", transparency=colour)
    assert read_form(file.getvalue(), "x").is_transparent
    assert (decoded(file.getvalue()) == 255).all()


# 16 bits


@pytest.mark.parametrize("mode", SHAPES)
def test_16_bits_are_scaled_by_the_range_of_the_set(mode: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    values = [draw.integers(1000, 1100, SHAPES[mode], np.uint16) for _ in range(20)]
    colours = 1 if mode in ("L", "LA") else 3
    values[3][0, 0], values[4][0, 0] = 900, 1410  # alone in their images: the range is that of the set
    for image in values:
        if mode in ("LA", "RGBA"):
            image[..., -1] = 0xFFFF
    path = tmp_path / "a/train.parquet"
    write_parquet(path, [png_of_16_bits(image, mode) for image in values], alternating(20))
    write_parquet(tmp_path / "a/test.parquet", [png_of_16_bits(image + 0, mode) for image in values[:2]], [0, 1])
    data = loaded(tmp_path / "a")
    expected = np.rint((np.stack(values).reshape(20, 4, 4, -1)[..., :colours] - 900.0) * 255 / 510)
    np.testing.assert_array_equal(data.train.images.transpose(0, 2, 3, 1), expected)
    assert "16 bits are scaled by their range, 900 to 1410, to 0 to 255: in 22 images" in data.info.notes


@given(arrays(np.uint16, (4, 4, 3)))
def test_all_16_bits_of_each_colour_are_read(values: np.ndarray) -> None:
    files = [png_of_16_bits(values, "RGB"), tiff_of_16_bits(values, "<"), tiff_of_16_bits(values, ">")]
    for file in files:
        assert read_value_range(file, "x") == (values.min(), values.max())
        low, high = int(values.min()), int(values.max())
        expected = np.rint((values - float(low)) * 255 / max(high - low, 1))
        np.testing.assert_array_equal(decoded(file, value_range=(low, high)), expected)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("type", ["<u2", ">u2"])
def test_16_bits_in_either_order_of_bytes(format: str, type: str) -> None:
    values = np.arange(16, dtype=np.uint16).reshape(4, 4) * 3
    image = Image.frombytes("I;16B" if type == ">u2" else "I;16", (4, 4), values.astype(type).tobytes())
    file = io.BytesIO()
    image.save(file, format)
    np.testing.assert_array_equal(decoded(file.getvalue(), 1, (0, 45))[..., 0], np.rint(values * 255 / 45))


def test_images_of_8_bits_among_16_are_left_as_they_are(tmp_path: Path) -> None:
    gray = [picture(i, mode="L") for i in range(20)]
    images = [encoded(image) for image in gray]
    images[0] = png_of_16_bits(np.arange(16, dtype=np.uint16).reshape(4, 4), "L")
    write_parquet(tmp_path / "a/train.parquet", images, alternating(20))
    write_parquet(tmp_path / "a/test.parquet", images[:2], [0, 1])
    train = loaded(tmp_path / "a").train.images
    np.testing.assert_array_equal(train[0, 0], np.arange(16).reshape(4, 4) * 17)
    np.testing.assert_array_equal(train[1, 0], np.asarray(gray[1]))


# Orientation, frames, kinds of colour


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_exif_orientation_is_applied(format: str, value: int) -> None:
    """Pillow's own operation is the reference; the picture is not square, so that a wrong turn changes its size."""
    stored = Image.new("RGB", (16, 8), "black")
    stored.paste((255, 255, 255), (0, 0, 8, 4))
    file = io.BytesIO()
    stored.save(file, format, exif=orientation(value))
    turn: Callable[[Image.Image], Image.Image] = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.rotate(180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.rotate(-90, expand=True),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.rotate(90, expand=True),
    }[value]
    expected = turn(stored)
    form = read_form(file.getvalue(), "x")
    assert (form.width, form.height) == expected.size
    found = decode_images([file.getvalue()], str, Target(3, 8, resize=True))[0].transpose(1, 2, 0)
    left, top = (expected.width - 8) // 2, (expected.height - 8) // 2
    difference = found.astype(int) - np.asarray(expected.crop((left, top, left + 8, top + 8)))
    assert np.abs(difference).mean() < 8, "JPEG and WebP are lossy, but a wrong turn changes half of the pixels by 255"


def test_turned_images_are_said_and_broken_exif_data_are_passed_over(tmp_path: Path) -> None:
    files = []
    for i in range(20):
        file = io.BytesIO()
        picture(i).save(file, "PNG", exif=orientation(3) if i < 5 else b"Exif\0\0II*\0broken" if i < 7 else b"")
        files.append(file.getvalue())
    path = write_parquet(tmp_path / "a.parquet", files, alternating(20))
    data = loaded(path)
    assert data.info.notes == ("turned as the EXIF orientation says: 5 images",)
    pixels = {image.transpose(1, 2, 0).tobytes() for part in (data.train, data.test) for image in part.images}
    assert pixels == {np.asarray(picture(i).rotate(180 if i < 5 else 0)).tobytes() for i in range(20)}


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_read(format: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    file = io.BytesIO()
    options = {"lossless": True} if format == "WEBP" else {}
    frames[0].save(file, format, save_all=True, append_images=frames[1:], **options)
    assert read_form(file.getvalue(), "x").is_animated
    np.testing.assert_array_equal(decoded(file.getvalue()), np.asarray(frames[0]))


def test_cmyk_is_read_as_rgb() -> None:
    image = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    np.testing.assert_allclose(decoded(encoded(image, "JPEG"))[0, 0], (0, 255, 255), atol=3)


# Blank images


@pytest.mark.parametrize("part", ["training", "test"])
def test_blank_images_are_refused_by_name(part: str, tmp_path: Path) -> None:
    blank, full = [encoded(Image.new("L", (4, 4), 1))] * 20, [encoded(picture(i, mode="L")) for i in range(20)]
    write_parquet(tmp_path / "pets/train.parquet", blank if part == "training" else full, alternating(20))
    write_parquet(tmp_path / "pets/test.parquet", blank if part == "test" else full, alternating(20))
    assert f"dataset 'pets' has blank {part} images" in error_of(tmp_path / "pets")


def test_images_of_one_colour_each_are_not_blank(tmp_path: Path) -> None:
    images = [encoded(Image.new("RGB", (4, 4), (i * 12, 0, 0))) for i in range(20)]
    assert loaded(write_parquet(tmp_path / "a.parquet", images, alternating(20))).train.images.max() > 200


# Fingerprints


@pytest.mark.parametrize("change", ["transparent", "deep", "turned"])
def test_where_pixels_are_read_in_another_way_than_before_the_fingerprint_differs(change: str, tmp_path: Path) -> None:
    """Else results of the version that lost them would be found again."""
    turned = io.BytesIO()
    picture(0).save(turned, "PNG", exif=orientation(6))
    special = {
        "transparent": encoded(Image.new("RGBA", (4, 4), (9, 9, 9, 99))),
        "deep": png_of_16_bits(np.arange(16, dtype=np.uint16).reshape(4, 4), "L"),
        "turned": turned.getvalue(),
    }[change]
    images = [special, encoded(picture(1, mode="RGBA")), *(encoded(picture(i)) for i in range(2, 20))]
    info = info_of(write_parquet(tmp_path / "a.parquet", images, alternating(20)))
    as_before = hashlib.sha256(f"{info.stored.content}|as stored".encode()).hexdigest()[:16]
    assert info.fingerprint != as_before
    plain = info_of(write_parquet(tmp_path / "b.parquet", images[1:], alternating(19)))
    assert plain.fingerprint == hashlib.sha256(f"{plain.stored.content}|as stored".encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("format", "mode"),
    [
        *itertools.product(("PNG", "WEBP", "GIF", "TIFF", "BMP"), ("L", "RGB", "RGBA", "P")),
        *itertools.product(("JPEG",), ("L", "RGB")),
    ],
)
def test_equal_header_bytes_mean_equal_headers(format: str, mode: str) -> None:
    """The survey reads a header once and finds it again by these bytes."""
    forms: dict[bytes, object] = {}
    for size in ((4, 4), (4, 5), (300, 4)):
        for value in range(3):
            for options in ({}, {"exif": orientation(6)} if format in ("PNG", "JPEG", "WEBP") else {}):
                file = io.BytesIO()
                picture(value, size, mode).save(file, format, **options)
                form = read_form(file.getvalue(), "x")
                assert forms.setdefault(header_bytes(file.getvalue()), form) == form


@given(st.binary(max_size=200))
def test_any_bytes_have_header_bytes(data: bytes) -> None:
    for start in (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBPVP8 "):
        assert isinstance(header_bytes(start + data), bytes)


@settings(max_examples=200)
@given(
    st.sampled_from(("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    st.integers(1, 400),
)
def test_damaged_images_are_decoded_or_refused(format: str, changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(encoded(picture(0, (9, 7), "RGB"), format))
    for place, value in changes:
        data[place % len(data)] = value
    data = bytes(data[:length] if not changes else data)
    outcome = pixels_or_error(data)
    assert outcome.startswith("0 ") and "\n" not in outcome if isinstance(outcome, str) else outcome.shape == (8, 8)


def pixels_or_error(data: bytes) -> np.ndarray | str:
    try:
        survey = survey_images([data], str)
        target = Target(survey.forms[0].channels, 8, True, survey.value_range)
        return decode_images([data], str, target)[0, 0]
    except DataError as error:
        return str(error)
