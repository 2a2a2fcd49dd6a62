import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cvit.data.subsets import (
    at_most,
    holdout,
    image_counts,
    is_about,
    num_at_most,
    possible_fraction,
    select,
    subset,
    subset_size,
    train_validation_split,
)
from cvit.randomness import derived_seed, generator

# Addressed randomness


def test_generators_are_fresh_and_differ_between_addresses() -> None:
    import torch

    addresses = [(0, "init", 0), (1, "init", 0), (0, "order", 0), (0, "init", 1), (11, "init", 0), (1, "init", 10)]
    draws = [torch.rand(4, generator=generator(*address)) for address in addresses]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(addresses)
    assert torch.equal(draws[0], torch.rand(4, generator=generator(0, "init")))
    assert derived_seed(0, "init") == 18175065234453075648  # the same on every machine and in every version


# Subsets

labels_of = hnp.arrays(np.int64, st.integers(1, 120), elements=st.integers(0, 5))
fractions = st.floats(1e-4, 1.0)


@given(labels_of, fractions, fractions, st.integers(0, 3))
def test_subsets_are_nested_sorted_and_hold_every_class(labels: np.ndarray, a: float, b: float, seed: int) -> None:
    small, large = (subset(labels, fraction, seed) for fraction in sorted((a, b)))
    assert set(small) <= set(large)
    assert np.all(np.diff(large) > 0)
    assert set(labels[small]) == set(labels)


@given(labels_of, fractions, st.floats(0.01, 0.9), st.integers(0, 3))
def test_sizes_follow_from_the_labels_alone(labels: np.ndarray, fraction: float, held: float, seed: int) -> None:
    split = select(labels, fraction, held, seed)
    assert len(split.train) == subset_size(labels, fraction, held)
    pool, validation = train_validation_split(labels, held)
    np.testing.assert_array_equal(split.validation, validation)
    assert set(split.train) <= set(pool)
    np.testing.assert_array_equal(np.sort(np.concatenate([pool, validation])), np.arange(len(labels)))


@given(labels_of, fractions)
def test_subsets_are_stratified(labels: np.ndarray, fraction: float) -> None:
    counts = np.bincount(labels)
    taken = np.bincount(labels[subset(labels, fraction, 0)], minlength=len(counts))
    assert np.all(np.abs(taken - fraction * counts) <= 1)


@given(labels_of, st.floats(0.01, 0.9))
def test_classes_of_two_or_more_images_are_on_both_sides_of_a_holdout(labels: np.ndarray, fraction: float) -> None:
    rest, held = holdout(labels, fraction, "test split")
    assert set(labels[rest]) == set(labels)
    assert set(labels[held]) == set(np.flatnonzero(np.bincount(labels) >= 2))


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.1, 0.25, 0.5])
def test_subset_is_about_the_fraction_even_where_classes_would_all_round_up(fraction: float) -> None:
    labels = np.repeat(np.arange(10), 130)
    assert abs(len(subset(labels, fraction, 0)) - fraction * len(labels)) <= 1


def test_subset_of_everything_is_everything_and_seeds_differ() -> None:
    labels = np.tile(np.arange(4), 25)
    np.testing.assert_array_equal(subset(labels, 1.0, 3), np.arange(100))
    assert set(subset(labels, 0.5, 0)) != set(subset(labels, 0.5, 1))
    assert set(holdout(labels, 0.2, "test split")[1]) != set(holdout(labels, 0.2, "validation split")[1])


def test_subset_is_the_same_in_every_version() -> None:
    assert subset(np.tile(np.arange(2), 10), 0.2, 7).tolist() == [1, 8, 17, 18]


# Numbers of images that mean what they say


@given(labels_of, st.integers(0, 150))
def test_at_most_is_stratified_nearly_as_many_and_never_more(labels: np.ndarray, more: int) -> None:
    counts = np.bincount(labels)
    most = int((counts > 0).sum()) + more
    taken = at_most(labels, most)
    assert len(taken) == num_at_most(counts, most) <= most
    assert set(labels[taken]) == set(labels)
    assert len(taken) >= min(len(labels), most - len(counts))
    share = subset(labels, min(1.0, most / len(labels)), 0)
    assert set(taken) <= set(share)
    if len(share) <= most:  # as earlier versions took them
        np.testing.assert_array_equal(taken, share)


def test_at_most_holds_where_every_class_would_round_up() -> None:
    labels = np.repeat(np.arange(10), [19, 18, 17, 16, 15, 14, 13, 12, 11, 65])
    assert max(len(subset(labels, most / 200, 0)) - most for most in range(10, 200)) > 0
    assert all(len(at_most(labels, most)) <= most for most in range(10, 200))


@pytest.mark.parametrize(("count", "fraction", "valid"), [(2, 0.1, 0.5), (100, 0.001, 0.01), (100, 0.9999, 0.99)])
def test_a_share_that_cannot_be_held_out_is_told_with_one_that_can(count: int, fraction: float, valid: float) -> None:
    counts = np.full(150, count)
    assert not is_about(int(image_counts(counts, 1.0, fraction)[1].sum()), fraction, counts)
    assert possible_fraction(counts, fraction) == valid
    assert is_about(int(image_counts(counts, 1.0, valid)[1].sum()), valid, counts)


@given(hnp.arrays(np.int64, st.integers(1, 20), elements=st.integers(10, 40)), st.floats(0.1, 0.9))
@example(np.array([17, 27, 15, 10, 10, 10]), 0.1015625)  # all classes round down, by two images together
def test_a_share_of_classes_that_are_not_tiny_can_be_held_out(counts: np.ndarray, fraction: float) -> None:
    held_out = image_counts(counts, 1.0, fraction)[1]
    assert is_about(int(held_out.sum()), fraction, counts)
