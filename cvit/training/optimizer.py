"""AdamW (Loshchilov and Hutter 2019) for a pack: every member has its own learning rate, weight decay and clipping.

Weight decay applies to the weights that multiply, not to biases, norms and position terms. Step t = 1, 2, … of a member
with gradient g is that of `torch.optim.AdamW`:

    g ← g · min(1, clip_norm / (‖g‖ + 1e-6))
    p ← (1 − lr · weight_decay) p
    μ ← β₁ μ + (1 − β₁) g        ν ← β₂ ν + (1 − β₂) g²
    p ← p − lr / (1 − β₁ᵗ) · μ / (√(ν / (1 − β₂ᵗ)) + ε)
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cvit.config import TrainingConfig
from cvit.models.pack import FusedModels

BETAS = (0.9, 0.999)
EPSILON = 1e-8
_CLIP_EPSILON = 1e-6
"""A constant added to the norm, as in `torch.nn.utils.clip_grad_norm_`."""
_POSITION_TERMS = ("position_embedding", "relative_bias")
MOMENTS = ("exp_avg", "exp_avg_sq")


def decays(name: str, shape: torch.Size) -> bool:
    """True if weight decay applies to a parameter of a single model."""
    return len(shape) >= 2 and name.rpartition(".")[2] not in _POSITION_TERMS


def coefficients(learning_rates: Sequence[float], configs: Sequence[TrainingConfig], step: int) -> list[list[float]]:
    """The coefficients of a step, a row per member: the shrinkage by weight decay, the step size, √(1 − β₂ᵗ).

    They are computed in double precision, as in torch.

    Args:
        learning_rates, configs: one per member.
        step: the step, from 0, counted within the stage.
    """
    correction_1, correction_2 = (1 - beta ** (step + 1) for beta in BETAS)
    return [
        [1 - rate * config.weight_decay, rate / correction_1, math.sqrt(correction_2)]
        for rate, config in zip(learning_rates, configs, strict=True)
    ]


class AdamW:
    """The optimiser of a pack. It works on whole matrices and never waits for the device.

    Attributes:
        moments: `exp_avg` and `exp_avg_sq`, each (M, P).
    """

    def __init__(self, models: FusedModels, configs: Sequence[TrainingConfig]) -> None:
        self.moments = {name: torch.zeros_like(models.matrix) for name in MOMENTS}
        shapes = {name: parameter.shape[1:] for name, parameter in models.model.named_parameters()}
        self._spared = models.mask([name for name, shape in shapes.items() if not decays(name, shape)])
        clip_norms = [[config.gradient_clip_norm or math.inf] for config in configs]
        self._clip_norm = torch.tensor(clip_norms, device=models.matrix.device)

    @torch.no_grad()
    def step(self, parameters: Tensor, gradient: Tensor, norm: Tensor, factors: Tensor, is_moving: Tensor) -> None:
        """Takes one step of everything that moves; the rest stays as it is, whatever its gradient.

        Args:
            parameters: (M, P), changed in place.
            gradient: (M, P).
            norm: (M, 1), the gradient's Euclidean norm.
            factors: (M, 3), from `coefficients`.
            is_moving: bool, (M, 1), or (M, P) if only some parameters of a member move.
        """
        # No torch.where with a number: it would copy the number to the device, which a CUDA graph does not allow.
        shrinkage, step_size, root_correction = factors.unsqueeze(-1).unbind(1)
        mean, square = self.moments["exp_avg"], self.moments["exp_avg_sq"]
        is_still = ~is_moving
        clipping = (self._clip_norm / (norm + _CLIP_EPSILON)).clamp(max=1.0)
        gradient = (gradient * clipping).masked_fill_(is_still, 0.0)
        mean.lerp_(gradient, torch.full_like(is_still, 1 - BETAS[0], dtype=norm.dtype).masked_fill_(is_still, 0.0))
        square.mul_(torch.full_like(is_still, BETAS[1], dtype=norm.dtype).masked_fill_(is_still, 1.0))
        square.addcmul_(gradient, gradient, value=1 - BETAS[1])
        change = (mean / (square.sqrt() / root_correction).add_(EPSILON)).mul_(step_size)
        parameters.mul_(shrinkage.expand_as(parameters).masked_fill(is_still | self._spared, 1.0))
        parameters.sub_(change.masked_fill_(is_still, 0.0))
