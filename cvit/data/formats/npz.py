"""Sequences in an .npz file: `x_train` (n, channels, length) and `y_train`, and the same for `x_test`, if there."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from cvit.data.formats import Format, Place
from cvit.data.images import DataError
from cvit.data.sequences import Values, as_float32, stored_sequences, without_padding
from cvit.data.stored import Stored
from cvit.errors import one_line, some_of


def open_npz(place: Place) -> Stored | None:
    """Reads sequences of float or of integers; None if the place is no .npz file. An array (n, length) has one channel.

    Missing values (NaN) at the end of a sequence make it shorter.

    Raises:
        DataError: the file is damaged, or its arrays are not as they should be.
    """
    path = place.path
    if path is None or not path.is_file() or path.suffix.lower() != ".npz":
        return None
    try:
        with path.open("rb") as file:
            if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                raise ValueError("it holds one array, without a name")
        with zipfile.ZipFile(path) as archive:
            arrays = {
                name.removesuffix(".npy"): _array(archive, name) for name in archive.namelist() if name.endswith(".npy")
            }
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error
    splits = ["train", *(["test"] if {"x_test", "y_test"} & arrays.keys() else [])]
    if missing := [f"{each}_{split}" for split in splits for each in "xy" if f"{each}_{split}" not in arrays]:
        held = some_of(sorted(arrays)) if arrays else "nothing"
        raise DataError(
            f"{path} lacks {some_of(missing)}: it holds {held}; x_ and y_train are needed, x_ and y_test may be"
        )
    parts = [_part(path, split, arrays[f"x_{split}"], arrays[f"y_{split}"]) for split in splits]
    return stored_sequences(parts, None, str(path))


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of the archive. Unlike `np.load`, this is never a way to unpickle: an array of objects is an error."""
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _part(path: Path, split: str, x: np.ndarray, y: np.ndarray) -> tuple[list[Values], list[str], list[str]]:
    if x.ndim not in (2, 3):
        raise DataError(f"x_{split} of {path} has the shape {x.shape}; sequences are (n, channels, length)")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind == "f" and np.isfinite(y).all() and not (y % 1).any():
        y = y.astype(np.int64)  # a table of numbers with the class in a column, as `np.loadtxt` reads the archive
    if y.shape != (len(x),):
        raise DataError(f"y_{split} of {path} has the shape {y.shape}, and x_{split} {len(x)} sequences")
    if y.dtype.kind not in "USiub":
        raise DataError(f"y_{split} of {path} holds values of type {y.dtype}; labels are text or whole numbers")
    values = as_float32(x if x.ndim == 3 else x[:, None], f"x_{split} of {path}")
    labels = [label.decode(errors="replace") if isinstance(label, bytes) else str(label) for label in y.tolist()]
    return (
        [*map(without_padding, values)],
        labels,
        [f"recording {index} of x_{split} in {path}" for index in range(len(x))],
    )


FORMAT = Format(
    open=open_npz,
    suffix=".npz",
    paths=("an .npz file",),
    contents="arrays x_train and y_train",
)
