"""The formats of data sets. A format is a file in this folder that holds `FORMAT`; every file here is found.

`cvit.data.datasets` shows each place where a data set may be to every format, and the first one that opens it wins.
Formats are asked by ascending `order`, then by the names of their files.
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
        name: the name as the user gave it; "" if the user gave a path.
        path: a file or folder that exists; None asks the formats that know the data set by its name.
        data_dir: the folder of the data sets, also for downloads.
        download: True if a missing data set may be downloaded.
        label_pattern, test_pattern: regular expressions for the paths of recordings: one finds the class, the other the
            test recordings.
    """

    name: str
    path: Path | None
    data_dir: Path
    download: bool
    label_pattern: str | None = None
    test_pattern: str | None = None


@dataclass(frozen=True, kw_only=True)
class Format:
    """A way in which data sets are stored.

    Attributes:
        open: reads everything but the pixels; returns None if the place holds nothing of this format. Raises DataError
            if the place has this format but cannot be used.
        order: formats with a smaller number are asked first. Parquet comes late, because it accepts any file.
        suffix: the ending of file names that the user may leave out, such as ".npz".
        paths: the kinds of paths that the format reads, for errors, such as "an .npz file".
        contents: the contents of such a path, for errors, such as "arrays".
        known: the data sets that the format knows by name, with their default augmentation, which holds for these names
            in every format.
    """

    open: Callable[[Place], Stored | None]
    order: int = 10
    suffix: str = ""
    paths: tuple[str, ...] = ()
    contents: str = ""
    known: Mapping[str, Augmentation] = field(default_factory=dict)


@cache
def all_formats() -> tuple[Format, ...]:
    """All formats, in the order in which they are asked."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    formats: list[Format] = [importlib.import_module(f"{__name__}.{name}").FORMAT for name in names]
    return tuple(sorted(formats, key=lambda format: format.order))
