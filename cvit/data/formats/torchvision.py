"""Four data sets in torchvision's layouts, which torchvision downloads and checks."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvit.config import Augmentation
from cvit.data.formats import Format, Place
from cvit.data.images import DataError
from cvit.data.stored import ArrayPart, Stored, hash_arrays
from cvit.errors import one_line


@dataclass(frozen=True)
class _Dataset:
    """A torchvision class, the files that it looks for below its root, and the default augmentation."""

    class_name: str
    files: tuple[str, ...]
    augmentation: Augmentation


_DATASETS = {
    "cifar10": _Dataset("CIFAR10", ("cifar-10-batches-py",), "crop_flip"),
    "cifar100": _Dataset("CIFAR100", ("cifar-100-python",), "crop_flip"),
    "fashion_mnist": _Dataset(
        "FashionMNIST",
        tuple(
            f"FashionMNIST/raw/{part}-{kind}-ubyte"
            for part in ("train", "t10k")
            for kind in ("images-idx3", "labels-idx1")
        ),
        "crop_flip",
    ),
    "svhn": _Dataset("SVHN", ("train_32x32.mat", "test_32x32.mat"), "shift"),
}
_TORCHVISION_HINT = ". You can use download=True to download it"


def open_torchvision(place: Place) -> Stored | None:
    """Reads a data set in torchvision's layout below the data folder, or downloads it if it is missing and may be.

    Files of the same name in another format come first.

    Raises:
        DataError: it is missing, damaged, or cannot be downloaded.
    """
    name, data_dir = place.name, place.data_dir
    if name not in _DATASETS or place.path is not None:
        return None
    files = _DATASETS[name].files
    layouts = f"{', '.join(files)} (torchvision's layout), or {name}/train.parquet and {name}/test.parquet"
    missing = not all((data_dir / file).exists() for file in files)
    if missing and not place.download:
        raise DataError(f"dataset {name!r} is not in {data_dir}, and downloading is off: place there {layouts}")
    try:
        train, class_names = _read(name, data_dir, place.download, train=True)
        test, _ = _read(name, data_dir, place.download, train=False)
    except (RuntimeError, OSError, ValueError, AssertionError, LookupError, EOFError) as error:
        reason = one_line(error).removesuffix(_TORCHVISION_HINT)
        problem = "could not be downloaded to" if missing else "could not be read from"
        raise DataError(f"dataset {name!r} {problem} {data_dir} ({reason}): place there {layouts}") from error
    content = hash_arrays([train.images, train.labels, test.images, test.labels])
    return Stored(train, test, class_names, content)


def _read(name: str, root: Path, download: bool, *, train: bool) -> tuple[ArrayPart, tuple[str, ...]]:
    import torchvision.datasets

    make: Any = getattr(torchvision.datasets, _DATASETS[name].class_name)
    options = {"split": "train" if train else "test"} if name == "svhn" else {"train": train}
    with warnings.catch_warnings():
        # The CIFAR pickles were written by an old version of numpy, which makes a new one warn.
        warnings.filterwarnings("ignore", category=np.exceptions.VisibleDeprecationWarning)
        data = make(root, download=download, **options)
    if name == "svhn":
        return ArrayPart(np.ascontiguousarray(data.data), data.labels), tuple(map(str, range(10)))
    images = np.asarray(data.data)
    images = images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return ArrayPart(images, np.asarray(data.targets, np.int64)), tuple(data.classes)


FORMAT = Format(
    open=open_torchvision,
    order=90,
    known={name: dataset.augmentation for name, dataset in _DATASETS.items()},
)
