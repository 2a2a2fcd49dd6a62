"""Image data sets in Parquet: an image column (a struct with `bytes`, or plain binary) and a label column."""

import bisect
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cvit.data.formats import Format, Place
from cvit.data.images import DataError
from cvit.data.stored import EncodedPart, Labels, Stored, hash_files
from cvit.errors import one_line

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label", "coarse_label")


@dataclass(frozen=True, eq=False)
class ParquetPart(EncodedPart):
    """Images in rows of Parquet files.

    Attributes:
        ends: for each file, the number of rows up to its end, earlier files included.
        column: the path of the leaf column that holds the encoded images.
    """

    files: tuple[Path, ...]
    ends: tuple[int, ...]
    column: str

    def batches(self, size: int) -> Iterator[Sequence[bytes | None]]:
        for path in self.files:
            with _errors_name(path):
                for batch in pq.ParquetFile(path).iter_batches(size, columns=[self.column]):
                    column = batch.column(0)
                    if isinstance(column, pa.StructArray):
                        column = column.flatten()[0]
                    if len(column):
                        yield column.to_pylist()

    def name_of(self, index: int) -> str:
        file = bisect.bisect_right(self.ends, index)
        return f"{self.files[file]} row {index - (self.ends[file - 1] if file else 0)}"


def open_parquet(place: Place) -> Stored | None:
    """Reads a Parquet file, or the Parquet files of a folder; None if there are none.

    Raises:
        DataError: as for `parquet_files` and `read_parquet`.
    """
    if place.path is None:
        return None
    files = [place.path] if place.path.is_file() else parquet_files(place.path) if place.path.is_dir() else []
    return read_parquet(files) if files else None


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a data set: in the folder, else in its `data`, else in its only folder that has some.

    Raises:
        DataError: several folders in it hold Parquet files.
    """
    for place in (folder, folder / "data"):
        if files := sorted(place.glob("*.parquet")):
            return files
    files = sorted(folder.glob("*/*.parquet"))
    places = sorted({path.parent.name for path in files})
    if len(places) > 1:
        raise DataError(f"{folder} holds Parquet files in {', '.join(places)}: give the path of one of these folders")
    return files


def read_parquet(files: Sequence[Path]) -> Stored:
    """Reads labels and class names; images stay where they are.

    Files named train* hold the training images, test* (else val*) the test images. Without such names all files are
    one pool without test images of its own.

    Raises:
        DataError: a file is not Parquet, has no usable columns or labels, or no rows.
    """
    train, test = _roles(files)
    paths = [train, test] if test else [train]
    schema = _schema(train[0])
    image, label = _column(train[0], schema, "image", IMAGE_COLUMNS), _column(train[0], schema, "label", LABEL_COLUMNS)
    labels, class_names = _encode(
        [str(part[0]) for part in paths], [_read_labels(part, label) for part in paths], _class_names(schema, label)
    )
    parts = [_part(files, image, values) for files, values in zip(paths, labels, strict=True)]
    content = hash_files((role, path) for role, part in zip(("train", "test"), paths, strict=False) for path in part)
    return Stored(parts[0], parts[1] if test else None, class_names, content)


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {one_line(error)}") from error


def _roles(files: Sequence[Path]) -> tuple[Sequence[Path], Sequence[Path]]:
    """The training and the test files."""
    train, test, validation = (
        [path for path in files if path.name.startswith(prefix)] for prefix in ("train", "test", "val")
    )
    if len(files) == 1 or not (train or test or validation):
        return files, []
    if not train:
        raise DataError(f"{files[0].parent} holds {files[0].name} but no train*.parquet")
    return train, test or validation


def _schema(path: Path) -> pa.Schema:
    with _errors_name(path):
        return pq.ParquetFile(path).schema_arrow


def _column(path: Path, schema: pa.Schema, kind: str, names: Sequence[str]) -> str:
    for name in names:
        if name in schema.names:
            return name
    raise DataError(
        f"{path} has no {kind} column ({' or '.join(names)}); its columns are {', '.join(schema.names) or 'none'}"
    )


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """The class names that the Hugging Face `datasets` library wrote into the schema's metadata; None without any."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _read_labels(files: Sequence[Path], label: str) -> np.ndarray:
    """The labels as stored: integers, or names (dtype object)."""
    parts = []
    for path in files:
        _column(path, _schema(path), "label", [label])
        with _errors_name(path):
            column = pq.ParquetFile(path).read(columns=[label]).column(label)
        if column.null_count:
            raise DataError(f"{path} column {label} has {column.null_count} rows without a label")
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if not (pa.types.is_integer(column.type) or _is_text(column.type)):
            raise DataError(f"{path} column {label} is {column.type}; labels must be integers from 0, or names")
        parts.extend(map(_array, column.chunks))
    if len({values.dtype.kind == "O" for values in parts}) > 1:
        raise DataError(f"{files[0].parent} has labels that are integers in some files and names in others")
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _array(labels: pa.Array) -> np.ndarray:
    """The labels as an array; `to_numpy` would import pandas."""
    return np.array(labels.to_pylist(), object) if _is_text(labels.type) else np.from_dlpack(labels)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _encode(
    names: Sequence[str], parts: Sequence[np.ndarray], class_names: tuple[str, ...] | None
) -> tuple[list[Labels], tuple[str, ...]]:
    """The class indices of each part, and the class names; the first part holds the training images."""
    for name, values in zip(names, parts, strict=True):
        if not len(values):
            raise DataError(f"{name} holds no rows")
    is_text = {values.dtype.kind == "O" for values in parts}
    if len(is_text) > 1:
        raise DataError(f"{names[0]} and {names[1]} have labels of different types")
    if is_text == {True}:
        return _encode_names(names, parts)
    if class_names is None:
        labels = np.unique(parts[0])
        if labels[0] != 0 or labels[-1] != len(labels) - 1:
            raise DataError(
                f"{names[0]} has {len(labels)} different labels from {labels[0]} to {labels[-1]}; "
                f"they must be 0..{len(labels) - 1}"
            )
        class_names = tuple(map(str, labels))
    for name, values in zip(names, parts, strict=True):
        outside = values[(values < 0) | (values >= len(class_names))]
        if len(outside):
            raise DataError(f"{name} has label {outside[0]}; labels must lie in 0..{len(class_names) - 1}")
    return [values.astype(np.int64) for values in parts], class_names


