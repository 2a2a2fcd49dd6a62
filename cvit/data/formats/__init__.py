"""The formats of data sets. A format is a file in this folder that holds `FORMAT`; it is found by being there.

`cvit.data.datasets` shows each place where a data set may be to every format, and the first one that opens it wins. The
formats are asked in the order of their `order`, and of their files' names where that is equal.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from cvit.config import Augmentation
from cvit.data.stored import Stored


@dataclass(frozen=True)
class Place:
    """A place where a data set may be.

    Attributes:
        name: as the user gave it; "" where that is a path.
        path: a file or folder that exists; None: nothing of that name lies in the data folder, and only formats that
            know the data set by its name can open it.
        data_dir: where data sets lie and are downloaded to.
        download: whether what is missing may be downloaded.
    """

    name: str
    path: Path | None
    data_dir: Path
    download: bool


@dataclass(frozen=True, kw_only=True)
class Format:
    """A way in which data sets are stored.

    Attributes:
        open: reads everything but the pixels; None where the place holds nothing of this format. Raises DataError for
            something of this format that cannot be used.
        order: formats with a smaller one are asked first. Parquet comes late, since it takes any file for its own.
        suffix: the end of a file's name that the user may leave out, such as ".npz".
        paths: what may be given as a path, for an error, such as "an .npz file".
        contents: what such a path holds, for an error, such as "arrays".
        known: data sets that the format knows by name, and the augmentation they are trained with by default, in
            whichever format they come.
    """

    open: Callable[[Place], Stored | None]
    order: int = 10
    suffix: str = ""
    paths: tuple[str, ...] = ()
    contents: str = ""
    known: Mapping[str, Augmentation] = field(default_factory=dict)


@cache
def all_formats() -> tuple[Format, ...]:
    """Every format, in the order in which they are asked."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    formats: list[Format] = [importlib.import_module(f"{__name__}.{name}").FORMAT for name in names]
    return tuple(sorted(formats, key=lambda format: format.order))
