import io
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.datasets
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cvit.data.datasets import DataError, Dataset, DatasetInfo, describe, load
from cvit.data.subsets import holdout, select, subset, subset_size, train_validation_split
from cvit.training.randomness import derived_seed, generator

NAMES = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
Writer = Callable[..., Path]


def picture(value: int, size: tuple[int, int] = (4, 4), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def pictures(count: int, first: int = 0) -> list[bytes]:
    return [encoded(picture(first + i)) for i in range(count)]


def alternating(count: int) -> list[int]:
    return [i % 2 for i in range(count)]


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[object] | pa.Array,
    *,
    image_column: str = "img",
    label_column: str = "label",
    plain: bool = False,
    metadata: object = None,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    column = pa.array(images, pa.binary())
    if not plain:
        column = pa.StructArray.from_arrays([column, pa.nulls(len(images), pa.string())], ["bytes", "path"])
    table = pa.table({image_column: column, label_column: pa.array(labels)})
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, path, row_group_size=4)
    return path


def write_folder(root: Path, counts: dict[str, int], size: tuple[int, int] = (4, 4), mode: str = "RGB") -> Path:
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(100 * number + i, size, mode).save(root / name / f"{i:03}.png")
    return root


def info_of(dataset: object, data_dir: Path | str = "nowhere", image_size: int | None = None) -> DatasetInfo:
    return describe(str(dataset), data_dir, download=False, image_size=image_size)


def loaded(dataset: object, data_dir: Path | str = "nowhere", image_size: int | None = None) -> Dataset:
    """Loads a data set and checks that description and content agree."""
    info = info_of(dataset, data_dir, image_size)
    data = load(info)
    shape = (info.in_channels, info.image_size, info.image_size)
    for part, count in ((data.train, len(info.train_labels)), (data.test, info.num_test)):
        assert part.images.shape == (count, *shape) and part.images.dtype == np.uint8
        assert part.labels.shape == (count,) and part.labels.dtype == np.int64
        assert part.labels.min() >= 0 and part.labels.max() < data.num_classes
    np.testing.assert_array_equal(data.train.labels, info.train_labels)
    for name in ("name", "num_classes", "class_names", "augmentation", "fingerprint"):
        assert getattr(data, name) == getattr(info, name)
    return data


def error_of(dataset: object, data_dir: Path | str = "nowhere", image_size: int | None = None) -> str:
    with pytest.raises(DataError) as caught:
        load(info_of(dataset, data_dir, image_size))
    message = str(caught.value)
    assert "\n" not in message
    return message


# Addressed randomness


def test_generators_are_fresh_and_differ_between_addresses() -> None:
    import torch

    addresses = [(0, "init", 0), (1, "init", 0), (0, "order", 0), (0, "init", 1), (11, "init", 0), (1, "init", 10)]
    draws = [torch.rand(4, generator=generator(*address)) for address in addresses]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(addresses)
    assert torch.equal(draws[0], torch.rand(4, generator=generator(0, "init")))
    assert derived_seed(0, "init") == 18175065234453075648  # the same on every machine and in every version


# Subsets

labels_of = hnp.arrays(np.int64, st.integers(1, 120), elements=st.integers(0, 5))
fractions = st.floats(1e-4, 1.0)


@given(labels_of, fractions, fractions, st.integers(0, 3))
def test_subsets_are_nested_sorted_and_hold_every_class(labels: np.ndarray, a: float, b: float, seed: int) -> None:
    small, large = (subset(labels, fraction, seed) for fraction in sorted((a, b)))
    assert set(small) <= set(large)
    assert np.all(np.diff(large) > 0)
    assert set(labels[small]) == set(labels)


@given(labels_of, fractions, st.floats(0.01, 0.9), st.integers(0, 3))
def test_sizes_follow_from_the_labels_alone(labels: np.ndarray, fraction: float, held: float, seed: int) -> None:
    split = select(labels, fraction, held, seed)
    assert len(split.train) == subset_size(labels, fraction, held)
    pool, validation = train_validation_split(labels, held)
    np.testing.assert_array_equal(split.validation, validation)
    assert set(split.train) <= set(pool)
    np.testing.assert_array_equal(np.sort(np.concatenate([pool, validation])), np.arange(len(labels)))


@given(labels_of, fractions)
def test_subsets_are_stratified(labels: np.ndarray, fraction: float) -> None:
    counts = np.bincount(labels)
    taken = np.bincount(labels[subset(labels, fraction, 0)], minlength=len(counts))
    assert np.all(np.abs(taken - fraction * counts) <= 1)


