"""The readings of a stage: the models as which its optimiser steps compute the same weights.

Most stages have one reading, the model itself. A stage of the init scheme `joint` has two, which take turns: the steps
with even numbers in the trial compute the factorized twin, those with odd numbers the attention model. A reading trains
the parameters that it uses; the others keep their values and moments in its steps, and such a step does not count for
their bias correction, as in `torch.optim.AdamW` for a parameter whose gradient is None.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cvit.models.pack import FusedModels
from cvit.models.twin import twin_reading
from cvit.stages import TrainingStage


@dataclass(frozen=True)
class Group:
    """Parameters that the same readings train.

    Attributes:
        columns: their columns in the matrix of a pack, (1, P) bool; (1, 1) if all.
        period: the number of steps from one that trains them to the next.
    """

    columns: Tensor
    period: int


@dataclass(frozen=True, eq=False)
class Reading:
    """A model that computes all members of a pack, and the places in `Readings.groups` of what it trains."""

    model: nn.Module
    trained: tuple[int, ...]


@dataclass(frozen=True)
class Readings:
    """The readings of a pack, in the order of their turns, and the groups of parameters that they train."""

    turns: tuple[Reading, ...]
    groups: tuple[Group, ...]

    def at(self, step: int) -> Reading:
        """The reading of a step; the step is counted within the trial."""
        return self.turns[step % len(self.turns)]


def readings_of(stage: TrainingStage, models: FusedModels) -> Readings:
    """The readings of a pack of stages like this one."""
    if not stage.is_joint:
        everything = torch.ones(1, 1, dtype=torch.bool, device=models.matrix.device)
        return Readings((Reading(models.model, trained=(0,)),), (Group(everything, period=1),))
    assert stage.first_step == 0, "the updates of a group are counted within the stage"
    twin = twin_reading(models.model)
    shared = [name for name, _ in twin.named_parameters()]
    own = [name for name, _ in models.model.named_parameters() if name not in shared]
    groups = Group(models.mask(shared), period=1), Group(models.mask(own), period=2)
    return Readings((Reading(twin, trained=(0,)), Reading(models.model, trained=(0, 1))), groups)
