"""The readings of a pack: the models as which its optimiser steps compute its weights.

Most stages have one reading, the model itself. A stage of the init scheme `joint` has two, which take turns: the steps
with even numbers in the trial compute the factorized twin, those with odd numbers the attention model. A step trains
the parameters that its reading uses; the others keep their values and moments, and the step does not count for their
bias correction (`cvit.training.groups`), as in `torch.optim.AdamW` for a parameter whose gradient is None.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from cvit.models.pack import FusedModels
from cvit.models.twin import twin_reading
from cvit.stages import TrainingStage


@dataclass(frozen=True, eq=False)
class Reading:
    """A model that computes all members of a pack.

    Attributes:
        columns: the columns of the parameters that it uses in the matrix of the pack, (1, P) bool; None if all.
    """

    model: nn.Module
    columns: Tensor | None = None


def readings_of(stage: TrainingStage, models: FusedModels) -> tuple[Reading, ...]:
    """The readings of a pack of stages like this one, in the order of their turns."""
    whole = Reading(models.model)
    if stage.num_readings == 1:
        return (whole,)
    assert stage.first_step == 0, "the turns are counted within the trial, AdamW's steps within the stage"
    twin = twin_reading(models.model)
    return Reading(twin, models.mask([name for name, _ in twin.named_parameters()])), whole
