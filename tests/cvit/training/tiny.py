"""Tiny stages of digits, trained alone, and what is left of them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cvit.config import InitSchemeName, TrialConfig
from cvit.data.datasets import Dataset
from cvit.parameters import choices
from cvit.results import Report, StageResult, load_result
from cvit.stages import TrainingStage, stages_of
from cvit.storage import Storage
from cvit.training.checkpoint import load_weights
from cvit.training.loop import train_pack
from cvit.training.schedule import rate_at

CPU = torch.device("cpu")
NUM_IMAGES = 1295  # of digits
TINY: dict[str, Any] = {
    "image_size": 8,
    "patch_size": 2,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 9,
    "head_dim": 4,
    "mlp_ratio": 2.0,
    "epochs": 0,
    "min_steps": 16,
    "batch_size": 32,
    "evaluations": 8,
    "max_validation_images": 60,
    "learning_rate": 3e-3,
}
SCHEMES: tuple[Any, ...] = choices(InitSchemeName)


def stages(scheme: InitSchemeName = "random", **changes: Any) -> tuple[TrainingStage, ...]:
    return stages_of(TrialConfig.from_flat(TINY | {"init_scheme": scheme} | changes), NUM_IMAGES)


def reports_of(stage: TrainingStage, digits: Dataset, storage: Storage, device: torch.device = CPU) -> Iterator[Report]:
    """The reports of a stage that is trained alone."""
    for reports in train_pack([stage], digits, storage, device):
        yield from (report for _, report in reports)


def train(stage: TrainingStage, digits: Dataset, storage: Storage, device: torch.device = CPU) -> StageResult:
    *_, last = reports_of(stage, digits, storage, device)
    assert last.result is not None
    return last.result


def train_all(trial_stages: tuple[TrainingStage, ...], digits: Dataset, storage: Storage) -> list[StageResult]:
    return [train(stage, digits, storage) for stage in trial_stages]


def measured(result: StageResult) -> list[tuple[str, int, float]]:
    """The points without what differs from run to run: the time."""
    return [(name, step, value) for name, step, value, _ in result.points if name != "images_per_second"]


def weights_of(stage: TrainingStage, storage: Storage) -> dict[str, Tensor]:
    weights = load_weights(storage, stage.key)
    assert weights is not None
    return weights


def assert_same_outcome(stage: TrainingStage, one: Storage, other: Storage) -> None:
    results = load_result(one, stage.key), load_result(other, stage.key)
    assert results[0] is not None and results[1] is not None
    assert measured(results[0]) == measured(results[1])
    assert (results[0].status, results[0].diverged_step) == (results[1].status, results[1].diverged_step)
    assert results[0].initial_loss == results[1].initial_loss
    weights = weights_of(stage, one), weights_of(stage, other)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def learning_rates(stage: TrainingStage) -> list[float]:
    """The learning rates of all steps of a stage."""
    return [rate_at(stage, step) for step in range(stage.steps)]
