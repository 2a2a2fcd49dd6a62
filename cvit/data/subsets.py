"""The images for training, validation and testing: stratified, seeded and nested index sets.

Each class has a fixed order per seed, and a subset takes the first images of each class: so the subset of 1 % is a part
of the subset of 5 %. The number of images depends only on the class sizes, so it is equal for all seeds.

The order comes from the raw stream of numpy's PCG64, which numpy guarantees to stay the same across versions and
machines; `Generator.permutation` carries no such promise.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cvit.randomness import derived_seed

Indices = NDArray[np.int64]

SHARE_TOLERANCE = 0.1
"""The largest relative error of a held-out share. Fewer than two images more or less do not matter either."""


@dataclass(frozen=True)
class ImageCounts:
    """The numbers of images that a trial is trained, validated and tested on, whatever its seed. It is trained on a
    share of the `pool`."""

    train: int
    pool: int
    validation: int
    test: int


@dataclass(frozen=True, eq=False)
class Split:
    """Two disjoint sets of sorted indices into a data set's training images."""

    train: Indices
    validation: Indices


def holdout(labels: NDArray[np.integer], fraction: float, purpose: str) -> tuple[Indices, Indices]:
    """Splits images into (rest, held out), stratified; the same for every seed.

    Args:
        labels: (N,) class indices.
        fraction: share held out, in (0, 1).
        purpose: the use of the held-out images; another purpose draws other images.

    Returns:
        Two sorted index arrays. A class of two or more images is in both; a single image stays in the rest.
    """
    held_out = _first_of_each_class(labels, _held_out(np.bincount(labels), fraction), 0, purpose)
    return np.setdiff1d(np.arange(len(labels)), held_out, assume_unique=True), held_out


def train_validation_split(labels: NDArray[np.integer], validation_fraction: float) -> tuple[Indices, Indices]:
    """Splits a data set's training images into (pool for training, validation); the same for every seed."""
    return holdout(labels, validation_fraction, "validation split")


def subset(labels: NDArray[np.integer], fraction: float, seed: int) -> Indices:
    """A stratified share of the images, at least one of each class that occurs.

    Args:
        labels: (N,) class indices of the pool.
        fraction: share taken, in (0, 1]; 1 takes everything.
        seed: the trial's seed; for the same seed the subset of a smaller fraction lies inside that of a larger one.

    Returns:
        Sorted indices into the pool, about fraction * N of them.
    """
    return _first_of_each_class(labels, _quota(np.bincount(labels), fraction), seed, "subset")


def select(labels: NDArray[np.integer], data_fraction: float, validation_fraction: float, seed: int) -> Split:
    """The training and validation images of one trial, as indices into the data set's training images.

    `data_fraction` is a share of the images that are not held out for validation.
    """
    pool, validation = train_validation_split(labels, validation_fraction)
    return Split(train=pool[subset(labels[pool], data_fraction, seed)], validation=validation)


def at_most(labels: NDArray[np.integer], most: int) -> Indices:
    """A stratified share of the images, as large as `most` allows; the same for every seed.

    Args:
        most: at least the number of classes that occur, of each of which one image is taken.

    Returns:
        Sorted indices.
    """
    return _first_of_each_class(labels, _quota_at_most(np.bincount(labels), most), 0, "subset")


def num_at_most(counts: NDArray[np.integer], most: int) -> int:
    """Number of images that `at_most` takes of classes with these numbers of images."""
    return int(_quota_at_most(np.trim_zeros(counts, "b"), most).sum())


def subset_size(labels: NDArray[np.integer], data_fraction: float, validation_fraction: float) -> int:
    """Number of training images that `select` takes, for any seed."""
    return image_counts(np.bincount(labels), data_fraction, validation_fraction)[0]


def image_counts(
    counts: NDArray[np.integer], data_fraction: float, validation_fraction: float
) -> tuple[int, NDArray[np.integer]]:
    """The number of training images that `select` takes, and the number that it holds out of each class.

    Args:
        counts: the number of images of each class.
    """
    held_out = _held_out(counts, validation_fraction)
    return int(_quota(counts - held_out, data_fraction).sum()), held_out


def is_about(number: int, fraction: float, counts: NDArray[np.integer]) -> bool:
    """True if a number of images is the given fraction of all, and the others are the rest, up to rounding.

    Classes that round, rather than give their one image or keep it, are off by half an image each at most, together.

    Args:
        counts: the number of images of each class.
    """
    expected, total = fraction * counts, int(counts.sum())
    rounding = np.count_nonzero((expected >= 1) & (counts - expected >= 1)) / 2
    error = abs(number - fraction * total)
    return error < 2 or error <= max(rounding, SHARE_TOLERANCE * min(fraction, 1 - fraction) * total)


def possible_fraction(counts: NDArray[np.integer], fraction: float) -> float | None:
    """The fraction nearest to the given one, as far as that is easily found, that `holdout` can hold out; None if none
    is found. It has at most three digits."""
    total = int(counts.sum())
    for _ in range(20):
        fraction = round(int(_held_out(counts, fraction).sum()) / total, 3)
        if not 0 < fraction < 1:
            return None
        if is_about(int(_held_out(counts, fraction).sum()), fraction, counts):
            return fraction
    return None


def _held_out(counts: NDArray[np.integer], fraction: float) -> Indices:
    """The number of images held out of each class: at least 1 and all but 1, if there are two."""
    return np.minimum(_quota(counts, fraction), np.maximum(counts - 1, 0))


def _quota_at_most(counts: NDArray[np.integer], most: int) -> Indices:
    """The quota of a share of the images that are about `most` in all, and not more."""
    share = min(1.0, most / max(1, counts.sum()))
    quota = _quota(counts, share)
    if quota.sum() <= most:
        return quota
    low, high = 0.0, share  # the classes that happen to round up, or that have one image, are too many
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _quota(counts, middle).sum() <= most else (low, middle)
    return _quota(counts, low)


def _quota(counts: NDArray[np.integer], fraction: float) -> Indices:
    """The number of images taken of each class: fraction * count, rounded; at least 1 if the class occurs, at most all.

    Classes round at staggered thresholds, so that together they take about fraction * N even if all of them would round
    the same way. The numbers never decrease as the fraction grows.
    """
    stagger = (np.arange(len(counts)) + 0.5) / max(len(counts), 1)
    return np.clip(np.floor(fraction * counts + stagger).astype(np.int64), np.minimum(counts, 1), counts)


def _first_of_each_class(labels: NDArray[np.integer], quota: Indices, seed: int, purpose: str) -> Indices:
    taken = [
        members[_order(len(members), derived_seed(seed, purpose, label))[: quota[label]]]
        for label, members in enumerate(_members(labels, len(quota)))
    ]
    return np.sort(np.concatenate(taken))


def _members(labels: NDArray[np.integer], num_classes: int) -> list[Indices]:
    """Sorted indices of each class's images."""
    by_class = np.argsort(labels, kind="stable")
    return np.split(by_class, np.cumsum(np.bincount(labels, minlength=num_classes))[:-1])


def _order(count: int, seed: int) -> Indices:
    """A permutation of range(count)."""
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")
