"""What the tests of the theorem share: random convolutions, and linear layers as matrices."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_conv(*args: Any, seed: int = 0, padding: Any = "same", **options: Any) -> nn.Conv2d:
    conv = nn.Conv2d(*args, padding=padding, dtype=torch.float64, **options)
    with torch.no_grad():
        for i, parameter in enumerate(conv.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=seed + i))
    return conv


def convolved(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """conv(images) by an explicit zero padding: ⌊(size − 1)/2⌋ pixels before and the rest after."""
    sides = []
    for axis in (1, 0):  # F.pad begins with the last dimension
        total = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        sides += [total // 2, total - total // 2]
    return F.conv2d(F.pad(images, sides), conv.weight, conv.bias, dilation=conv.dilation, groups=conv.groups)


def operator(layer: Callable[[Tensor], Tensor], channels: int, height: int, width: int) -> Tensor:
    """(D_out, height, width, channels, height, width): what a linear layer makes of every unit image."""
    unit = torch.eye(channels * height * width, dtype=torch.float64).unflatten(1, (channels, height, width))
    with torch.no_grad():
        images = layer(unit)
    return images.permute(1, 2, 3, 0).unflatten(3, (channels, height, width))


def relative_error(layer: nn.Module, images: Tensor, expected: Tensor) -> float:
    with torch.no_grad():
        return float((layer(images) - expected).norm() / expected.norm())
