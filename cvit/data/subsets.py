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
    counts = np.bincount(labels)
    most = np.maximum(counts - 1, 0)
    held_out = _first_of_each_class(labels, np.minimum(_quota(counts, fraction), most), 0, purpose)
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


def subset_size(labels: NDArray[np.integer], data_fraction: float, validation_fraction: float) -> int:
    """Number of training images that `select` takes, for any seed."""
    counts = np.bincount(labels)
    held_out = np.minimum(_quota(counts, validation_fraction), np.maximum(counts - 1, 0))
    return int(_quota(counts - held_out, data_fraction).sum())


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
