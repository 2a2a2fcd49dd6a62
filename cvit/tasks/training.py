"""The task `training`: training a vision transformer, or a model to compare it with, on images or sequences.

Training itself is in `cvit.training.loop`, which is imported only when it is needed: a sweep is planned without torch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cvit.config import OFFSETS_OF_3X3, PARAMETERS, DataConfig, TrialConfig
from cvit.cost import FORWARD_AND_BACKWARD, compile_seconds, expected_step_seconds
from cvit.data.subsets import ImageCounts, image_counts, is_about, num_at_most, possible_fraction
from cvit.parameters import ConfigError
from cvit.results import MOMENTS, WEIGHTS
from cvit.stages import TrainingStage, stages_of
from cvit.tasks import Task
from cvit.training.schedule import learning_rate_sum
from cvit.vocabulary import TEST_ACCURACY, TRAIN_LOSS, TRAINING, VAL_ACCURACY

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from cvit.data.datasets import Dataset, DatasetInfo
    from cvit.results import Reports
    from cvit.storage import Storage

TOKENS_PER_SIDE = 8
LEAST_PATCH_SIZE = 2
"""By default, images are cut into about 8 × 8 patches of at least 2 × 2 pixels."""
TOKENS_PER_SEQUENCE = 64
"""By default, sequences are cut into about as many patches as images; a patch may be a single sample, which often has
several channels."""
HEADS_ON_SEQUENCES = 3
"""The heads that express a convolution of width 3: what 9 are on images."""

STAGE_S = 0.1
"""The seconds that a stage is expected to take beside its steps: its model, its first step, its result."""


def _defaults_of_data(info: "DatasetInfo") -> dict[str, Any]:
    return {
        "dataset": info.name,
        "data_fingerprint": info.fingerprint,
        "image_size": info.image_size,
        "in_channels": info.in_channels,
        "num_classes": info.num_classes,
        "dimensions": info.dimensions,
        "augmentation": info.augmentation,
        "patch_size": _default_patch_size(info),
    } | ({"num_heads": HEADS_ON_SEQUENCES} if info.dimensions == 1 else {})


def _default_patch_size(info: "DatasetInfo") -> int:
    length = info.image_size
    if info.dimensions == 1:  # by ratios, so that a prime length is not one patch
        sizes = [size for size in range(1, length + 1) if length % size == 0]
        return min(sizes, key=lambda size: abs(math.log(length / size / TOKENS_PER_SEQUENCE)))
    divisors = [size for size in range(LEAST_PATCH_SIZE, length + 1) if length % size == 0] or [length]
    return min(divisors, key=lambda size: abs(length / size - TOKENS_PER_SIDE))


def _fitted(settings: Mapping[str, Any], info: "DatasetInfo") -> dict[str, Any]:
    """Parameters of a preset, or values of its axes, that fit a data set of sequences.

    Where the preset has the 9 heads of a 3×3 neighbourhood, sequences get 3, together as wide; where its patches do not
    divide their length, patches of the default length. Axes are tuples of values.
    """
    if info.dimensions != 1:
        return dict(settings)
    fitted = dict(settings)
    if settings.get("num_heads") == OFFSETS_OF_3X3 and "head_dim" in settings:
        fitted["head_dim"] = settings["head_dim"] * OFFSETS_OF_3X3 // HEADS_ON_SEQUENCES
    for name, fit in (("num_heads", _fitted_heads), ("patch_size", _fitted_patch)):
        if isinstance(value := settings.get(name), tuple):
            fitted[name] = tuple(sorted({fit(each, info) for each in value}))
        elif value is not None:
            fitted[name] = fit(value, info)
    return fitted


def _fitted_heads(num_heads: int, info: "DatasetInfo") -> int:
    return HEADS_ON_SEQUENCES if num_heads == OFFSETS_OF_3X3 else num_heads


def _fitted_patch(patch_size: int, info: "DatasetInfo") -> int:
    return _default_patch_size(info) if info.image_size % patch_size else patch_size


def _stages(flat: Mapping[str, Any], info: "DatasetInfo | None") -> tuple[TrialConfig, tuple[TrainingStage, ...]]:
    assert info is not None
    config = TrialConfig.from_flat(flat)
    return config, stages_of(config, _image_counts(config.data, info).train)


@lru_cache(maxsize=1024)
def _image_counts(data: DataConfig, info: "DatasetInfo") -> ImageCounts:
    """The numbers of images that a trial uses.

    Raises:
        ConfigError: every class gives at least one image, and that is too far from what a parameter says.
    """
    counts = info.train_counts
    train, held_out = image_counts(counts, data.data_fraction, data.validation_fraction)
    total, number = int(counts.sum()), int(held_out.sum())
    if number == 0:
        raise ConfigError(
            f"dataset {info.name!r} has one training image in each class, and so none that could be held out for "
            "validation: some class needs at least 2"
        )
    if not is_about(number, data.validation_fraction, counts):
        valid = possible_fraction(counts, data.validation_fraction)
        raise ConfigError(
            f"validation_fraction {data.validation_fraction!r} would hold out {number} of {total} training images "
            f"({100 * number / total:.3g} %), because every class gives at least one image and keeps one"
            + (f": give {valid:g}" if valid is not None else "")
        )
    test = info.num_test
    if data.max_test_images is not None and data.max_test_images < test:
        test = _at_most("max_test_images", data.max_test_images, info.test_counts)
    validation = _at_most("max_validation_images", data.max_validation_images, held_out)
    return ImageCounts(train, total - number, validation, test)


def _at_most(name: str, most: int, counts: "NDArray[np.integer]") -> int:
    """The number of images in a stratified share of at most so many; raises ConfigError if there are more classes."""
    num_classes = int((counts > 0).sum())
    if most < num_classes:
        raise ConfigError(
            f"{name} {most} must be at least {num_classes}, the number of classes: one image of each is looked at"
        )
    return num_at_most(counts, most)


def _starts_from(stage: TrainingStage) -> tuple[str, ...]:
    return (WEIGHTS, MOMENTS) if stage.carries_moments else (WEIGHTS,)


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
    """The operations of a step; those of a model of which they are not known are counted, with torch."""
    if stage.step_flops is not None:
        return stage.step_flops
    from cvit.training.probe import step_flops

    return step_flops(stage)


def _expected_seconds(stage: TrainingStage, images: ImageCounts | None, device: str) -> float:
    """The steps, the evaluations, whose images cost the forward pass alone, and the start and end of the stage."""
    assert images is not None
    of_step = expected_step_seconds(stage.step_flops, device)
    of_image = of_step / FORWARD_AND_BACKWARD / stage.trial.training.batch_size
    num_evaluations = -(-stage.steps // stage.evaluation_interval)
    evaluated = num_evaluations * images.validation + images.test
    return STAGE_S + of_step * stage.steps + of_image * evaluated


def _step_seconds(stage: TrainingStage, sizes: Sequence[int], device: "torch.device") -> list[float]:
    from cvit.training.probe import step_seconds

    return step_seconds(stage, sizes, device)


def _peak_bytes(stage: TrainingStage, members: int, device: "torch.device") -> int:
    from cvit.training.probe import peak_bytes

    return peak_bytes(stage, members, device)


def _trained_model(stage: TrainingStage, storage: "Storage") -> "tuple[torch.nn.Module, torch.Tensor] | None":
    import torch

    from cvit.init.registry import blank_model
    from cvit.training.checkpoint import load_weights

    weights = load_weights(storage, stage.key)
    if weights is None:
        return None
    model, size = blank_model(stage), stage.trial.model
    model.load_state_dict(weights)
    return model.eval(), torch.zeros(2, size.in_channels, *size.shape)


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
    starts_from=_starts_from,
    step_flops=_step_flops,
    learning_rate_sum=learning_rate_sum,
    expected_seconds=_expected_seconds,
    compile_seconds=compile_seconds,
    step_seconds=_step_seconds,
    peak_bytes=_peak_bytes,
    defaults_of_data=_defaults_of_data,
    trained_model=_trained_model,
    fitted=_fitted,
    image_counts=lambda config, info: _image_counts(config.data, info),
)
