"""The task `expressivity`: attempts to fit an attention layer to a random convolution, beside the bound of theorem 2.

The fit itself is in `cvit.training.fit`, which is imported only when it is needed: a sweep is planned without torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cvit.fits import PARAMETERS, ExpressivityConfig, FitStage
from cvit.tasks import Task
from cvit.vocabulary import EXPRESSIVITY, EXPRESSIVITY_ERROR

if TYPE_CHECKING:
    import torch

    from cvit.data.datasets import Dataset, DatasetInfo
    from cvit.results import Reports
    from cvit.storage import Storage


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
    step_seconds=_step_seconds,
)
