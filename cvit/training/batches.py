"""The images of a pack's members on their device, and the order in which each member sees its images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from cvit.config import Augmentation
from cvit.data.augment import UNIT, channel_statistics, draw_augmentation
from cvit.data.datasets import Dataset
from cvit.data.subsets import at_most, select
from cvit.randomness import generator
from cvit.stages import TrainingStage

CHANGES = torch.int16
"""The type of the tables of augmentations."""


@dataclass(frozen=True)
class LabelledImages:
    """Images (n, C, *shape) of uint8 or float32 and int64 labels (n,) on the training device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels along each axis of an image."""
        return tuple(self.images.shape[2:])


@dataclass(frozen=True)
class PackData:
    """The images for training and measuring the members of a pack.

    Attributes:
        train: the union of the members' subsets.
        subsets: for every member, the indices of its images in `train`, (n,) int64 on the CPU.
        validation, test: shared by all members.
        mean, std: channel statistics of each member's own subset, (M, C) float32 on the device, in the unit that
            `cvit.data.augment.UNIT` gives for the type of the images.
    """

    train: LabelledImages
    subsets: tuple[Tensor, ...]
    validation: LabelledImages
    test: LabelledImages
    mean: Tensor
    std: Tensor

    def of(self, members: Sequence[int]) -> "PackData":
        """The data of some of the members."""
        chosen = torch.tensor(members, device=self.mean.device)
        subsets = tuple(self.subsets[member] for member in members)
        return PackData(self.train, subsets, self.validation, self.test, self.mean[chosen], self.std[chosen])

    def normalised(self, images: Tensor) -> Tensor:
        """(M or 1, B, C, *shape) of uint8 or float32 → (M, B, C, *shape) float32: for each member, zero mean and unit
        variance per channel over its subset."""
        scale, shift = 1 / (UNIT[images.dtype] * self.std), self.mean / self.std
        by_channel = (len(self.std), 1, -1, *(1,) * (images.ndim - 3))
        return images * scale.view(by_channel) - shift.view(by_channel)


def pack_data(dataset: Dataset, stages: Sequence[TrainingStage], device: torch.device) -> PackData:
    """Selects every member's subset and puts the images it needs on the device, each image once.

    Args:
        stages: stages of one `shape`.
    """
    labels, config = dataset.train.labels, stages[0].trial.data
    assert all(stage.trial.data.evaluation_images == config.evaluation_images for stage in stages)
    wanted = [(s.trial.data.data_fraction, s.trial.seed) for s in stages]
    splits = {(f, seed): select(labels, f, config.validation_fraction, seed) for f, seed in dict.fromkeys(wanted)}
    union = np.unique(np.concatenate([split.train for split in splits.values()]))
    held_out = next(iter(splits.values())).validation
    validated = held_out[at_most(labels[held_out], config.max_validation_images)]
    tested = at_most(dataset.test.labels, config.max_test_images or len(dataset.test.labels))

    def on_device(images: np.ndarray, labels: np.ndarray) -> LabelledImages:
        return LabelledImages(torch.tensor(images, device=device), torch.tensor(labels, device=device))

    train = on_device(dataset.train.images[union], labels[union])
    places = {key: torch.from_numpy(np.searchsorted(union, split.train)) for key, split in splits.items()}
    statistics = {key: channel_statistics(train.images[place.to(device)]) for key, place in places.items()}
    return PackData(
        train,
        tuple(places[key] for key in wanted),
        on_device(dataset.train.images[validated], labels[validated]),
        on_device(dataset.test.images[tested], dataset.test.labels[tested]),
        *(torch.stack([statistics[key][i] for key in wanted]) for i in range(2)),
    )


def batch_indices(steps: range, batch_size: int, num_images: int, seed: int) -> Tensor:
    """The indices (S, batch_size) of the images of consecutive steps of the trial, on the CPU.

    Epochs are shuffled one by one and joined; with a small subset, a batch may span several.
    """
    position, end, parts = steps.start * batch_size, steps.stop * batch_size, []
    while position < end:
        epoch, offset = divmod(position, num_images)
        part = _epoch_order(num_images, seed, epoch)[offset : offset + end - position]
        parts.append(part)
        position += len(part)
    return torch.cat(parts).view(len(steps), batch_size)


# Cached, because members of a pack with the same seed share its draws.
@lru_cache(maxsize=128)
def _epoch_order(num_images: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(num_images, generator=generator(seed, "order", epoch))


def draw_batches(data: PackData, stages: Sequence[TrainingStage], steps: range) -> tuple[Tensor, Tensor]:
    """The draws of consecutive steps, on the CPU; they depend on the members and steps alone.

    A pack of many small models on a GPU takes its steps in about the time of their draws, so all steps of a member are
    drawn at once where that is the same, and members share what they have in common.

    Args:
        stages: the stages of the members.
        steps: steps, counted within the trial.

    Returns:
        The indices of the images in `data.train`, (S, M, batch_size) int64, and their augmentation by
        `cvit.data.augment.draw_augmentation`, (S, M, batch_size, axes + 1) int16.
    """
    shape, count = data.train.shape, stages[0].trial.training.batch_size
    seeds = [stage.trial.seed for stage in stages]
    kinds: list[Augmentation] = [stage.trial.data.augmentation for stage in stages]
    places = [
        places[batch_indices(steps, count, len(places), seed)] for places, seed in zip(data.subsets, seeds, strict=True)
    ]
    drawn = {
        (kind, seed): torch.stack(
            [draw_augmentation(count, shape, kind, generator(seed, "augmentation", step)).to(CHANGES) for step in steps]
        )
        for kind, seed in dict.fromkeys(zip(kinds, seeds, strict=True))
    }
    changes = [drawn[kind, seed] for kind, seed in zip(kinds, seeds, strict=True)]
    return torch.stack(places, dim=1), torch.stack(changes, dim=1)
