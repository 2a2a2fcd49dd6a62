"""The task `expressivity`: attempts to fit an attention layer to a random convolution, beside the bound of theorem 2.

The fit itself is in `cvit.training.fit`, which is imported only when it is needed: a sweep is planned without torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cvit.fits import PARAMETERS, ExpressivityConfig, FitStage
from cvit.tasks import Task
from cvit.theorem.counts import heads_needed
from cvit.vocabulary import EXPRESSIVITY, EXPRESSIVITY_ERROR

if TYPE_CHECKING:
    import torch

    from cvit.data.datasets import Dataset, DatasetInfo
    from cvit.data.subsets import ImageCounts
    from cvit.results import Reports
    from cvit.storage import Storage

STEP_S = 1e-3
FLOPS_PER_SECOND = 4e9
"""The seconds that a step of a fit is expected to take whatever its size, and the operations a second beside them."""


def _stages(flat: Mapping[str, Any], info: "DatasetInfo | None") -> tuple[ExpressivityConfig, tuple[FitStage, ...]]:
    config = ExpressivityConfig.from_flat(flat)
    return config, (FitStage(config),)


def _train(
    stages: Sequence[FitStage],
    dataset: "Dataset | None",
    storage: "Storage",
    device: "torch.device",
    checkpoint_at_every_evaluation: bool,
) -> "Iterator[Reports]":
    from cvit.training.fit import fit

    for stage in stages:
        for report in fit(stage, storage):
            yield [(stage.key, report)]


def _step_flops(stage: FitStage) -> float:
    from cvit.training.fit import step_flops

    return step_flops(stage)


def _expected_seconds(stage: FitStage, images: "ImageCounts | None", device: str) -> float:
    """The time of the products of the squared distance, in float64, whose forward pass has one in every three."""
    config = stage.trial
    pairs = config.grid_size ** (2 * config.dimensions)
    num_offsets = heads_needed(config.kernel_shape, config.patch_size, **config.options)
    of_pair = 3 * config.num_heads * (config.num_heads + num_offsets) + num_offsets**2
    return stage.steps * (STEP_S + 2 * pairs * of_pair / FLOPS_PER_SECOND)


def _step_seconds(stage: FitStage, sizes: Sequence[int], device: "torch.device") -> list[float]:
    from cvit.training.fit import step_seconds

    return [size * step_seconds(stage) for size in sizes]


TASK = Task(
    name=EXPRESSIVITY,
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
