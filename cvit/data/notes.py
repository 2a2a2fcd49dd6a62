"""Lines that a user has to know about a data set before training on it."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from cvit.data.images import Form
from cvit.data.stored import Labels, Stored
from cvit.errors import counted, some_of


def class_notes(class_names: Sequence[str], train_labels: Labels, test_labels: Labels, noun: str) -> Iterator[str]:
    """Lines about classes without images, which the noun names."""
    for part, labels in (("training", train_labels), ("test", test_labels)):
        counts = np.bincount(labels, minlength=len(class_names))
        if missing := [name for name, count in zip(class_names, counts, strict=True) if not count]:
            yield f"no {part} {noun}s of {some_of(missing)}"


def pixel_notes(stored: Stored, channels: int) -> Iterator[str]:
    """Lines about the images whose pixels are changed, or not all read."""

    def count(is_counted: Callable[[Form], bool]) -> int:
        return sum(part.survey.count(is_counted) for part in stored.parts)

    if transparent := count(lambda form: form.is_transparent):
        yield f"transparency is put on white: in {counted(transparent, 'image')}"
    if (value_range := stored.value_range) is not None:
        deep = count(lambda form: form.is_deep)
        low, high = value_range
        yield f"16 bits are scaled by their range, {low} to {high}, to 0 to 255: in {counted(deep, 'image')}"
    if turned := count(lambda form: form.is_turned):
        yield f"turned as the EXIF orientation says: {counted(turned, 'image')}"
    if channels == 3 and (gray := count(lambda form: form.channels == 1)):
        yield f"read as RGB: {counted(gray, 'grayscale image')} among images in colour"
    if animated := count(lambda form: form.is_animated):
        yield f"only the first frame is read: of {counted(animated, 'animation')}"


def double_notes(stored: Stored, train: np.ndarray, test: np.ndarray) -> Iterator[str]:
    """A line about test images that are training images too, by the contents of their files.

    Args:
        train, test: the indices of the training and test images, the latter used if they come from the same part.
    """
    digests = stored.train.survey.digests
    known = {digests[i] for i in train}
    tested = [digests[i] for i in test] if stored.test is None else stored.test.survey.digests
    if doubles := sum(digest in known for digest in tested):
        noun = stored.noun
        yield f"of {counted(len(tested), f'test {noun}')}, {doubles} are training {noun}s too (equal files)"