@given(labels_of, st.floats(0.01, 0.9))
def test_classes_of_two_or_more_images_are_on_both_sides_of_a_holdout(labels: np.ndarray, fraction: float) -> None:
    rest, held = holdout(labels, fraction, "test split")
    assert set(labels[rest]) == set(labels)
    assert set(labels[held]) == set(np.flatnonzero(np.bincount(labels) >= 2))


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.1, 0.25, 0.5])
def test_subset_is_about_the_fraction_even_where_classes_would_all_round_up(fraction: float) -> None:
    labels = np.repeat(np.arange(10), 130)
    assert abs(len(subset(labels, fraction, 0)) - fraction * len(labels)) <= 1


def test_subset_of_everything_is_everything_and_seeds_differ() -> None:
    labels = np.tile(np.arange(4), 25)
    np.testing.assert_array_equal(subset(labels, 1.0, 3), np.arange(100))
    assert set(subset(labels, 0.5, 0)) != set(subset(labels, 0.5, 1))
    assert set(holdout(labels, 0.2, "test split")[1]) != set(holdout(labels, 0.2, "validation split")[1])


def test_subset_is_the_same_in_every_version() -> None:
    assert subset(np.tile(np.arange(2), 10), 0.2, 7).tolist() == [1, 8, 17, 18]


# Digits and torchvision's data sets


def test_digits_are_those_of_scikit_learn() -> None:
    data = loaded("digits")
    values, labels = sklearn.datasets.load_digits(return_X_y=True)
    images = np.rint(np.asarray(values).reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    found = np.concatenate([data.train.images, data.test.images])[:, 0]
    assert sorted(image.tobytes() for image in found) == sorted(image.tobytes() for image in images)
    pool = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert all(pool[image.tobytes()] == label for image, label in zip(data.test.images, data.test.labels, strict=True))
    assert data.augmentation == "shift" and data.num_classes == 10 and data.train.images.max() == 255
    assert abs(len(data.test.labels) - 0.2 * len(images)) <= 5


def test_arrays_are_resized() -> None:
    small, large = loaded("digits"), loaded("digits", image_size=16)
    assert large.train.images.shape[-1] == 16
    expected = Image.fromarray(small.train.images[0, 0]).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(large.train.images[0, 0], np.asarray(expected))
    assert small.fingerprint != large.fingerprint
    assert small.fingerprint == info_of("digits", image_size=8).fingerprint


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
    assert data.class_names[0] == "T-shirt/top" and data.augmentation == "crop_flip"
    path = tmp_path / "FashionMNIST/raw/t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    assert "could not be read" in error_of("fashion_mnist", tmp_path)
    path.unlink()
    assert "is not in" in error_of("fashion_mnist", tmp_path)


def test_damaged_torchvision_files_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    message = error_of("cifar10", tmp_path)
    assert "corrupted" in message and "download=True" not in message


# Parquet


def test_parquet_pixels_labels_and_class_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "pets/train.parquet", pictures(10), alternating(10), metadata=NAMES)
    write_parquet(tmp_path / "pets/test.parquet", pictures(4, 50), [1, 0, 0, 1], metadata=NAMES)
    data = loaded("pets", tmp_path)
    for i in range(10):
        np.testing.assert_array_equal(data.train.images[i].transpose(1, 2, 0), np.asarray(picture(i)))
    assert data.test.labels.tolist() == [1, 0, 0, 1] and data.train.labels.tolist() == alternating(10)
    assert data.class_names == ("cat", "dog") and data.name == "pets" and data.augmentation == "crop_flip"


