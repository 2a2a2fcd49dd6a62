from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.images import (
    NAMES,
    alternating,
    encoded,
    error_of,
    info_of,
    loaded,
    picture,
    pictures,
    write_parquet,
)


def test_parquet_pixels_labels_and_class_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "pets/train.parquet", pictures(10), alternating(10), metadata=NAMES)
    write_parquet(tmp_path / "pets/test.parquet", pictures(4, 50), [1, 0, 0, 1], metadata=NAMES)
    data = loaded("pets", tmp_path)
    for i in range(10):
        np.testing.assert_array_equal(data.train.images[i].transpose(1, 2, 0), np.asarray(picture(i)))
    assert data.test.labels.tolist() == [1, 0, 0, 1] and data.train.labels.tolist() == alternating(10)
    assert (
        data.info.class_names == ("cat", "dog") and data.info.name == "pets" and data.info.augmentation == "crop_flip"
    )


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
    assert len(data.train.labels) == 6 and len(data.test.labels) == 2 and data.info.class_names == ("0", "1")


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
    assert loaded(tmp_path / name).info.fingerprint == data.info.fingerprint


def test_names_become_class_indices(tmp_path: Path) -> None:
    labels = ["dog", "cat", "cat", "dog", "ant", "ant"]
    write_parquet(tmp_path / "a/train.parquet", pictures(6), pa.array(labels).dictionary_encode())
    write_parquet(tmp_path / "a/test.parquet", pictures(2), ["dog", "ant"])
    data = loaded("a", tmp_path)
    assert data.info.class_names == ("ant", "cat", "dog")
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
