"""AdamW (Loshchilov and Hutter 2019) for a pack: every member has its own learning rate, weight decay and clipping.

Weight decay applies to the weights that multiply, not to biases, norms and position terms. A step of a member with
gradient g is that of `torch.optim.AdamW` with a parameter group for each `Group`:

    g ← g · min(1, clip_norm / (‖g‖ + 1e-6))
    p ← p₀ + (1 − lr · weight_decay) (p − p₀)
    μ ← β₁ μ + (1 − β₁) g        ν ← β₂ ν + (1 − β₂) g²
    p ← p − lr / (1 − β₁ᵗ) · μ / (√(ν / (1 − β₂ᵗ)) + ε)

t = 1, 2, … counts the steps on a parameter, those in the phase before included if its moments come from there. lr is
the stage's learning rate times the group's factor. p₀ is zero, or the weights at the stage's start (L2-SP; Li,
Grandvalet and Davoine 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", arXiv
1802.01483).
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cvit import native
from cvit.config import TrainingConfig
from cvit.models.pack import FusedModels
from cvit.training.groups import MOMENT_NAMES, POSITION_TERMS, Group

BETAS = (0.9, 0.999)
EPSILON = 1e-8
_CLIP_EPSILON = 1e-6
"""A constant added to the norm, as in `torch.nn.utils.clip_grad_norm_`."""


def decays(name: str, shape: torch.Size) -> bool:
    """True if weight decay applies to a parameter of a single model."""
    return len(shape) >= 2 and name.rpartition(".")[2] not in POSITION_TERMS


class AdamW:
    """The optimiser of a pack. It works on whole matrices and never waits for the device. On a CPU a step is one
    operator of `cvit.native` where that is there.

    Attributes:
        moments: `exp_avg` and `exp_avg_sq`, each (M, P).
        num_groups: G, the most groups of a member.
    """

    def __init__(
        self,
        models: FusedModels,
        configs: Sequence[TrainingConfig],
        groups: Sequence[Mapping[str, Group]] | None = None,
    ) -> None:
        """
        Args:
            configs: one per member.
            groups: for each member, the group of every parameter by name; without, all are alike.
        """
        shapes = {name: parameter.shape[1:] for name, parameter in models.model.named_parameters()}
        of_members = groups or [dict.fromkeys(shapes, Group())] * len(models)
        distinct = [list(dict.fromkeys(group_of.values())) for group_of in of_members]
        self.moments = {name: torch.zeros_like(models.matrix) for name in MOMENT_NAMES}
        self.num_groups = max(map(len, distinct))
        self._groups = [found + found[:1] * (self.num_groups - len(found)) for found in distinct]
        self._configs = configs
        self._group_of_column: Tensor | None = None
        if self.num_groups > 1:
            self._group_of_column = torch.zeros_like(models.matrix, dtype=torch.int64)
            for member, group_of in enumerate(of_members):
                for name, group in group_of.items():
                    models.values(self._group_of_column, name)[member] = distinct[member].index(group)
        self._spared = models.mask([name for name, shape in shapes.items() if not decays(name, shape)])
        self._start: Tensor | None = None
        clip_norms = [[config.gradient_clip_norm or math.inf] for config in configs]
        self._clip_norm = torch.tensor(clip_norms, device=models.matrix.device)

    def decay_towards(self, start: Tensor) -> None:
        """Makes the weights that decay do so towards these, (M, P), instead of towards zero."""
        self._start = start.masked_fill(self._spared, 0.0)

    def coefficients(self, learning_rates: Sequence[float], step: int) -> list[list[list[float]]]:
        """The coefficients of a step, by member and group: the shrinkage by weight decay, the step size, √(1 − β₂ᵗ).

        They are computed in double precision, as in torch.

        Args:
            learning_rates: one per member.
            step: the step, from 0, counted within the stage.
        """
        return [
            [_coefficients(rate * group.rate_factor, config.weight_decay, group.steps_until(step)) for group in groups]
            for rate, config, groups in zip(learning_rates, self._configs, self._groups, strict=True)
        ]

    @torch.no_grad()
    def step(self, parameters: Tensor, gradient: Tensor, norm: Tensor, factors: Tensor, is_moving: Tensor) -> None:
        """Takes one step of everything that moves; the rest stays as it is, whatever its gradient.

        Args:
            parameters: (M, P), changed in place.
            gradient: (M, P).
            norm: (M, 1), the gradient's Euclidean norm.
            factors: (M, G, 3), from `coefficients`.
            is_moving: bool, (M, 1), or (M, P) if only some parameters of a member move.
        """
        clipping = (self._clip_norm / (norm + _CLIP_EPSILON)).clamp(max=1.0)
        if parameters.device.type == "cpu" and native.is_available():
            moments = (self.moments[name] for name in MOMENT_NAMES)
            terms = (factors, is_moving, self._spared, self._group_of_column, self._start)
            torch.ops.cvit.adamw_(parameters, *moments, gradient, clipping, *terms, *BETAS, EPSILON)
            return
        # No torch.where with a number: it would copy the number to the device, which a CUDA graph does not allow.
        shrinkage, step_size, root_correction = map(self._by_column, factors.unbind(-1))
        mean, square = self.moments["exp_avg"], self.moments["exp_avg_sq"]
        is_still = ~is_moving
        gradient = (gradient * clipping).masked_fill_(is_still, 0.0)
        mean.lerp_(gradient, torch.full_like(is_still, 1 - BETAS[0], dtype=norm.dtype).masked_fill_(is_still, 0.0))
        square.mul_(torch.full_like(is_still, BETAS[1], dtype=norm.dtype).masked_fill_(is_still, 1.0))
        square.addcmul_(gradient, gradient, value=1 - BETAS[1])
        change = (mean / (square.sqrt() / root_correction).add_(EPSILON)).mul_(step_size)
        shrinkage = shrinkage.expand_as(parameters).masked_fill(is_still | self._spared, 1.0)
        if self._start is None:
            parameters.mul_(shrinkage)
        else:  # where the start is zero, this is the same bit for bit
            start = self._start.masked_fill(is_still, 0.0)
            parameters.sub_(start).mul_(shrinkage).add_(start)
        parameters.sub_(change.masked_fill_(is_still, 0.0))

    def _by_column(self, of_groups: Tensor) -> Tensor:
        """(M, G) → a value for each column, (M, P), or, with one group, for all of them, (M, 1)."""
        return of_groups if self._group_of_column is None else of_groups.gather(1, self._group_of_column)


def _coefficients(rate: float, weight_decay: float, step: int) -> list[float]:
    correction_1, correction_2 = (1 - beta ** (step + 1) for beta in BETAS)
    return [1 - rate * weight_decay, rate / correction_1, math.sqrt(correction_2)]
