"""The layers of the pixel-equivariant twin, which treats all pixels of a patch alike.

A token of width d is read as the P pixels of its patch with C = d / P channels each: index pixel · C + channel, the
last axis fastest. Patch embedding, mixing and MLP are then convolutions at full resolution, as in the paper's theorem
1. They commute with shifts of the image by whole pixels, while the twins of `cvit.models.convolution`, which convolve
tokens, commute with shifts by whole patches only.

Mean and variance of a norm are those of the whole token, as in the transformer: norms of single pixels could not be
transferred. So the whole twin, too, commutes with shifts by whole patches only. Position embedding and head are those
of the transformer: a head that sees only means over pixels has C numbers to tell the classes apart, 6 for tokens of
width 96 and patches of 4 × 4, and learns much worse (docs/ARCHITECTURE.md).

`dense` gives the parameters of the ordinary layer that computes the same: matrices with one block per pixel.
"""

import math

import torch
from torch import Tensor, nn

from cvit.geometry import Grid
from cvit.models.embedding import cut, to_patches
from cvit.models.layers import Linear, convolve, layer_norm, linear

KERNEL_SIZE = 3


class PixelEmbedding(nn.Module):
    """A 1×1 convolution of the image, cut into tokens.

    Attributes:
        weight: (C, in_channels).
        bias: (C,).
    """

    def __init__(self, in_channels: int, embed_dim: int, patch: tuple[int, ...]) -> None:
        super().__init__()
        self.patch, self.in_channels = patch, in_channels
        channels = embed_dim // math.prod(patch)
        self.weight = nn.Parameter(torch.zeros(channels, in_channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, *shape) → (B, N, embed_dim); in a pack (M, ...)."""
        pixels = to_patches(images, self.patch).unflatten(-1, (self.in_channels, -1)).transpose(-1, -2)
        return linear(pixels, self.weight, self.bias).flatten(-2)

    def dense(self) -> tuple[Tensor, Tensor]:
        """Weight (embed_dim, in_channels, *patch) and bias (embed_dim,) of the patch embedding that is equal."""
        pixels = math.prod(self.patch)
        same_pixel = torch.eye(pixels, dtype=self.weight.dtype)
        weight = same_pixel[:, None, None, :] * self.weight[:, :, None]
        return weight.flatten(0, 1).unflatten(-1, self.patch), self.bias.repeat(pixels)


class PixelNorm(nn.LayerNorm):
    """Layer norm over the whole token, with a scale and a shift per channel that all pixels share."""

    def __init__(self, embed_dim: int, pixels: int) -> None:
        super().__init__(embed_dim // pixels)
        self.pixels = pixels

    def forward(self, input: Tensor) -> Tensor:
        """(..., embed_dim) → (..., embed_dim); in a pack (M, ...)."""
        return layer_norm(input, *self.dense(), self.eps)

    def dense(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of every entry of a token, both (embed_dim,); in a pack (M, embed_dim)."""
        times = (1,) * (self.weight.ndim - 1)
        return self.weight.repeat(*times, self.pixels), self.bias.repeat(*times, self.pixels)


class PixelLinear(Linear):
    """A 1×1 convolution: a linear map of the channels of each pixel, the same for all.

    If the pixels do not divide the width of the output, it is that much narrower.
    """

    def __init__(self, in_features: int, out_features: int, pixels: int) -> None:
        super().__init__(in_features // pixels, out_features // pixels)
        self.pixels = pixels

    def forward(self, input: Tensor) -> Tensor:
        """(..., pixels · in) → (..., pixels · out); in a pack (M, ...)."""
        return super().forward(input.unflatten(-1, (self.pixels, -1))).flatten(-2)

    def dense(self) -> tuple[Tensor, Tensor]:
        """Weight (pixels · out, pixels · in), block-diagonal, and bias (pixels · out,)."""
        return torch.block_diag(*[self.weight] * self.pixels), self.bias.repeat(self.pixels)


class PixelConvolution(nn.Module):
    """The mixing: a convolution of the image with 3 taps along each axis and zero padding.

    Attributes:
        weight: (C, C, 3, ..., 3).
        bias: (C,).
    """

    def __init__(self, embed_dim: int, grid: Grid, patch: tuple[int, ...]) -> None:
        super().__init__()
        self.grid, self.patch = grid, patch
        channels = embed_dim // math.prod(patch)
        self.weight = nn.Parameter(torch.zeros(channels, channels, *(KERNEL_SIZE,) * len(patch)))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, embed_dim) → (B, N, embed_dim); in a pack (M, B, N, embed_dim)."""
        images = pixels_of(tokens, self.grid, self.patch)
        mixed = convolve(images, self.weight, self.bias, len(self.grid), stride=1, padding=KERNEL_SIZE // 2)
        return tokens_of(mixed, self.patch)


def pixels_of(tokens: Tensor, grid: Grid, patch: tuple[int, ...]) -> Tensor:
    """(..., N, pixels · C) → (..., C, *shape): the image whose pixels the tokens hold."""
    axes = len(patch)
    parts = tokens.unflatten(-1, (*patch, -1)).unflatten(-2 - axes, grid)
    before = range(-parts.ndim, -1 - 2 * axes)
    pairs = [axis for a in range(axes) for axis in (a - 1 - 2 * axes, a - 1 - axes)]
    shape = [length * side for length, side in zip(grid, patch, strict=True)]
    images = parts.permute(*before, *pairs, -1)
    return images.reshape(*images.shape[: len(before)], *shape, -1).movedim(-1, -1 - axes)


def tokens_of(images: Tensor, patch: tuple[int, ...]) -> Tensor:
    """(..., C, *shape) → (..., N, pixels · C): the inverse of `pixels_of`."""
    axes = len(patch)
    parts = cut(images, patch).movedim(-1 - axes, -1)
    return parts.flatten(-1 - axes).flatten(-1 - axes, -2)
