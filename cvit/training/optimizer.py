"""AdamW with weight decay on the weights that multiply, not on biases, norms and position terms."""

import torch
from torch import Tensor, nn

from cvit.config import TrainingConfig

_POSITION_TERMS = ("position_embedding", "relative_bias")


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies to a parameter."""
    return parameter.ndim >= 2 and name.rpartition(".")[2] not in _POSITION_TERMS


def adamw(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """The optimiser of one stage."""
    groups = [
        {
            "params": [p for n, p in model.named_parameters() if decays(n, p) == decayed],
            "weight_decay": config.weight_decay * decayed,
        }
        for decayed in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.999), foreach=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Sets the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = value


def state_tensors(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """The optimiser's moments by parameter name, for a checkpoint; empty before the first step."""
    return {
        f"{moment}/{name}": optimizer.state[parameter][moment]
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for moment in ("exp_avg", "exp_avg_sq", "step")
    }


def load_state_tensors(model: nn.Module, optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]) -> None:
    """The inverse of `state_tensors`; moments go to their parameter's device, the step count stays on the CPU."""
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            "step": tensors[f"step/{name}"].cpu(),
            "exp_avg": tensors[f"exp_avg/{name}"].to(parameter.device),
            "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(parameter.device),
        }
