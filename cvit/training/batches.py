"""The images of one stage on its device, and the order in which they are trained on."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from cvit.config import DataConfig
from cvit.data.augment import augment, channel_statistics, normalise
from cvit.data.datasets import Dataset
from cvit.data.subsets import select, subset
from cvit.training.randomness import generator


@dataclass(frozen=True)
class LabelledImages:
    """uint8 images (n, C, H, W) and int64 labels (n,) on the training device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class StageData:
    """The subset a stage trains on, the validation and test images, and the subset's channel statistics (C,)."""

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    mean: Tensor
    std: Tensor

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) → float32, zero mean and unit variance per channel over the subset."""
        return normalise(images, self.mean, self.std)


def stage_data(dataset: Dataset, config: DataConfig, seed: int, device: torch.device) -> StageData:
    """Selects a trial's subset and puts everything that its stages need on the device."""
    split = select(dataset.train.labels, config.data_fraction, config.validation_fraction, seed)
    looked_at = min(1.0, config.max_validation_images / len(split.validation))
    validated = split.validation[subset(dataset.train.labels[split.validation], looked_at, seed=0)]
    looked_at = min(1.0, (config.max_test_images or len(dataset.test.labels)) / len(dataset.test.labels))
    tested = subset(dataset.test.labels, looked_at, seed=0)

    def on_device(images: np.ndarray, labels: np.ndarray) -> LabelledImages:
        return LabelledImages(torch.tensor(images, device=device), torch.tensor(labels, device=device))

    train = on_device(dataset.train.images[split.train], dataset.train.labels[split.train])
    validation = on_device(dataset.train.images[validated], dataset.train.labels[validated])
    mean, std = channel_statistics(train.images)
    test = on_device(dataset.test.images[tested], dataset.test.labels[tested])
    return StageData(train, validation, test, mean, std)


@lru_cache(maxsize=4)
def _epoch_order(num_images: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(num_images, generator=generator(seed, "order", epoch))


def batch_indices(step: int, batch_size: int, num_images: int, seed: int) -> Tensor:
    """Indices (batch_size,) of the images of a step of the trial, on the CPU.

    Epochs are shuffled one by one and joined; a batch may reach over several where the subset is small.
    """
    position, end, parts = step * batch_size, (step + 1) * batch_size, []
    while position < end:
        epoch, offset = divmod(position, num_images)
        part = _epoch_order(num_images, seed, epoch)[offset : offset + end - position]
        parts.append(part)
        position += len(part)
    return torch.cat(parts)


def training_batch(data: StageData, config: DataConfig, step: int, batch_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Augmented, normalised images and labels of a step of the trial; the same wherever and whenever asked for."""
    index = batch_indices(step, batch_size, len(data.train), seed).to(data.train.labels.device)
    images = augment(data.train.images[index], config.augmentation, generator(seed, "augmentation", step))
    return data.normalised(images), data.train.labels[index]
