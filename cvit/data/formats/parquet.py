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
from cvit.data.parquet_layout import SUFFIX, Files, ParquetLayout, parquet_layout
from cvit.data.splits import only_one
from cvit.data.stored import EncodedPart, Labels, Stored, hash_files
from cvit.errors import one_line, some_of

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label", "coarse_label")


@dataclass(frozen=True, eq=False)
class ParquetPart(EncodedPart):
    """Images in rows of Parquet files.

    Attributes:
        ends: for each file, the number of rows up to its end, earlier files included.
        column: the path of the leaf column that holds the encoded images.
    """

    files: Files
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
        DataError: as for `parquet_layout` and `read_parquet`.
    """
    if place.path is None:
        return None
    if place.path.is_file():
        return read_parquet(ParquetLayout((place.path,)))
    layout = parquet_layout(place.path) if place.path.is_dir() else None
    return read_parquet(layout) if layout is not None else None


def read_parquet(layout: ParquetLayout) -> Stored:
    """Reads labels and class names; images stay where they are.

    The test images are those of the best split whose images have labels. Without one, all files are one pool.

    Raises:
        DataError: a file is not Parquet, has no usable columns or labels, or no rows.
    """
    schema = _schema(layout.train[0])
    image = _column(layout.train[0], schema, "image", IMAGE_COLUMNS)
    label = _column(layout.train[0], schema, "label", LABEL_COLUMNS)
    train_labels = _read_labels(layout.train, label)
    test, test_labels, notes = _test_files(layout, label)
    paths = [layout.train, test] if test else [layout.train]
    names = [str(part[0]) for part in paths]
    given = [train_labels, test_labels] if test else [train_labels]
    labels, class_names = _encode(names, given, _class_names(layout.train[0], schema, label))
    parts = [_part(files, image, values) for files, values in zip(paths, labels, strict=True)]
    content = hash_files((role, path) for role, part in zip(("train", "test"), paths, strict=False) for path in part)
    return Stored(parts[0], parts[1] if test else None, class_names, content, notes)


def _test_files(layout: ParquetLayout, label: str) -> tuple[Files, np.ndarray, tuple[str, ...]]:
    """The files with the test images and their labels, none if no split has any; and notes about what is not used.

    Published test sets often lack their labels: in those of Hugging Face they all are -1.
    """
    notes, unused = list(layout.notes), []
    test, labels = (), np.empty(0, np.int64)
    for split in layout.tests:
        name = some_of(split.names)
        if test:
            unused += split.names
            continue
        only_one(split.names, str(split.files[0].parent), split.role)
        labels = _read_labels(split.files, label, may_lack=True)
        if not len(labels):
            notes.append(f"not used: {name}, whose images have no labels")
            continue
        test = split.files
        if split.role != "test":
            notes.append(f"tested on the images in {name}, since there are no other labelled test images")
    if layout.tests and not test:
        notes.append("test images are held out of the training images")
    if unused := [*unused, *layout.unused]:
        notes.append(f"not used: {some_of(unused)}")
    return test, labels, tuple(notes)


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {one_line(error)}") from error


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


def _class_names(path: Path, schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """The class names that the Hugging Face `datasets` library wrote into the schema's metadata; None without any."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except RecursionError as error:
        raise DataError(f"{path} has metadata that are nested too deeply to be read") from error
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _read_labels(files: Sequence[Path], label: str, *, may_lack: bool = False) -> np.ndarray:
    """The labels as stored: integers, or names (dtype object). Empty if they may lack and no image has one."""
    if may_lack and all(label not in _schema(path).names for path in files):
        return np.empty(0, np.int64)
    columns = [_read_label_column(path, label) for path in files]
    if may_lack and all(map(_lacks_labels, columns)):
        return np.empty(0, np.int64)
    parts = []
    for path, column in zip(files, columns, strict=True):
        if column.null_count:
            raise DataError(f"{path} column {label} has {column.null_count} rows without a label")
        if not (pa.types.is_integer(column.type) or _is_text(column.type)):
            raise DataError(f"{path} column {label} is {column.type}; labels must be integers from 0, or names")
        with _errors_name(path):
            parts.extend(map(_array, column.chunks))
    if len({values.dtype.kind == "O" for values in parts}) > 1:
        raise DataError(f"{files[0].parent} has labels that are integers in some files and names in others")
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _read_label_column(path: Path, label: str) -> pa.ChunkedArray:
    _column(path, _schema(path), "label", [label])
    with _errors_name(path):
        column = pq.ParquetFile(path).read(columns=[label]).column(label)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
    return column


def _lacks_labels(column: pa.ChunkedArray) -> bool:
    """True if there are images, and all of them have the label -1, or none."""
    if not len(column):
        return False
    if column.null_count == len(column):
        return True
    return pa.types.is_signed_integer(column.type) and set(column.unique().to_pylist()) <= {-1, None}


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
    suffix=SUFFIX,
    paths=("a Parquet file", "a folder of Parquet files"),
    contents="Parquet files",
)
