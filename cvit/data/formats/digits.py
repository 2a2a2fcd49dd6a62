"""The digits of scikit-learn, which need neither a download nor a data folder."""

import importlib.util
from pathlib import Path

import numpy as np

from cvit.data.formats import Format, Place
from cvit.data.images import DataError
from cvit.data.stored import ArrayPart, Stored, hash_arrays

NAME = "digits"


def open_digits(place: Place) -> Stored | None:
    """Reads 1,797 scanned digits, 8x8, one channel, scaled from 0..16 to 0..255; one pool.

    It reads the file of `sklearn.datasets.load_digits` directly, because importing scikit-learn takes seconds.

    Raises:
        DataError: scikit-learn is not installed, or keeps the file elsewhere.
    """
    if place.name != NAME:
        return None
    spec = importlib.util.find_spec("sklearn")
    path = Path(str(spec.origin if spec else None)).parent / "datasets/data/digits.csv.gz"
    if not path.is_file():
        raise DataError(f"the digits of scikit-learn are not at {path}; install scikit-learn")
    table = np.loadtxt(path, delimiter=",", dtype=np.int64)
    images = ((table[:, :-1] * 255 + 8) // 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    pool = ArrayPart(images, table[:, -1])
    return Stored(pool, None, tuple(map(str, range(10))), hash_arrays([pool.images, pool.labels]))


FORMAT = Format(open=open_digits, order=0, known={NAME: "shift"})
