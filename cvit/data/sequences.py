"""Sequences, such as series of sensors and recordings of speech: reads them as float32, checks them, and makes them
equally long."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from cvit.data.images import DataError, Form, Target
from cvit.data.stored import Labels, Part, Stored
from cvit.data.survey import Survey
from cvit.errors import printable

Values = NDArray[np.float32]
"""The values of one recording, (channels, length)."""

INT16_UNIT = 32768
"""Samples of 16 bits are divided by this, so that full scale is 1."""
_LENGTH_STEP = 64
"""Where lengths differ, the common one is a multiple of this, so that patches of many sizes divide it."""


@dataclass(frozen=True, eq=False)
class SequencePart(Part):
    """Sequences of one part, each (channels, length), read again whenever it is asked for."""

    sequences: Sequence[Values]
    labels: Labels
    names: Sequence[str]

    @cached_property
    def survey(self) -> Survey:
        forms, digests = [], []
        for name, values in zip(self.names, self.sequences, strict=True):
            channels, length = values.shape
            if not values.size:
                raise DataError(f"{name} is empty")
            if not np.isfinite(values).all():
                raise DataError(f"{name} has missing or infinite values, which are not read")
            forms.append(Form(length, 1, channels))
            digests.append(_digest(values))
        return Survey(forms, digests)

    def name_of(self, index: int) -> str:
        return self.names[index]

    def pixels(self, target: Target) -> NDArray[np.float32]:
        """All sequences, (N, C, length) float32: those that are longer are cut at their end, those that are shorter
        keep their last value there."""
        values = np.empty((len(self.labels), target.channels, target.size), np.float32)
        for index, sequence in enumerate(self.sequences):
            if _digest(sequence) != self.survey.digests[index]:
                name = self.names[index]
                raise DataError(f"{name} has changed since the data set was read for the plan: run the command again")
            kept = sequence[:, : target.size]
            values[index, :, : kept.shape[1]] = kept
            values[index, :, kept.shape[1] :] = kept[:, -1:]
        return values


def as_float32(values: np.ndarray, name: str) -> Values:
    """Numbers as float32; those of 16 bits are divided by 32768.

    Raises:
        DataError: they are no real numbers.
    """
    if values.dtype.kind not in "fiu":
        raise DataError(f"{name} holds values of type {values.dtype}, not numbers")
    with np.errstate(over="ignore"):  # a value too large for float32 becomes infinite, which the survey refuses
        floats = values.astype(np.float32)
    return floats / np.float32(INT16_UNIT) if values.dtype == np.int16 else floats


def without_padding(values: Values) -> Values:
    """The sequence (channels, length) without the missing values at its end, with which the archive fills up."""
    known = np.flatnonzero(~np.isnan(values).all(axis=0))
    return values[:, : known[-1] + 1] if len(known) else values[:, :0]


def stored_sequences(
    parts: Sequence[tuple[Sequence[Values], Sequence[str], Sequence[str]]],
    name: str | None,
    place: str,
    notes: Sequence[str] = (),
) -> Stored:
    """A data set of sequences.

    Args:
        parts: for training, and for testing if there is such a part: the sequences, the name of the class of each, and
            the name of each for errors.
        name: the name of the data set, where its path does not tell.
        place: where it is, for errors.

    Raises:
        DataError: sequences are missing or broken, or the test sequences have a class or channels of their own.
    """
    if not all(len(sequences) for sequences, _, _ in parts):
        raise DataError(f"{place} has no recordings for {'training' if not len(parts[0][0]) else 'testing'}")
    names = sorted(
        set(parts[0][1]), key=lambda text: (not text.isdecimal(), int(text) if text.isdecimal() else 0, text)
    )
    index_of = {each: index for index, each in enumerate(names)}
    if unknown := sorted({label for _, labels, _ in parts for label in labels} - index_of.keys()):
        raise DataError(f"{place} has test recordings of class {unknown[0]!r}, which no training recording has")
    made = [
        SequencePart(sequences, np.array([index_of[label] for label in labels], np.int64), each)
        for sequences, labels, each in parts
    ]
    _check_channels(made)
    content = sha256("\n".join(names).encode(errors="surrogateescape"))
    for part in made:
        content.update(part.labels.tobytes())
        content.update(b"".join(part.survey.digests))
    return Stored(
        made[0],
        made[1] if len(made) > 1 else None,
        tuple(map(printable, names)),
        content.hexdigest(),
        tuple(notes),
        dimensions=1,
        name=name,
    )


def common_length(stored: Stored, asked: int | None) -> tuple[int, list[str]]:
    """The length of all sequences as they are trained on, and lines about what is cut or padded.

    It is the asked one; else that of all, or the longest, rounded up to a multiple of 64 if that is longer than 64.
    """
    lengths = [form.width for part in stored.parts for form in part.survey.forms]
    longest = max(lengths)
    if asked is None:
        asked = longest
        if min(lengths) < longest and longest > _LENGTH_STEP:
            asked = -(-longest // _LENGTH_STEP) * _LENGTH_STEP
    cut, padded = sum(length > asked for length in lengths), sum(length < asked for length in lengths)
    if not cut and not padded:
        return asked, []
    what = [f"{count:,} {verb}" for count, verb in ((padded, "padded with their last value"), (cut, "cut")) if count]
    return asked, [
        f"recordings of {min(lengths):,} to {longest:,} samples are made {asked:,} long (--image-size): "
        f"{', '.join(what)}, at the end"
    ]


def check_not_constant(dataset: str, part: str, values: np.ndarray) -> None:
    """Raises DataError if all sequences (N, C, length) of a part hold one value per channel."""
    if all(channel.min() == channel.max() for channel in values.swapaxes(0, 1)):
        raise DataError(f"dataset {dataset!r} has constant {part} recordings, so there is nothing to learn from")


def _check_channels(parts: Iterable[SequencePart]) -> None:
    known: dict[int, str] = {}
    for part in parts:
        for index, form in enumerate(part.survey.forms):
            known.setdefault(form.channels, part.name_of(index))
    if len(known) > 1:
        (first, one), (second, other) = list(known.items())[:2]
        raise DataError(f"{one} has {first} channels and {other} has {second}; all recordings need the same number")


def _digest(values: Values) -> bytes:
    return sha256(f"{values.shape}\n".encode() + np.ascontiguousarray(values).tobytes()).digest()
