"""Which images a step sees."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cvit.data.datasets import Dataset
from cvit.data.subsets import select
from cvit.training.batches import batch_indices, draw_batches, pack_data
from tests.cvit.training.tiny import CPU, NUM_IMAGES, stages


def batch(step: int, batch_size: int, num_images: int, seed: int) -> torch.Tensor:
    """The indices of one step."""
    return batch_indices(range(step, step + 1), batch_size, num_images, seed)[0]


@given(st.integers(1, 60), st.integers(1, 80), st.integers(0, 2**40), st.integers(0, 5))
def test_every_epoch_is_a_permutation(num_images: int, batch_size: int, seed: int, first_epoch: int) -> None:
    begin, end = first_epoch * num_images, (first_epoch + 2) * num_images
    batches = range(begin // batch_size, -(-end // batch_size))
    together = batch_indices(batches, batch_size, num_images, seed)
    assert together.shape == (len(batches), batch_size)
    assert torch.equal(together, torch.stack([batch(step, batch_size, num_images, seed) for step in batches]))
    stream = together.flatten()[begin - batches.start * batch_size :]
    for epoch in range(2):
        taken = stream[epoch * num_images : (epoch + 1) * num_images]
        assert sorted(taken.tolist()) == list(range(num_images))


def test_epochs_have_orders_of_their_own() -> None:
    orders = {tuple(batch(step, 30, 30, seed).tolist()) for step in range(4) for seed in range(3)}
    assert len(orders) == 12


def test_a_batch_reaches_over_several_epochs_of_a_small_subset() -> None:
    indices = batch(0, 64, 10, seed=0)
    assert torch.bincount(indices, minlength=10).tolist() == pytest.approx([6.4] * 10, abs=0.7)


def test_a_batch_does_not_depend_on_what_was_asked_for_before() -> None:
    late = batch(1000, 32, 100, seed=0)
    for step in range(0, 1000, 50):
        batch(step, 32, 100, seed=1)
    assert torch.equal(batch(1000, 32, 100, seed=0), late)


def test_training_images_are_those_of_each_members_subset(digits: Dataset) -> None:
    members = [
        stages(data_fraction=fraction, seed=seed, augmentation="none", batch_size=16)[0]
        for fraction, seed in ((0.1, 4), (0.1, 5), (0.3, 4))
    ]
    data = pack_data(digits, members, CPU)
    places, changes = draw_batches(data, members, range(3, 5))
    assert places.shape == (2, 3, 16) and not changes.any()
    assert len(data.subsets[0]) == pytest.approx(NUM_IMAGES / 10, abs=5)
    assert set(data.subsets[0].tolist()) < set(data.subsets[2].tolist()), "subsets of a seed are nested"
    for member, stage in enumerate(members):
        config = stage.trial.data
        chosen = select(digits.train.labels, config.data_fraction, config.validation_fraction, stage.trial.seed).train
        subset = torch.from_numpy(digits.train.images[chosen])
        index = batch(4, 16, len(chosen), seed=stage.trial.seed)
        assert torch.equal(data.train.images[places[1, member]], subset[index])
        assert torch.equal(data.train.labels[places[1, member]], torch.from_numpy(digits.train.labels[chosen])[index])
        everything = data.of([member]).normalised(subset[None])
        assert abs(float(everything.mean())) < 1e-5 and float(everything.std()) == pytest.approx(1, abs=1e-3)
    held_out = {image.numpy().tobytes() for image in data.validation.images}
    assert not held_out & {image.numpy().tobytes() for image in data.train.images}
