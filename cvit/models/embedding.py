"""The patch embedding: images are cut into patches, and a linear map embeds the pixels of each."""

import math

import torch
from torch import Tensor, nn

from cvit.models.layers import linear


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel's size, computed as a linear map of the pixels of each patch.

    Attributes:
        weight: (embed_dim, in_channels, *patch), like that of `torch.nn.Conv1d`, `Conv2d` or `Conv3d`.
        bias: (embed_dim,).
    """

    def __init__(self, in_channels: int, embed_dim: int, patch: tuple[int, ...]) -> None:
        super().__init__()
        self.patch = patch
        self.weight = nn.Parameter(torch.zeros(embed_dim, in_channels, *patch))
        self.bias = nn.Parameter(torch.zeros(embed_dim))

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, *shape) → (B, N, embed_dim), the last axis of the grid fastest; in a pack (M, ...)."""
        return linear(to_patches(images, self.patch), self.weight.flatten(-1 - len(self.patch)), self.bias)


def to_patches(images: Tensor, patch: tuple[int, ...]) -> Tensor:
    """(..., C, *shape) → (..., N, C · pixels of a patch): within a patch channel first, the last axis fastest."""
    axes = len(patch)
    return cut(images, patch).flatten(-1 - axes).flatten(-1 - axes, -2)


def cut(images: Tensor, patch: tuple[int, ...]) -> Tensor:
    """(..., C, *shape) → (..., *grid, C, *patch), a view."""
    axes = len(patch)
    for axis, side in zip(range(-1, -1 - 2 * axes, -2), reversed(patch), strict=True):
        images = images.unflatten(axis, (-1, side))  # splits the axis into one of the grid and one inside the patch
    grid, inside = range(-2 * axes, 0, 2), range(1 - 2 * axes, 0, 2)
    before = range(-images.ndim, -2 * axes - 1)
    return images.permute(*before, *grid, -2 * axes - 1, *inside)


def from_patches(patches: Tensor, grid: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """(..., N, C · pixels of a patch) → (..., C, *shape): the inverse of `to_patches`."""
    axes = len(patch)
    channels = patches.shape[-1] // math.prod(patch)
    parts = patches.unflatten(-1, (channels, *patch)).unflatten(-2 - axes, grid)
    before = range(-parts.ndim, -1 - 2 * axes)
    pairs = [axis for a in range(axes) for axis in (a - 1 - 2 * axes, a - axes)]
    images = parts.permute(*before, -1 - axes, *pairs)
    shape = [length * side for length, side in zip(grid, patch, strict=True)]
    return images.reshape(*images.shape[: images.ndim - 2 * axes], *shape)
