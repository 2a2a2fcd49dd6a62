"""The task `depth`: attempts to fit several layers of attention to a random convolution, beside the exact frontier.

The fit itself is in `cvit.training.deep_fit`, which is imported only when it is needed: a sweep is planned without
torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cvit.deep_fits import PARAMETERS, DeepFitStage, DepthConfig
from cvit.tasks import Task
from cvit.vocabulary import DEPTH, EXPRESSIVITY_ERROR

if TYPE_CHECKING:
    import torch

    from cvit.data.datasets import Dataset, DatasetInfo
    from cvit.data.subsets import ImageCounts
    from cvit.results import Reports
    from cvit.storage import Storage

STEP_S = 1.5e-3
FLOPS_PER_SECOND = 4e9
"""The seconds that a step of a fit is expected to take whatever its size, and the operations a second beside them."""


def _stages(flat: Mapping[str, Any], info: "DatasetInfo | None") -> tuple[DepthConfig, tuple[DeepFitStage, ...]]:
    config = DepthConfig.from_flat(flat)
    return config, (DeepFitStage(config),)


def _train(
    stages: Sequence[DeepFitStage],
    dataset: "Dataset | None",
    storage: "Storage",
    device: "torch.device",
    checkpoint_at_every_evaluation: bool,
) -> "Iterator[Reports]":
    from cvit.training.deep_fit import descend
    from cvit.training.fit import fit

    for stage in stages:
        for report in fit(stage, storage, descend):
            yield [(stage.key, report)]


def _step_flops(stage: DeepFitStage) -> float:
    from cvit.training.deep_fit import descend
    from cvit.training.fit import step_flops

    return step_flops(stage, descend)


def _expected_seconds(stage: DeepFitStage, images: "ImageCounts | None", device: str) -> float:
    """The time of the products of the squared distance, in float64, whose forward pass has one in every three, and of
    the products of attention matrices."""
    config = stage.trial
    tokens = (config.fit_image_size // config.patch_size) ** config.dimensions
    of_pair = 3 * config.terms * (config.terms + config.maps + tokens)
    return stage.steps * (STEP_S + 2 * tokens**2 * of_pair / FLOPS_PER_SECOND)


def _step_seconds(stage: DeepFitStage, sizes: Sequence[int], device: "torch.device") -> list[float]:
    from cvit.training.deep_fit import descend
    from cvit.training.fit import step_seconds

    return [size * step_seconds(stage, descend) for size in sizes]


TASK = Task(
    name=DEPTH,
    parameters=PARAMETERS,
    needs_data=False,
    metric=EXPRESSIVITY_ERROR,
    selection_metric=None,
    curves=(EXPRESSIVITY_ERROR,),
    compared_by="num_heads",
    stages=_stages,
    train=_train,
    step_flops=_step_flops,
    expected_seconds=_expected_seconds,
    step_seconds=_step_seconds,
)
