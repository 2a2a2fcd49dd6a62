"""What the tests of the theorem share: random convolutions on any number of axes, and linear layers as matrices."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvit.theorem.convolutions import Convolution
from cvit.theorem.counts import Size, heads_needed

Conv = TypeVar("Conv", bound=nn.Module)
KINDS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_conv(*args: Any, seed: int = 0, padding: Any = "same", **options: Any) -> nn.Conv2d:
    return _drawn(nn.Conv2d(*args, padding=padding, dtype=torch.float64, **options), seed)


def random_conv_on(kernel: tuple[int, ...], channels: tuple[int, int], seed: int = 0, **options: Any) -> Convolution:
    """A convolution on as many axes as its kernel has."""
    conv = KINDS[len(kernel)](*channels, kernel, padding="same", dtype=torch.float64, **options)
    return _drawn(conv, seed)


def _drawn(conv: Conv, seed: int) -> Conv:
    with torch.no_grad():
        for i, parameter in enumerate(conv.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=seed + i))
    return conv


def convolved(conv: Convolution, images: Tensor) -> Tensor:
    """conv(images) by an explicit zero padding: ⌊(size − 1)/2⌋ pixels before and the rest after."""
    sides = []
    for size, dilation in zip(reversed(conv.kernel_size), reversed(conv.dilation), strict=True):
        total = dilation * (size - 1)
        sides += [total // 2, total - total // 2]  # F.pad begins with the last dimension
    function = FUNCTIONS[len(conv.kernel_size)]
    return function(F.pad(images, sides), conv.weight, conv.bias, dilation=conv.dilation, groups=conv.groups)


def dense_sides(conv: Convolution) -> tuple[int, ...]:
    """The sides of a convolution's kernel with its dilation."""
    return tuple(step * (taps - 1) + 1 for taps, step in zip(conv.kernel_size, conv.dilation, strict=True))


def own_count(conv: Convolution, patch: Size) -> int:
    """The heads that the theorem counts for a convolution with padding "same", which torch adds behind if it is odd."""
    before = tuple((side - 1) // 2 for side in dense_sides(conv))
    return heads_needed(tuple(conv.kernel_size), patch, dilation=tuple(conv.dilation), padding=before)


def operator(layer: Callable[[Tensor], Tensor], channels: int, *shape: int) -> Tensor:
    """(D_out, *shape, channels, *shape): what a linear layer makes of every unit image."""
    unit = torch.eye(channels * math.prod(shape), dtype=torch.float64).unflatten(1, (channels, *shape))
    with torch.no_grad():
        images = layer(unit)
    return images.movedim(0, -1).unflatten(-1, (channels, *shape))


def relative_error(layer: nn.Module, images: Tensor, expected: Tensor) -> float:
    with torch.no_grad():
        return float((layer(images) - expected).norm() / expected.norm())