@pytest.mark.parametrize("options", [{}, {"plain": True}, {"image_column": "image"}, {"label_column": "labels"}])
@pytest.mark.parametrize(
    "names",
    [
        ("train.parquet", "test.parquet"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"),
        ("train.parquet", "validation.parquet"),
    ],
)
def test_parquet_layouts(names: tuple[str, str], options: dict, tmp_path: Path) -> None:
    write_parquet(tmp_path / "a" / names[0], pictures(6), alternating(6), **options)
    write_parquet(tmp_path / "a" / names[1], pictures(2, 50), [0, 1], **options)
    data = loaded("a", tmp_path)
    assert len(data.train.labels) == 6 and len(data.test.labels) == 2 and data.class_names == ("0", "1")


def test_shards_are_joined_in_order_and_test_is_preferred_to_validation(tmp_path: Path) -> None:
    for shard in (1, 0):
        path = tmp_path / f"a/data/train-0000{shard}-of-00002.parquet"
        write_parquet(path, pictures(6, 10 * shard), alternating(6))
    write_parquet(tmp_path / "a/data/validation-00000-of-00001.parquet", pictures(3), [0, 1, 1])
    write_parquet(tmp_path / "a/data/test-00000-of-00001.parquet", pictures(2), [0, 1])
    data = loaded(tmp_path / "a")
    np.testing.assert_array_equal(data.train.images[6].transpose(1, 2, 0), np.asarray(picture(10)))
    assert len(data.train.labels) == 12 and len(data.test.labels) == 2


@pytest.mark.parametrize("name", ["a.parquet", "a/rows.parquet", "a/train.parquet"])
def test_one_parquet_file_is_split_by_the_same_rule_everywhere(name: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / name, pictures(20), alternating(20))
    data = loaded("a", tmp_path)
    assert np.bincount(data.test.labels).tolist() == [2, 2] and np.bincount(data.train.labels).tolist() == [8, 8]
    images = {image.tobytes() for part in (data.train, data.test) for image in part.images}
    assert len(images) == 20
    assert loaded(tmp_path / name).fingerprint == data.fingerprint


def test_names_become_class_indices(tmp_path: Path) -> None:
    labels = ["dog", "cat", "cat", "dog", "ant", "ant"]
    write_parquet(tmp_path / "a/train.parquet", pictures(6), pa.array(labels).dictionary_encode())
    write_parquet(tmp_path / "a/test.parquet", pictures(2), ["dog", "ant"])
    data = loaded("a", tmp_path)
    assert data.class_names == ("ant", "cat", "dog")
    assert data.train.labels.tolist() == [2, 1, 1, 2, 0, 0] and data.test.labels.tolist() == [2, 0]


def test_fine_labels_come_before_coarse_ones(tmp_path: Path) -> None:
    table = pa.table({"img": pa.array(pictures(8)), "coarse_label": [0] * 8, "fine_label": alternating(8)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert info_of("a", tmp_path).num_classes == 2


@pytest.mark.parametrize(
    ("labels", "options", "expected"),
    [
        ([-1, 0, 1, 1], {}, "from -1 to 1"),
        ([1, 2, 1, 2], {}, "must be 0..1"),
        ([0, 1, 2, 0], {"metadata": NAMES}, "label 2; labels must lie in 0..1"),
        ([0, 0, -1, 0], {"metadata": NAMES}, "label -1"),
        ([0.5, 1.0, 0.0, 1.0], {}, "labels must be integers"),
        ([0, None, 1, 1], {}, "1 rows without a label"),
        ([0, 0, 0, 0], {}, "1 class"),
        ([0, 1, 0, 1], {"image_column": "photo"}, "no image column (img or image); its columns are photo, label"),
        ([0, 1, 0, 1], {"label_column": "y"}, "no label column"),
    ],
)
def test_unusable_parquet_columns(labels: list, options: dict, expected: str, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(4), labels, **options)
    message = error_of(path)
    assert expected in message and str(path) in message


def test_images_must_be_stored_in_the_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"img": ["a.png", "b.png"], "label": [0, 1]}), tmp_path / "a.parquet")
    assert "column img is string; it must be binary" in error_of("a", tmp_path)
    path = write_parquet(tmp_path / "b.parquet", [*pictures(3), None], [0, 1, 0, 1])
    assert error_of(path) == f"{path} row 3 holds no image bytes"


