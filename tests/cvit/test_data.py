import io
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import sklearn.datasets
from PIL import Image

from cvit.data.subsets import holdout, subset_size
from tests.support.images import (
    alternating,
    encoded,
    error_of,
    info_of,
    loaded,
    picture,
    pictures,
    write_folder,
    write_parquet,
)

# Digits and torchvision's data sets


def test_digits_are_those_of_scikit_learn() -> None:
    data = loaded("digits")
    values, labels = sklearn.datasets.load_digits(return_X_y=True)
    images = np.rint(np.asarray(values).reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    found = np.concatenate([data.train.images, data.test.images])[:, 0]
    assert sorted(image.tobytes() for image in found) == sorted(image.tobytes() for image in images)
    pool = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert all(pool[image.tobytes()] == label for image, label in zip(data.test.images, data.test.labels, strict=True))
    assert data.info.augmentation == "shift" and data.info.num_classes == 10 and data.train.images.max() == 255
    assert abs(len(data.test.labels) - 0.2 * len(images)) <= 5


def test_arrays_are_resized() -> None:
    small, large = loaded("digits"), loaded("digits", image_size=16)
    assert large.train.images.shape[-1] == 16
    expected = Image.fromarray(small.train.images[0, 0]).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(large.train.images[0, 0], np.asarray(expected))
    assert small.info.fingerprint != large.info.fingerprint
    assert small.info.fingerprint == info_of("digits", image_size=8).fingerprint


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "svhn"])
def test_missing_data_set_says_what_to_place_where(name: str, tmp_path: Path) -> None:
    message = error_of(name, tmp_path)
    assert name in message and str(tmp_path) in message and f"{name}/train.parquet" in message
    assert "torchvision" in message


def write_fashion_mnist(folder: Path, train: np.ndarray, test: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for name, images in (("train", train), ("t10k", test)):
        labels = np.arange(len(images), dtype=np.uint8) % 10
        header = struct.pack(">IIII", 0x803, *images.shape)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, len(images)) + labels.tobytes())


def test_torchvision_layout_is_read(tmp_path: Path) -> None:
    train, test = (np.random.default_rng(n).integers(0, 256, (n, 28, 28), np.uint8) for n in (20, 10))
    write_fashion_mnist(tmp_path / "FashionMNIST/raw", train, test)
    data = loaded("fashion_mnist", tmp_path)
    np.testing.assert_array_equal(data.train.images[:, 0], train)
    np.testing.assert_array_equal(data.test.images[:, 0], test)
    np.testing.assert_array_equal(data.test.labels, np.arange(10))
    assert data.info.class_names[0] == "T-shirt/top" and data.info.augmentation == "crop_flip"
    path = tmp_path / "FashionMNIST/raw/t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    assert "could not be read" in error_of("fashion_mnist", tmp_path)
    path.unlink()
    assert "is not in" in error_of("fashion_mnist", tmp_path)


