"""The budgets of presets: the twin has converged before it is transferred, and attention patterns can move."""

import dataclasses
import itertools
from collections.abc import Hashable, Iterator
from functools import cache

import numpy as np
import pytest

from cvit.data.datasets import DatasetInfo
from cvit.engine.declaration import Sweep
from cvit.engine.planning.trials import Trial, study_of
from cvit.engine.terminal.cli import parse
from cvit.stages import TrainingStage
from cvit.training.schedule import learning_rate
from cvit.vocabulary import ATTENTION, CONVOLUTION, TRAINING
from tests.support.plans import all_sweeps, digits

LEAST_SUM = 8.0
"""A two_phase trial starts with its target 8 logits above the other patches (attention_sharpness 4: +4 and −4), and
AdamW moves a relative bias by at most about the sum of the learning rates."""
CONVERGED_STEPS = 1500
TRAININGS = [sweep for _, sweep in all_sweeps() if sweep.task == TRAINING]
RATE = "learning_rate"


def cifar100() -> DatasetInfo:
    """A data set of CIFAR-100's size."""
    labels = np.repeat(np.arange(100), 500)
    return dataclasses.replace(
        digits(),
        image_size=32,
        in_channels=3,
        num_classes=100,
        class_names=tuple(map(str, range(100))),
        train_labels=labels,
        augmentation="crop_flip",
    )


def trials(sweep: Sweep, preset: str) -> Iterator[Trial]:
    """The trials of a preset on the first seed; of a search, the settings that it starts from."""
    request = parse(sweep, ["--preset", preset])
    assert request is not None
    study = study_of(sweep, request, cifar100())
    for values in itertools.product(*request.grid.values()):
        cell = dict(zip(request.grid, values, strict=True))
        yield study.trial_at({**study.settings, **study.settings_of.get(cell["init_scheme"], {}), **cell, "seed": 0})


@cache
def sum_of_rates(steps: int, peak: float, warmup_fraction: float) -> float:
    return sum(learning_rate(step, steps, peak, warmup_fraction) for step in range(steps))


def phase(trial: Trial, name: str) -> TrainingStage | None:
    stages = [stage for stage in trial.stages if isinstance(stage, TrainingStage)]
    return next((stage for stage in stages if stage.phase == name), None)


@pytest.mark.parametrize("sweep", TRAININGS, ids=lambda sweep: sweep.name)
def test_attention_patterns_can_move_in_reference(sweep: Sweep) -> None:
    """In a sweep over learning rates or steps, they can at the largest ones."""
    sums: dict[Hashable, float] = {}
    for trial in trials(sweep, "reference"):
        stage = phase(trial, ATTENTION)
        if stage is not None:
            others = tuple((n, v) for n, v in trial.cell.items() if n not in (RATE, "min_steps"))
            of_stage = sum_of_rates(stage.steps, stage.learning_rate, stage.warmup_fraction)
            sums[others] = max(of_stage, sums.get(others, 0.0))
    assert sums and min(sums.values()) >= LEAST_SUM


@pytest.mark.parametrize(
    "sweep", [sweep for sweep in TRAININGS if "photographs" in sweep.presets], ids=lambda sweep: sweep.name
)
def test_the_twin_of_photographs_has_converged(sweep: Sweep) -> None:
    """In a sweep over steps, it has at the largest number."""
    steps = [stage.steps for trial in trials(sweep, "photographs") if (stage := phase(trial, CONVOLUTION))]
    assert steps and (max(steps) if "min_steps" in sweep.presets["photographs"].grid else min(steps)) >= CONVERGED_STEPS
