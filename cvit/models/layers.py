"""Layers that compute one model or a pack of them, by the shape of their parameters.

A *pack* is M models of one architecture as a single module: every parameter has one more dimension in front, for the
members (see `cvit.models.pack`), and so has every batch of images, tokens or logits. A layer whose parameters have this
dimension computes the members independently; otherwise it is torch's own layer. So one forward pass serves single
models and packs.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """inputs weightᵀ + bias over the last dimension.

    Args:
        inputs: (..., D), in a pack (M, ..., D).
        weight: (E, D), or (M, E, D).
        bias: (E,), or (M, E).
    """
    if weight.ndim == 2:
        return F.linear(inputs, weight, bias)
    rows, columns = inputs.flatten(1, -2), weight.transpose(1, 2)
    product = torch.bmm(rows, columns) if bias is None else torch.baddbmm(bias[:, None], rows, columns)
    return product.view(*inputs.shape[:-1], weight.shape[1])


def layer_norm(inputs: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`torch.nn.functional.layer_norm` over the last dimension.

    Args:
        inputs: (..., D), in a pack (M, ..., D).
        weight, bias: (D,), or (M, D).
    """
    if weight.ndim == 1:
        return F.layer_norm(inputs, inputs.shape[-1:], weight, bias, eps)
    shape = (len(weight), *(1,) * (inputs.ndim - 2), inputs.shape[-1])
    return F.layer_norm(inputs, inputs.shape[-1:], eps=eps) * weight.view(shape) + bias.view(shape)


_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
"""torch's convolutions, by the number of axes."""


def convolve(images: Tensor, weight: Tensor, bias: Tensor | None, axes: int, stride: int, padding: int) -> Tensor:
    """`torch.nn.functional.conv1d`, `conv2d` or `conv3d`; for a pack a grouped convolution with a group per member.

    Args:
        images: (B, C, *shape), in a pack (M, B, C, *shape).
        weight: (D, C, *kernel), or (M, D, C, *kernel).
        bias: (D,), or (M, D).
        axes: number of axes of the images, 1 to 3.
    """
    convolution = _CONVOLUTIONS[axes]
    if weight.ndim == 2 + axes:
        return convolution(images, weight, bias, stride, padding)
    members = len(weight)
    flat_bias = bias.flatten() if bias is not None else None
    mixed = convolution(_beside(images), weight.flatten(0, 1), flat_bias, stride, padding, groups=members)
    return _apart(mixed, members)


class Linear(nn.Linear):
    """`torch.nn.Linear`, alone or as a pack."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) → (..., out_features); in a pack (M, ...)."""
        return linear(input, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` over the last dimension, alone or as a pack."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., D) → (..., D); in a pack (M, ..., D)."""
        return layer_norm(input, self.weight, self.bias, self.eps)


class Convolution(nn.Module):
    """torch's convolution of images of 1 to 3 axes with the same kernel size, stride and zero padding along each, and
    without a bias; alone or as a pack.

    Attributes:
        weight: (out_channels, in_channels, *kernel).
    """

    def __init__(self, in_channels: int, out_channels: int, axes: int, kernel_size: int, stride: int) -> None:
        """The padding leaves ⌈pixels / stride⌉ places along an axis; the kernel size is odd."""
        super().__init__()
        self.axes, self.stride, self.padding = axes, stride, kernel_size // 2
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, *(kernel_size,) * axes))

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, *shape) → (B, out_channels, *shape / stride, rounded up); in a pack (M, ...)."""
        return convolve(images, self.weight, None, self.axes, self.stride, self.padding)


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm`, alone or as a pack."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, *shape) → (B, C, *shape); in a pack (M, ...)."""
        if self.weight.ndim == 1:
            return super().forward(input)
        members = len(self.weight)
        weight, bias = self.weight.flatten(), self.bias.flatten()
        return _apart(F.group_norm(_beside(input), members * self.num_groups, weight, bias, self.eps), members)


def _beside(images: Tensor) -> Tensor:
    """(M, B, C, *shape) → (B, M·C, *shape): puts the members side by side as channels."""
    return images.transpose(0, 1).flatten(1, 2)


def _apart(images: Tensor, members: int) -> Tensor:
    """The inverse of `_beside`."""
    return images.unflatten(1, (members, -1)).transpose(0, 1)