@pytest.mark.parametrize(
    ("labels", "reason"), [(range(9), "20 images and 9 labels"), ([*range(9), *[77] * 11], "labels outside 0..9")]
)
def test_torchvision_files_that_do_not_fit_together_are_an_error(
    labels: Sequence[int], reason: str, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    folder = tmp_path / "FashionMNIST/raw"
    write_fashion_mnist(folder, images, images)
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, len(labels)) + bytes(labels))
    assert reason in error_of("fashion_mnist", tmp_path)
    (folder / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x77\1\0\0\0\0")
    assert "could not be read" in error_of("fashion_mnist", tmp_path)


def test_damaged_torchvision_files_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    message = error_of("cifar10", tmp_path)
    assert "corrupted" in message and "download=True" not in message


# Sizes and modes


@pytest.mark.parametrize("sizes", [[(6, 4)] * 4, [(4, 4), (4, 4), (5, 5), (4, 4)]])
def test_other_sizes_need_an_image_size(sizes: list[tuple[int, int]], tmp_path: Path) -> None:
    images = [encoded(picture(i, size)) for i, size in enumerate(sizes)]
    path = write_parquet(tmp_path / "a.parquet", images, alternating(4))
    assert "x".join(map(str, sizes[2])) in error_of(path) and "--image-size" in error_of(path)
    assert loaded(path, image_size=3).train.images.shape[1:] == (3, 3, 3)


def test_images_are_cropped_to_the_centre_and_interpolated(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a/train.parquet", [encoded(picture(i, (12, 8))) for i in range(4)], alternating(4))
    write_parquet(tmp_path / "a/test.parquet", pictures(2), [0, 1])
    data = loaded("a", tmp_path, image_size=5)
    centre = picture(0, (12, 8)).crop((2, 0, 10, 8)).resize((5, 5), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(data.train.images[0].transpose(1, 2, 0), np.asarray(centre))
    assert data.info.fingerprint != loaded("a", tmp_path, image_size=4).info.fingerprint
    assert "must be at least 1" in error_of("a", tmp_path, image_size=0)


def test_modes_become_one_or_three_channels(tmp_path: Path) -> None:
    gray = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
    grays = [Image.fromarray(gray), Image.fromarray(gray.astype(np.uint16) * 257), Image.fromarray(gray).convert("LA")]
    grays.append(Image.fromarray(gray > 100))
    path = write_parquet(tmp_path / "gray.parquet", [encoded(image) for image in grays] * 3, alternating(12))
    data = loaded(path)
    assert data.info.augmentation == "shift" and data.train.images.shape[1] == 1
    expected = {gray.tobytes(), ((gray > 100) * np.uint8(255)).tobytes()}
    assert {image.tobytes() for image in data.train.images} == expected

    colours = [picture(0), picture(0, mode="RGBA"), Image.fromarray(gray), picture(0, mode="P"), picture(0, mode="L")]
    path = write_parquet(tmp_path / "colour.parquet", [encoded(image) for image in colours] * 2, alternating(10))
    write_parquet(tmp_path / "test.parquet", pictures(2), [0, 1])
    data = loaded(path)
    found = {image.transpose(1, 2, 0).tobytes() for part in (data.train, data.test) for image in part.images}
    palette = picture(0).convert("P").convert("RGB")
    expected = {np.asarray(picture(0)).tobytes(), np.asarray(palette).tobytes(), np.repeat(gray, 3).tobytes()}
    assert found == expected | {np.repeat(np.asarray(picture(0, mode="L")), 3).tobytes()}


@pytest.mark.parametrize("gray_place", [0, 39])
def test_gray_and_colour_mixed_are_read_as_rgb_whichever_comes_first(gray_place: int, tmp_path: Path) -> None:
    images = [picture(i, mode="L" if i == gray_place else "RGB") for i in range(40)]
    write_parquet(tmp_path / "a/train.parquet", [encoded(image) for image in images], alternating(40))
    write_parquet(tmp_path / "a/test.parquet", [encoded(picture(i, mode="L")) for i in (50, 51)], [0, 1])
    data = loaded("a", tmp_path)
    for image, found in zip(images, data.train.images, strict=True):
        np.testing.assert_array_equal(found.transpose(1, 2, 0), np.asarray(image.convert("RGB")))
    assert data.info.notes == ("read as RGB: 3 grayscale images among images in colour",)


def test_colour_in_the_test_images_alone_makes_rgb_too(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a/train.parquet", [encoded(picture(i, mode="L")) for i in range(4)], alternating(4))
    write_parquet(tmp_path / "a/test.parquet", pictures(2), [0, 1])
    assert loaded("a", tmp_path).train.images.shape == (4, 3, 4, 4)


def test_pixels_of_32_bits_are_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "c.parquet", [encoded(picture(0, mode="F"), "TIFF")] * 4, alternating(4))
    assert "row 0 has pixels of mode F" in error_of(path)


# Image folders


def test_image_folder_with_train_and_test(tmp_path: Path) -> None:
    write_folder(tmp_path / "a/train", {"cat": 3, "dog": 2})
    write_folder(tmp_path / "a/test", {"dog": 2})
    (tmp_path / "a/train/cat/notes.txt").write_text("no image")
    (tmp_path / "a/train/.cache").mkdir()
    data = loaded("a", tmp_path)
    assert data.info.class_names == ("cat", "dog") and data.info.name == "a"
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1] and data.test.labels.tolist() == [1, 1]
    np.testing.assert_array_equal(data.train.images[4].transpose(1, 2, 0), np.asarray(picture(101)))
    write_folder(tmp_path / "a/test/", {"emu": 1})
    assert "'emu'" in error_of("a", tmp_path)


def test_image_folder_of_classes_is_split(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", {"x": 10, "y": 5, "nothing": 0}, size=(6, 4), mode="L")
    data = loaded(tmp_path / "a", image_size=4)
    assert data.info.class_names == ("x", "y") and data.info.augmentation == "shift"
    assert np.bincount(data.train.labels).tolist() == [8, 4] and np.bincount(data.test.labels).tolist() == [2, 1]
    broken = tmp_path / "a/y/004.png"
    broken.write_bytes(broken.read_bytes()[:60])
    assert error_of(tmp_path / "a", image_size=4).startswith(str(broken))


# Fingerprints


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_fingerprint_follows_content_not_place(kind: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "elsewhere/second"
    if kind == "folder":
        write_folder(first / "train", {"cat": 3, "dog": 2})
        write_folder(first / "test", {"dog": 2})
        target = "train/cat/001.png"
    else:
        write_parquet(first / "train.parquet", pictures(6), alternating(6))
        write_parquet(first / "test.parquet", pictures(2), [0, 1])
        target = "test.parquet"
    fingerprint = info_of(first).fingerprint
    shutil.copytree(first, second)
    assert info_of("second", second.parent).fingerprint == fingerprint
    assert info_of(first, image_size=4).fingerprint == fingerprint  # nothing is resized
    assert info_of(first, image_size=5).fingerprint != fingerprint
    data = bytearray((second / target).read_bytes())
    data[data.index(b"IDAT") + 6] ^= 1
    (second / target).write_bytes(data)
    assert info_of(second).fingerprint != fingerprint


def test_fingerprint_depends_on_the_names_in_an_image_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", {"cat": 3, "dog": 2})
    before = info_of("a", tmp_path).fingerprint
    (tmp_path / "a/dog").rename(tmp_path / "a/cow")
    assert info_of("a", tmp_path).fingerprint != before


def test_digits_fingerprint_is_fixed() -> None:
    assert info_of("digits").fingerprint == "e6c6360373e6d5af"


# Names


@pytest.mark.parametrize("name", ["cifar1O", "", "no/such/file.parquet", "../digits", "~nobody"])
def test_unknown_names_are_answered_with_the_valid_ones(name: str, tmp_path: Path) -> None:
    message = error_of(name, tmp_path)
    assert repr(name) in message and "digits, cifar10, cifar100, fashion_mnist, svhn" in message
    assert "image folder" in message
    assert ("did you mean 'cifar10'?" in message) == (name == "cifar1O")


def test_local_files_come_before_torchvision(tmp_path: Path) -> None:
    write_parquet(tmp_path / "svhn.parquet", pictures(10), alternating(10))
    assert info_of("svhn", tmp_path).augmentation == "shift"
    (tmp_path / "cifar10").mkdir()
    assert "cifar10/train.parquet" in error_of("cifar10", tmp_path)


def test_an_image_folder_comes_before_a_parquet_file_of_its_name(tmp_path: Path) -> None:
    """And a folder that holds neither images nor Parquet files is passed over."""
    (tmp_path / "pets").mkdir()
    write_parquet(tmp_path / "pets.parquet", pictures(10), alternating(10))
    assert info_of("pets", tmp_path).class_names == ("0", "1")
    write_folder(tmp_path / "pets", {"cat": 6, "dog": 6})
    assert info_of("pets", tmp_path).class_names == ("cat", "dog")
    write_parquet(tmp_path / "pets/a.parquet", pictures(20), alternating(20))
    assert len(info_of("pets", tmp_path).train_labels) == 16


def test_the_digits_are_those_of_scikit_learn_whatever_lies_in_the_data_folder(tmp_path: Path) -> None:
    write_parquet(tmp_path / "other.parquet", pictures(10), alternating(10))
    (tmp_path / "digits").symlink_to(tmp_path / "other.parquet")
    assert info_of("digits", tmp_path).name == "digits"
    assert info_of("digits", tmp_path).fingerprint == info_of("digits").fingerprint


def test_a_path_without_a_data_set_says_what_it_may_hold(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert error_of(tmp_path / "empty") == (
        f"dataset '{tmp_path}/empty' holds neither arrays x_train and y_train, series of the UCR/UEA archive, "
        "Parquet files, class folders with images nor WAV recordings"
    )
    assert error_of("empty", tmp_path) == (
        f"dataset 'empty' is neither a path nor a name in {tmp_path}: give digit_rows, digits, cifar10, "
        "cifar100, fashion_mnist, svhn, or a path to an .npz file, a .ts file, a Parquet file, a folder of Parquet "
        "files, an image folder or a folder of WAV recordings"
    )


def test_describing_imports_no_torch() -> None:
    code = """
import sys
from cvit.data.datasets import describe, load
load(describe("digits", "nowhere", download=False))
assert not {"torch", "torchvision", "ray", "mlflow", "sklearn"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cifar10(cifar10_dir: Path) -> None:
    info = info_of("cifar10", cifar10_dir)
    assert (info.image_size, info.in_channels, info.num_classes, info.num_test) == (32, 3, 10, 10_000)
    assert np.bincount(info.train_labels).tolist() == [5000] * 10
    assert info.class_names[:3] == ("airplane", "automobile", "bird") and info.augmentation == "crop_flip"
    assert subset_size(info.train_labels, 0.01, 0.1) == 450
    path = cifar10_dir / "cifar10/test.parquet"
    data = loaded(path)
    assert len(data.train.labels) == 8000 and np.bincount(data.test.labels).tolist() == [200] * 10
    first = int(
        holdout(np.asarray(pq.read_table(path, columns=["label"])["label"].to_pylist()), 0.2, "test split")[0][0]
    )
    encoded_image = pq.ParquetFile(path).read_row_group(0)["img"][first].as_py()["bytes"]
    expected = np.asarray(Image.open(io.BytesIO(encoded_image)))
    np.testing.assert_array_equal(data.train.images[0].transpose(1, 2, 0), expected)
