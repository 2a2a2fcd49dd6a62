"""Sequences of the UCR/UEA archive: `<name>_TRAIN.ts` and `<name>_TEST.ts`, in a folder called `<name>` or not."""

from pathlib import Path

import numpy as np

from cvit.data.formats import Format, Place
from cvit.data.images import DataError
from cvit.data.sequences import Values, stored_sequences, without_padding
from cvit.data.stored import Stored
from cvit.errors import one_line

_TRAIN, _TEST = "_TRAIN.ts", "_TEST.ts"


def open_ts(place: Place) -> Stored | None:
    """Reads a pair of .ts files, or one file; None if the place has none. The training file alone is one pool.

    A line of data has its channels, separated by colons, then its class; `?` is a missing value.

    Raises:
        DataError: a file is damaged, has time stamps or no classes; or a folder holds several training files.
    """
    if place.path is None or (files := _files(place.path)) is None:
        return None
    train, test = files
    parts = [_part(path) for path in (train, test) if path is not None and path.exists()]
    return stored_sequences(parts, train.name.removesuffix(_TRAIN).removesuffix(".ts"), str(train))


def _files(path: Path) -> tuple[Path, Path | None] | None:
    """The training file, and the place of the test file."""
    if path.is_dir():
        trains = sorted(path.glob(f"*{_TRAIN}"))
        if len(trains) > 1:
            raise DataError(f"{path} holds {trains[0].name} and {trains[1].name}: give the path of one")
        return (trains[0], _test_of(trains[0])) if trains else None
    if path.suffix != ".ts":
        return None
    if path.name.endswith(_TEST):
        train = path.with_name(path.name.removesuffix(_TEST) + _TRAIN)
        if not train.exists():
            raise DataError(f"{path} holds the test recordings, and {train.name} is not beside it")
        return train, path
    return path, _test_of(path) if path.name.endswith(_TRAIN) else None


def _test_of(train: Path) -> Path:
    return train.with_name(train.name.removesuffix(_TRAIN) + _TEST)


def _part(path: Path) -> tuple[list[Values], list[str], list[str]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error
    sequences, labels, names, is_data = [], [], [], False
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        if is_data:
            values, label = _parsed(line, f"line {number} of {path}")
            sequences.append(values)
            labels.append(label)
            names.append(f"line {number} of {path}")
        else:
            is_data = _check_header(path, line.lower().split())
    if not is_data:
        raise DataError(f"{path} has no line @data")
    return sequences, labels, names


def _check_header(path: Path, words: list[str]) -> bool:
    """True for the line in front of the data."""
    if words[:2] == ["@timestamps", "true"]:
        raise DataError(f"{path} has time stamps, which are not read")
    if words[:2] == ["@classlabel", "false"] or words[:2] == ["@targetlabel", "true"]:
        raise DataError(f"{path} has no classes")
    return words[0] == "@data"


def _parsed(line: str, name: str) -> tuple[Values, str]:
    *channels, label = line.split(":")
    if not channels or not label.strip():
        raise DataError(f"{name} has no class after its values")
    try:
        rows = [
            np.array(channel.replace("?", "nan").split(",") if channel.strip() else [], np.float32)
            for channel in channels
        ]
    except ValueError as error:
        raise DataError(f"{name} cannot be read: {one_line(error)}") from error
    values = np.full((len(rows), max(map(len, rows))), np.nan, np.float32)
    for row, channel in zip(values, rows, strict=True):
        row[: len(channel)] = channel
    return without_padding(values), label.strip()


FORMAT = Format(open=open_ts, suffix=_TRAIN, paths=("a .ts file",), contents="series of the UCR/UEA archive")