def test_test_labels_must_be_those_of_the_training_images(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a/train.parquet", pictures(4), [0, 1, 0, 1])
    write_parquet(tmp_path / "a/test.parquet", pictures(2), [0, 2])
    assert "test.parquet has label 2" in error_of("a", tmp_path)
    write_parquet(tmp_path / "a/test.parquet", pictures(2), ["0", "1"])
    assert "different types" in error_of("a", tmp_path)


def test_shards_must_agree(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a/train-0.parquet", pictures(4), [0, 1, 0, 1])
    write_parquet(tmp_path / "a/train-1.parquet", pictures(2), ["0", "1"])
    assert "integers in some files" in error_of("a", tmp_path)
    write_parquet(tmp_path / "a/train-1.parquet", pictures(2), [0, 1], plain=True)
    assert "column img of different types" in error_of("a", tmp_path)
    write_parquet(tmp_path / "a/train-1.parquet", pictures(2), [0, 1], image_column="image")
    assert "train-1.parquet has no image column (img)" in error_of("a", tmp_path)


def test_files_that_are_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    assert "a.parquet is not a Parquet file that can be read" in error_of("a", tmp_path)
    assert "holds no rows" in error_of(write_parquet(tmp_path / "b.parquet", [], pa.array([], pa.int64())))
    write_parquet(tmp_path / "c/test.parquet", pictures(2), [0, 1])
    write_parquet(tmp_path / "c/validation.parquet", pictures(2), [0, 1])
    assert "no train*.parquet" in error_of("c", tmp_path)
    for place in ("fine", "coarse"):
        write_parquet(tmp_path / "d" / place / "train.parquet", pictures(4), [0, 1, 0, 1])
    assert "coarse, fine" in error_of("d", tmp_path)
    (tmp_path / "e").mkdir()
    assert "holds neither" in error_of(tmp_path / "e")
    assert "too few images" in error_of(write_parquet(tmp_path / "f.parquet", pictures(2), [0, 1]))


def test_undecodable_images_are_named_by_row(tmp_path: Path) -> None:
    images = pictures(40)
    write_parquet(tmp_path / "a/train-0.parquet", images, alternating(40))
    broken = write_parquet(tmp_path / "a/train-1.parquet", [images[0], b"nothing"], [0, 1])
    assert error_of("a", tmp_path).startswith(f"{broken} row 1 ")
    noise = encoded(picture(0, (64, 64)))
    images[37] = noise[: len(noise) // 2]
    path = write_parquet(tmp_path / "b.parquet", images, alternating(40))
    assert error_of(path, image_size=4).startswith(f"{path} row 37 cannot be decoded")
    assert "row 37 is 64x64 where others are 4x4; give --image-size" in error_of(path)


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
    assert data.fingerprint != loaded("a", tmp_path, image_size=4).fingerprint
    assert "must be at least 1" in error_of("a", tmp_path, image_size=0)


def test_modes_become_one_or_three_channels(tmp_path: Path) -> None:
    gray = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    grays = [Image.fromarray(gray), Image.fromarray(gray.astype(np.uint16) * 256), Image.fromarray(gray).convert("LA")]
    grays.append(Image.fromarray(gray > 100))
    path = write_parquet(tmp_path / "gray.parquet", [encoded(image) for image in grays] * 3, alternating(12))
    data = loaded(path)
    assert data.augmentation == "shift" and data.train.images.shape[1] == 1
    expected = {gray.tobytes(), ((gray > 100) * np.uint8(255)).tobytes()}
    assert {image.tobytes() for image in data.train.images} == expected

    transparent = picture(0).convert("P")
    transparent.info["transparency"] = bytes(range(256))
    colours = [picture(0), picture(0, mode="RGBA"), transparent, Image.fromarray(gray), picture(0, mode="P")]
    path = write_parquet(tmp_path / "colour.parquet", [encoded(image) for image in colours] * 2, alternating(10))
    write_parquet(tmp_path / "test.parquet", pictures(2), [0, 1])
    data = loaded(path)
    found = {image.transpose(1, 2, 0).tobytes() for part in (data.train, data.test) for image in part.images}
    palette = picture(0).convert("P").convert("RGB")
    expected = {np.asarray(picture(0)).tobytes(), np.asarray(palette).tobytes(), np.repeat(gray, 3).tobytes()}
    assert found == expected


def test_channels_must_agree(tmp_path: Path) -> None:
    gray = [encoded(picture(i, mode="L")) for i in range(40)]
    write_parquet(tmp_path / "a/train.parquet", gray, alternating(40))
    write_parquet(tmp_path / "a/test.parquet", pictures(2), [0, 1])
    assert "1 channels in its training images, 3 in its test images" in error_of("a", tmp_path)
    path = write_parquet(tmp_path / "b.parquet", [*gray[:39], encoded(picture(0))], alternating(40))
    assert "row 39 is in colour" in error_of(path)
    path = write_parquet(tmp_path / "c.parquet", [encoded(picture(0, mode="F"), "TIFF")] * 4, alternating(4))
    assert "row 0 has pixels of mode F" in error_of(path)


# Image folders


def test_image_folder_with_train_and_test(tmp_path: Path) -> None:
    write_folder(tmp_path / "a/train", {"cat": 3, "dog": 2})
    write_folder(tmp_path / "a/test", {"dog": 2})
    (tmp_path / "a/train/cat/notes.txt").write_text("no image")
    (tmp_path / "a/train/.cache").mkdir()
    data = loaded("a", tmp_path)
    assert data.class_names == ("cat", "dog") and data.name == "a"
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1] and data.test.labels.tolist() == [1, 1]
    np.testing.assert_array_equal(data.train.images[4].transpose(1, 2, 0), np.asarray(picture(101)))
    write_folder(tmp_path / "a/test/", {"emu": 1})
    assert "'emu'" in error_of("a", tmp_path)


def test_image_folder_of_classes_is_split(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", {"x": 10, "y": 5, "nothing": 0}, size=(6, 4), mode="L")
    data = loaded(tmp_path / "a", image_size=4)
    assert data.class_names == ("x", "y") and data.augmentation == "shift"
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
