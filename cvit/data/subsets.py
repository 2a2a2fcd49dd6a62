"""The images that are trained on, validated on and held out: stratified, seeded and nested index sets.

Each class has its own fixed order per seed, and a set takes a class's first images: that makes the subset for 1 % a
part of the one for 5 %. How many it takes depends on the class sizes only, so sizes are equal across seeds.

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
    """Sorted indices into a data set's training images; the two are disjoint."""

    train: Indices
    validation: Indices


def holdout(labels: NDArray[np.integer], fraction: float, purpose: str) -> tuple[Indices, Indices]:
    """Splits images into (rest, held out), stratified; the same for every seed.

    Args:
        labels: (N,) class indices.
        fraction: share held out, in (0, 1).
        purpose: what the held-out images are for; other purposes draw other images.

    Returns:
        Two sorted index arrays. A class of two or more images is in both; a single image stays in the rest.
    """
    counts = np.bincount(labels)
    most = np.maximum(counts - 1, 0)
    held = _first_of_each_class(labels, np.minimum(_quota(counts, fraction), most), 0, purpose)
    return np.setdiff1d(np.arange(len(labels)), held, assume_unique=True), held


def train_validation_split(labels: NDArray[np.integer], validation_fraction: float) -> tuple[Indices, Indices]:
    """Splits a data set's training images into (train pool, validation); a property of the data set, not of a seed."""
    return holdout(labels, validation_fraction, "validation split")


def subset(labels: NDArray[np.integer], fraction: float, seed: int) -> Indices:
    """A stratified share of the images, at least one of each class that occurs.

    Args:
        labels: (N,) class indices of the pool.
        fraction: share taken, in (0, 1]; 1 takes everything.
        seed: of the trial; for the same seed the subset of a smaller fraction lies inside that of a larger one.

    Returns:
        Sorted indices into the pool, about fraction * N of them.
    """
    return _first_of_each_class(labels, _quota(np.bincount(labels), fraction), seed, "subset")


def select(labels: NDArray[np.integer], data_fraction: float, validation_fraction: float, seed: int) -> Split:
    """The training and validation images of one trial, as indices into the data set's training images.

    The fraction is that of the pool that the validation images leave.
    """
    pool, validation = train_validation_split(labels, validation_fraction)
    return Split(train=pool[subset(labels[pool], data_fraction, seed)], validation=validation)


def subset_size(labels: NDArray[np.integer], data_fraction: float, validation_fraction: float) -> int:
    """Number of training images that `select` takes, whatever the seed."""
    counts = np.bincount(labels)
    held = np.minimum(_quota(counts, validation_fraction), np.maximum(counts - 1, 0))
    return int(_quota(counts - held, data_fraction).sum())


def _quota(counts: NDArray[np.integer], fraction: float) -> Indices:
    """Images taken of each class: fraction * count, rounded, at least 1 and at most all of a class that occurs.

    Classes round at staggered thresholds, so that together they take about fraction * N even where every class alone
    would round the same way. Non-decreasing in the fraction.
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
