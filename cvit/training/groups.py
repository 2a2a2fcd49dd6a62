"""Groups of parameters that learn alike: their share of the learning rate, and the steps that AdamW takes on them.

- Position terms, relative biases and position embeddings, learn at `position_learning_rate_factor` times the learning
  rate, in every phase. AdamW moves a parameter by at most about the sum of the learning rates, whatever its gradient,
  and position terms have further to go than weights.
- What the convolution phase has trained and the attention phase has taken over learns at
  `transferred_learning_rate_factor` times the rate there. Queries, keys and relative biases are new.
- With `optimizer_state=carried`, AdamW goes on in the attention phase with the moments and the number of steps of the
  parameters that the twin has too. The twin's convolution, if it is not factorized like the heads, has no counterpart,
  so the values and outputs of the heads start without moments and from step 0, as queries, keys and biases do.
- What only one of two readings has (`cvit.training.readings`) moves in every second step.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cvit.init.registry import blank_model
from cvit.stages import TrainingStage

POSITION_TERMS = ("position_embedding", "relative_bias")
MOMENT_NAMES = ("exp_avg", "exp_avg_sq")
"""The names of AdamW's moments. The moments of a parameter are saved under `exp_avg/<name>` and `exp_avg_sq/<name>`."""
_ONLY_IN_ATTENTION = {"query", "key", "relative_bias"}
"""Parts of the names of the attention phase's parameters that the convolution phase does not train."""


@dataclass(frozen=True)
class Group:
    """Parameters that learn alike.

    Attributes:
        rate_factor: their learning rate over that of the stage.
        steps_before: AdamW's steps on them in the phase before, whose moments they have.
        period: the number of the stage's steps from one that moves them to the next; the first one to move them is the
            last one of a period.
    """

    rate_factor: float = 1.0
    steps_before: int = 0
    period: int = 1

    def steps_until(self, step: int) -> int:
        """The number of steps that AdamW has taken on them before a step of the stage."""
        return self.steps_before + step // self.period


def groups_of(stage: TrainingStage, names: Iterable[str]) -> dict[str, Group]:
    """The group of each parameter of a stage's model, by name."""
    carried = carried_names(stage)
    before = 0 if stage.parent is None else stage.parent.steps
    return {
        name: Group(_rate_factor(stage, name), before if name in carried else 0, _period(stage, name)) for name in names
    }


def _rate_factor(stage: TrainingStage, name: str) -> float:
    training, parts = stage.trial.training, name.split(".")
    factor = training.position_learning_rate_factor if parts[-1] in POSITION_TERMS else 1.0
    if stage.parent is not None and _ONLY_IN_ATTENTION.isdisjoint(parts):
        factor *= training.transferred_learning_rate_factor
    return factor


def _period(stage: TrainingStage, name: str) -> int:
    """Where a stage has two readings, the steps of the twin leave attention's own parameters as they are."""
    return 1 if _ONLY_IN_ATTENTION.isdisjoint(name.split(".")) else stage.num_readings


def carried_names(stage: TrainingStage) -> frozenset[str]:
    """The parameters whose moments come from the convolution phase: those that the twin has under the same name and in
    the same shape."""
    if stage.parent is None or not stage.carries_moments:
        return frozenset()
    with torch.device("meta"):
        models = [blank_model(s) for s in (stage.parent, stage)]
    twin, own = ({(name, p.shape) for name, p in model.named_parameters()} for model in models)
    return frozenset(name for name, _ in twin & own)


def carried_moments(
    stage: TrainingStage, start: Mapping[str, Tensor], saved: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The moments with which a stage begins that carries them over, under their names.

    Args:
        start: the weights that the stage begins with.
        saved: the moments at the end of the convolution phase.
    """
    carried = carried_names(stage)
    return {
        f"{moment}/{name}": saved[f"{moment}/{name}"] if name in carried else torch.zeros_like(weight)
        for moment in MOMENT_NAMES
        for name, weight in start.items()
    }
