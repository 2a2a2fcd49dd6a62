"""The task `training`: training a vision transformer, or a model to compare it with, on images.

Training itself is in `cvit.training.loop`, which is imported only when it is needed: a sweep is planned without torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cvit.config import PARAMETERS, ConfigError, TrialConfig
from cvit.data.subsets import subset_size
from cvit.stages import TrainingStage, stages_of
from cvit.tasks import Task
from cvit.vocabulary import TEST_ACCURACY, TRAIN_LOSS, TRAINING, VAL_ACCURACY

if TYPE_CHECKING:
    import torch

    from cvit.data.datasets import Dataset, DatasetInfo
    from cvit.results import Reports
    from cvit.storage import Storage

TOKENS_PER_SIDE = 8
LEAST_PATCH_SIZE = 2
"""By default, images are cut into about 8 × 8 patches of at least 2 × 2 pixels."""


def _defaults_of_data(info: "DatasetInfo") -> dict[str, Any]:
    return {
        "dataset": info.name,
        "data_fingerprint": info.fingerprint,
        "image_size": info.image_size,
        "in_channels": info.in_channels,
        "num_classes": info.num_classes,
        "augmentation": info.augmentation,
        "patch_size": _default_patch_size(info.image_size),
    }


def _default_patch_size(image_size: int) -> int:
    divisors = [size for size in range(LEAST_PATCH_SIZE, image_size + 1) if image_size % size == 0] or [image_size]
    return min(divisors, key=lambda size: abs(image_size / size - TOKENS_PER_SIDE))


def _stages(flat: Mapping[str, Any], info: "DatasetInfo | None") -> tuple[TrialConfig, tuple[TrainingStage, ...]]:
    assert info is not None
    config = TrialConfig.from_flat(flat)
    if np.bincount(info.train_labels).max() < 2:
        raise ConfigError(
            f"dataset {info.name!r} has one training image in each class, and so none that could be held out for "
            "validation: some class needs at least 2"
        )
    num_images = subset_size(info.train_labels, config.data.data_fraction, config.data.validation_fraction)
    return config, stages_of(config, num_images)


def _train(
    stages: Sequence[TrainingStage],
    dataset: "Dataset | None",
    storage: "Storage",
    device: "torch.device",
    checkpoint_at_every_evaluation: bool,
) -> "Iterator[Reports]":
    from cvit.training.loop import train_pack

    assert dataset is not None
    return train_pack(stages, dataset, storage, device, checkpoint_at_every_evaluation)


def _step_flops(stage: TrainingStage) -> float:
    from cvit.training.probe import step_flops

    return step_flops(stage)


def _step_seconds(stage: TrainingStage, sizes: Sequence[int], device: "torch.device") -> list[float]:
    from cvit.training.probe import step_seconds

    return step_seconds(stage, sizes, device)


def _peak_bytes(stage: TrainingStage, members: int, device: "torch.device") -> int:
    from cvit.training.probe import peak_bytes

    return peak_bytes(stage, members, device)


TASK = Task(
    name=TRAINING,
    parameters=PARAMETERS,
    needs_data=True,
    metric=TEST_ACCURACY,
    selection_metric=VAL_ACCURACY,
    curves=(VAL_ACCURACY, TRAIN_LOSS),
    compared_by="init_scheme",
    stages=_stages,
    train=_train,
    step_flops=_step_flops,
    step_seconds=_step_seconds,
    peak_bytes=_peak_bytes,
    defaults_of_data=_defaults_of_data,
)
