"""Tells which Parquet files hold the training, test and validation images of a data set.

The files of a split carry its word in their names, `mnist_train.parquet` or `data/train-00000-of-00002.parquet`, or lie
in a folder of its name, `default/train/0000.parquet`.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cvit.data.class_folders import real_and_above
from cvit.data.images import DataError
from cvit.data.splits import Role, Splits, find_splits, split_name
from cvit.errors import some_of

SUFFIX = ".parquet"
_DEPTH = 3
"""The number of folders below which Parquet files are looked for."""
_SHARD = re.compile(r"[-_.](?P<number>\d+)-of-(?P<total>\d+)(?:[-_.].*)?$|(?<!fold)(?<!split)[-_.]\d+$", re.IGNORECASE)
"""The number at the end of a file's name: of a shard, unless it is one of a cross-validation's parts."""

Files = tuple[Path, ...]


@dataclass(frozen=True)
class TestFiles:
    """The files of a split, `test` or `validation`, and their names without numbers of shards."""

    role: Role
    names: tuple[str, ...]
    files: Files


@dataclass(frozen=True)
class ParquetLayout:
    """The files of a data set.

    Attributes:
        train: the files with the training images; with all images if `tests` is empty.
        tests: the splits that may hold the test images, the best first.
        unused: names of the other files and folders.
        notes: lines about files that are missing.
    """

    train: Files
    tests: tuple["TestFiles", ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def parquet_layout(folder: Path) -> ParquetLayout | None:
    """The layout of a folder; None if it holds no Parquet files.

    The files lie in the folder, else in folders for the splits, else in its `data`, else in its only folder that has
    some. Without names of splits they all are one pool.

    Raises:
        DataError: names or folders leave a choice, or there are test images but no training images.
    """
    return _layout(folder, _DEPTH)


def _layout(folder: Path, depth: int) -> ParquetLayout | None:
    files: dict[str, Files] = {}
    paths, inner_folders = _contents(folder)
    for path in paths:
        base = _SHARD.sub("", path.stem)
        files[base] = (*files.get(base, ()), path)
    folders = {path.name: below for path in inner_folders if (below := _files_below(path, depth - 1))}
    split_folders = {name: below for name, below in folders.items() if split_name(name).role is not None}
    splits = find_splits([*files, *split_folders], str(folder))
    if splits.train and not set(files).isdisjoint(split_folders):
        raise DataError(f"{folder} holds files and folders of the same names: give the path of one of the folders")
    if splits.train:
        return _with_splits(splits, files | split_folders, [name for name in folders if name not in files])
    if files:
        return _pool(folder, files, list(folders))
    for name in ("data", *folders) if len(folders) == 1 else ("data",):
        if name in folders:
            inner = _layout(folder / name, depth - 1)
            others = tuple(f"{other}/" for other in folders if other != name)
            return inner and ParquetLayout(inner.train, inner.tests, (*inner.unused, *others), inner.notes)
    if split_folders:
        raise DataError(f"{folder} holds {some_of(split_folders)} but no training images, such as in a folder train")
    if folders:
        raise DataError(
            f"{folder} holds Parquet files in {', '.join(sorted(folders))}: give the path of one of these folders"
        )
    return None


def _with_splits(splits: Splits, files: Mapping[str, Files], folders: Iterable[str]) -> ParquetLayout:
    tests = tuple(TestFiles(role, names, _joined(files, names)) for role, names in splits.held_out if names)
    used = {*splits.train, *splits.test, *splits.validation}
    unused = [*(name for name in files if name not in used), *(f"{name}/" for name in folders if name not in files)]
    notes = [note for names in (splits.train, splits.test, splits.validation) for note in _shards(files, names)]
    return ParquetLayout(_joined(files, splits.train), tests, tuple(unused), tuple(notes))


def _pool(folder: Path, files: Mapping[str, Files], folders: list[str]) -> ParquetLayout:
    """All files as one pool.

    Raises:
        DataError: one of several files is named like test images.
    """
    roles = [name for name in files if split_name(name).role is not None]
    paths = _joined(files, list(files))
    if roles and len(paths) > 1:
        raise DataError(f"{folder} holds {files[roles[0]][0].name} but no train*.parquet")
    notes = [note for name in files for note in _shards(files, [name])]
    return ParquetLayout(tuple(sorted(paths)), unused=tuple(f"{name}/" for name in folders), notes=tuple(notes))


def _joined(files: Mapping[str, Files], names: Iterable[str]) -> Files:
    """The files of some names, less links to others among them."""
    paths = (path for name in names for path in files[name])
    return tuple({os.path.realpath(path): path for path in reversed(list(paths))}.values())[::-1]


def _shards(files: Mapping[str, Files], names: Iterable[str]) -> list[str]:
    """Notes about files of which some are missing: their names say how many there are.

    Raises:
        DataError: the names say different numbers.
    """
    notes = []
    for name in names:
        totals = {int(match["total"]) for path in files[name] if (match := _SHARD.search(path.stem)) and match["total"]}
        if len(totals) > 1:
            numbers = some_of(map(str, sorted(totals)))
            raise DataError(
                f"{files[name][0].parent} holds {name} in {numbers} files at once: remove those of one kind"
            )
        if totals and (total := totals.pop()) != len(files[name]):
            notes.append(f"{name}: {len(files[name])} of {total} files are there")
    return notes


def _files_below(folder: Path, depth: int) -> Files:
    """The Parquet files in a folder and in the folders below it, to a depth."""
    files, folders = _contents(folder)
    return (*files, *(path for inner in folders if depth > 0 for path in _files_below(inner, depth - 1)))


def _contents(folder: Path) -> tuple[list[Path], list[Path]]:
    """The sorted Parquet files and folders in a folder, without hidden ones and links that lead back."""
    with os.scandir(folder) as entries:
        shown = sorted((each for each in entries if not each.name.startswith(".")), key=lambda each: each.name)
    above = real_and_above(folder)
    folders = [folder / each.name for each in shown if each.is_dir() and os.path.realpath(each.path) not in above]
    files = [each for each in shown if each.name.lower().endswith(SUFFIX) and not each.is_dir()]
    for each in files:
        if not each.is_file():
            raise DataError(f"{each.path} is neither a file nor a link to one")
    return [folder / each.name for each in files], folders
