"""Recordings in WAV files: one folder for each class, or the class in the name of the file."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cvit.data.class_folders import Listing, Parts, list_images
from cvit.data.folder_layout import find_layout
from cvit.data.formats import Format, Place
from cvit.data.images import DataError
from cvit.data.sequences import SequencePart, Values, as_float32, stored_sequences
from cvit.data.stored import Stored
from cvit.errors import counted, one_line

_SUFFIXES = frozenset((".wav",))
_UNITS = {np.dtype(np.int32): 2.0**31, np.dtype(np.uint8): 128.0}


@dataclass(frozen=True, eq=False)
class _Recordings(Sequence[Values]):
    """Recordings, each read from its file when it is asked for: all together may not fit into the memory."""

    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Values:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _read(self.files[index])[1]


def open_wav_folder(place: Place) -> Stored | None:
    """Lists the recordings of a folder and reads them; None if it holds none.

    The class of a recording is what the label pattern finds in its path below the folder: the first group, or all of
    it. Without a pattern, the folders are the classes, as for images. The test pattern finds the test recordings;
    without one, they are those in a folder `test`, or a fifth of all.

    Raises:
        DataError: a file cannot be read or has another rate than others, or the patterns or folders leave a choice.
    """
    if place.path is None or not place.path.is_dir():
        return None
    listing = list_images(place.path, _SUFFIXES)
    if not listing.images:
        return None
    train, test, notes = _labelled(place, listing)
    if place.test_pattern is not None:
        pattern = compiled("test_pattern", place.test_pattern)
        every = [*train, *(test or [])]
        test = [each for each in every if pattern.search("/".join(each[0]))]
        train = [each for each in every if not pattern.search("/".join(each[0]))]
        if not test or not train:
            raise DataError(
                f"--test-pattern {place.test_pattern!r} finds {'none' if not test else 'all'} of "
                f"{counted(len(every), 'recording')} in {place.path}"
            )
    parts = [sorted(part) for part in (train, test) if part is not None]
    _check_rates([place.path.joinpath(*path) for part in parts for path, _ in part])
    return stored_sequences([_part(place.path, part) for part in parts], None, str(place.path), notes)


def has_recordings(stored: Stored) -> bool:
    """True if a data set comes from WAV files."""
    return isinstance(stored.train, SequencePart) and isinstance(stored.train.sequences, _Recordings)


def compiled(name: str, pattern: str) -> re.Pattern[str]:
    """A pattern as the user gave it. Raises DataError if it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        option = name.replace("_", "-")
        raise DataError(f"--{option} {pattern!r} is no regular expression: {one_line(error)}") from error


_Labelled = list[tuple[Parts, str]]
"""Paths below the folder, with the name of the class of each."""


def _labelled(place: Place, listing: Listing) -> tuple[_Labelled, _Labelled | None, list[str]]:
    """The recordings for training and testing, and notes about those that are passed over."""
    if place.label_pattern is not None:
        pattern = compiled("label_pattern", place.label_pattern)
        found = [(parts, pattern.search("/".join(parts))) for parts in listing.images]
        labelled = [(parts, match[1] if pattern.groups else match[0]) for parts, match in found if match]
        labelled = [(parts, label) for parts, label in labelled if label]
        if not labelled:
            raise DataError(f"--label-pattern {place.label_pattern!r} finds no class in {'/'.join(listing.images[0])}")
        others = len(found) - len(labelled)
        return labelled, None, [f"passed over: {counted(others, 'recording')} without a class"] if others else []
    layout = find_layout(place.path, listing) if place.path is not None else None
    if layout is None:
        raise DataError(
            f"{place.path} holds recordings outside class folders: put them into a folder for each class, or give "
            f"--label-pattern, which finds the class in a name such as {'/'.join(listing.images[0])}"
        )
    train, test = (
        None if part is None else [(parts, parts[depth]) for parts, depth in part.images]
        for part in (layout.train, layout.test)
    )
    others = layout.outside + sum(part.outside for part in (layout.train, layout.test) if part is not None)
    notes = [f"passed over: {counted(others, 'recording')} outside class folders"] if others else []
    return train or [], test, [*layout.notes, *notes]


def _part(folder: Path, labelled: _Labelled) -> tuple[_Recordings, list[str], list[str]]:
    files = tuple(folder.joinpath(*parts) for parts, _ in labelled)
    return _Recordings(files), [label for _, label in labelled], [*map(str, files)]


def _check_rates(files: Sequence[Path]) -> None:
    known: dict[int, Path] = {}
    for file in files:
        known.setdefault(_read(file)[0], file)
    if len(known) > 1:
        (first, one), (second, other) = list(known.items())[:2]
        raise DataError(f"{one} has {first} samples a second and {other} has {second}: resample them to one rate")


def _read(path: Path) -> tuple[int, Values]:
    """The samples a second, and the samples (channels, length), full scale as 1."""
    import warnings

    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks beside the samples
            rate, samples = wavfile.read(path)
    except Exception as error:  # scipy raises errors of many kinds for a damaged file
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error
    samples = samples[:, None] if samples.ndim == 1 else samples
    values = as_float32(samples, str(path)) / np.float32(_UNITS.get(samples.dtype, 1.0))
    return rate, np.ascontiguousarray((values - 1 if samples.dtype == np.uint8 else values).T)


FORMAT = Format(open=open_wav_folder, order=65, paths=("a folder of WAV recordings",), contents="WAV recordings")
