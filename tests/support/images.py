"""Small images, files and folders of them, and what becomes of them as data sets."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cvit.data.datasets import DataError, DatasetInfo, Images, describe, load

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


@dataclass(frozen=True)
class Loaded:
    """A loaded data set and its description."""

    info: DatasetInfo
    train: Images
    test: Images


def loaded(dataset: object, data_dir: Path | str = "nowhere", image_size: int | None = None) -> Loaded:
    """Loads a data set and checks that description and content agree."""
    info = info_of(dataset, data_dir, image_size)
    data = load(info)
    shape = (info.in_channels, info.image_size, info.image_size)
    for part, count in ((data.train, len(info.train_labels)), (data.test, info.num_test)):
        assert part.images.shape == (count, *shape) and part.images.dtype == np.uint8
        assert part.labels.shape == (count,) and part.labels.dtype == np.int64
        assert part.labels.min() >= 0 and part.labels.max() < info.num_classes == len(info.class_names)
    np.testing.assert_array_equal(data.train.labels, info.train_labels)
    return Loaded(info, data.train, data.test)


def error_of(dataset: object, data_dir: Path | str = "nowhere", image_size: int | None = None) -> str:
    with pytest.raises(DataError) as caught:
        load(info_of(dataset, data_dir, image_size))
    message = str(caught.value)
    assert "\n" not in message
    return message
