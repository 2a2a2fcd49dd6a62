"""The data sets known by name: scikit-learn's digits, and four that torchvision downloads and checks."""

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvit.config import Augmentation
from cvit.data.images import DataError
from cvit.data.stored import ArrayPart, Stored, hash_arrays
from cvit.errors import one_line


@dataclass(frozen=True)
class TorchvisionSet:
    """A torchvision class and where it looks for its files below its root."""

    class_name: str
    files: tuple[str, ...]


DIGITS = "digits"
TORCHVISION: dict[str, TorchvisionSet] = {
    "cifar10": TorchvisionSet("CIFAR10", ("cifar-10-batches-py",)),
    "cifar100": TorchvisionSet("CIFAR100", ("cifar-100-python",)),
    "fashion_mnist": TorchvisionSet(
        "FashionMNIST",
        tuple(
            f"FashionMNIST/raw/{part}-{kind}-ubyte"
            for part in ("train", "t10k")
            for kind in ("images-idx3", "labels-idx1")
        ),
    ),
    "svhn": TorchvisionSet("SVHN", ("train_32x32.mat", "test_32x32.mat")),
}
_TORCHVISION_HINT = ". You can use download=True to download it"
NAMES: tuple[str, ...] = (DIGITS, *TORCHVISION)

AUGMENTATIONS: dict[str, Augmentation] = {
    "digits": "shift",
    "cifar10": "crop_flip",
    "cifar100": "crop_flip",
    "fashion_mnist": "crop_flip",
    "svhn": "shift",
}


def read_digits() -> Stored:
    """1,797 scanned digits, 8x8, one channel, scaled from 0..16 to 0..255; one pool.

    Reads the file that `sklearn.datasets.load_digits` reads, without the seconds that importing scikit-learn takes.

    Raises:
        DataError: scikit-learn is not installed, or keeps the file elsewhere.
    """
    spec = importlib.util.find_spec("sklearn")
    path = Path(str(spec.origin if spec else None)).parent / "datasets/data/digits.csv.gz"
    if not path.is_file():
        raise DataError(f"the digits of scikit-learn are not at {path}; install scikit-learn")
    table = np.loadtxt(path, delimiter=",", dtype=np.int64)
    images = ((table[:, :-1] * 255 + 8) // 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    pool = ArrayPart(images, table[:, -1])
    return Stored(pool, None, tuple(map(str, range(10))), hash_arrays([pool.images, pool.labels]))


def read_torchvision(name: str, data_dir: Path, *, download: bool) -> Stored:
    """Reads a data set in torchvision's layout below `data_dir`, downloading it where it is missing and allowed.

    Raises:
        DataError: it is missing, damaged, or cannot be downloaded.
    """
    files = TORCHVISION[name].files
    layouts = f"{', '.join(files)} (torchvision's layout), or {name}/train.parquet and {name}/test.parquet"
    missing = not all((data_dir / file).exists() for file in files)
    if missing and not download:
        raise DataError(f"dataset {name!r} is not in {data_dir}, and downloading is off: place there {layouts}")
    try:
        train, class_names = _read(name, data_dir, download, train=True)
        test, _ = _read(name, data_dir, download, train=False)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        reason = one_line(error).removesuffix(_TORCHVISION_HINT)
        problem = "could not be downloaded to" if missing else "could not be read from"
        raise DataError(f"dataset {name!r} {problem} {data_dir} ({reason}): place there {layouts}") from error
    content = hash_arrays([train.images, train.labels, test.images, test.labels])
    return Stored(train, test, class_names, content)


def _read(name: str, root: Path, download: bool, *, train: bool) -> tuple[ArrayPart, tuple[str, ...]]:
    import torchvision.datasets

    make: Any = getattr(torchvision.datasets, TORCHVISION[name].class_name)
    options = {"split": "train" if train else "test"} if name == "svhn" else {"train": train}
    with warnings.catch_warnings():
        # The CIFAR pickles were written by an old numpy, about which a new one warns.
        warnings.filterwarnings("ignore", category=np.exceptions.VisibleDeprecationWarning)
        data = make(root, download=download, **options)
    if name == "svhn":
        return ArrayPart(np.ascontiguousarray(data.data), data.labels), tuple(map(str, range(10)))
    images = np.asarray(data.data)
    images = images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return ArrayPart(images, np.asarray(data.targets, np.int64)), tuple(data.classes)