def _encode_names(names: Sequence[str], parts: Sequence[np.ndarray]) -> tuple[list[Labels], tuple[str, ...]]:
    index = {value: i for i, value in enumerate(sorted(set(parts[0])))}
    for name, values in zip(names, parts, strict=True):
        if unknown := sorted(set(values) - set(index)):
            raise DataError(f"{name} has label {unknown[0]!r}, which no training image has")
    return [np.array([index[value] for value in values], np.int64) for values in parts], tuple(index)


def _part(files: Sequence[Path], image: str, labels: Labels) -> ParquetPart:
    columns = {_encoded_column(path, image) for path in files}
    if len(columns) > 1:
        raise DataError(f"{files[0].parent} has column {image} of different types in its files")
    with _errors_name(files[0].parent):
        ends = tuple(itertools.accumulate(pq.ParquetFile(path).metadata.num_rows for path in files))
    return ParquetPart(labels, tuple(files), ends, columns.pop())


def _encoded_column(path: Path, image: str) -> str:
    """The path of the leaf column that holds the encoded images."""
    schema = _schema(path)
    kind = schema.field(_column(path, schema, "image", [image])).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        leaf, column = kind.field("bytes").type, f"{image}.bytes"
    else:
        leaf, column = kind, image
    if not (pa.types.is_binary(leaf) or pa.types.is_large_binary(leaf)):
        raise DataError(f"{path} column {image} is {kind}; it must be binary, or a struct with binary bytes")
    return column


FORMAT = Format(
    open=open_parquet,
    order=50,
    suffix=".parquet",
    paths=("a Parquet file", "a folder of Parquet files"),
    contents="Parquet files",
)
