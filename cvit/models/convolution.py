"""The convolutional twins of the attention layer, which take its place in the convolution phase.

Both are convolutions on the token grid with zero padding and stride 1, written as one linear map per offset.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvit.geometry import Grid, Offset, nearest_offsets, neighbourhood, num_relative_positions, reach, relative_position
from cvit.models.layers import Linear, convolve


class FactorizedConvolution(nn.Module):
    """Value projection → shift of each head's channels by its offset → output projection.

    An attention layer of the same head_dim whose heads attend to these offsets computes the same function.
    """

    def __init__(self, embed_dim: int, num_heads: int, head_dim: int, grid: Grid) -> None:
        super().__init__()
        self.head_dim, self.grid = head_dim, grid
        self.offsets: tuple[Offset, ...] = nearest_offsets(num_heads, grid)
        self.value = Linear(embed_dim, num_heads * head_dim, bias=False)
        self.output = Linear(num_heads * head_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, embed_dim) → (B, N, embed_dim); in a pack (M, B, N, embed_dim)."""
        heads = self.value(tokens).unflatten(-2, self.grid).split(self.head_dim, dim=-1)
        shifted = [_shifted(head, offset) for head, offset in zip(heads, self.offsets, strict=True)]
        return self.output(torch.cat(shifted, dim=-1).flatten(-1 - len(self.grid), -2))


def _shifted(values: Tensor, offset: Offset) -> Tensor:
    """(..., *grid, D) → the same shape: each patch gets the value of the patch at `offset` from it, or zero outside."""
    padding = [0, 0]  # F.pad begins with the last dimension; a negative padding crops
    for step in reversed(offset):
        padding += [-step, step]
    return F.pad(values, padding)


class FullConvolution(nn.Module):
    """A convolution of full rank: one (embed_dim, embed_dim) map per offset.

    It has the offsets of a 3×3 neighbourhood (3 on one axis, 27 on three), or as many offsets as heads if that is more;
    on a small grid only offsets that occur there.

    Attributes:
        weight: (number of offsets, embed_dim out, embed_dim in).
    """

    def __init__(self, embed_dim: int, num_heads: int, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        count = max(len(neighbourhood(grid)), min(num_heads, num_relative_positions(grid)))
        self.offsets: tuple[Offset, ...] = nearest_offsets(count, grid)
        self.weight = nn.Parameter(torch.zeros(len(self.offsets), embed_dim, embed_dim))
        self.bias = nn.Parameter(torch.zeros(embed_dim))
        radius = reach(self.offsets)
        cube = (radius + 1,) * len(grid)  # a grid whose relative positions are the places in a kernel of that radius
        places = [relative_position(offset, cube) for offset in self.offsets]
        self.register_buffer("_places", torch.tensor(places), persistent=False)
        self.kernel_size = 2 * radius + 1

    def kernel(self) -> Tensor:
        """The kernel for torch's convolutions, (embed_dim out, embed_dim in, K, ..., K); in a pack (M, ...)."""
        sides = (self.kernel_size,) * len(self.grid)
        maps = self.weight.movedim(-3, -1)
        empty = maps.new_zeros(*maps.shape[:-1], math.prod(sides))
        return empty.index_copy(-1, self.get_buffer("_places"), maps).unflatten(-1, sides)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, embed_dim) → (B, N, embed_dim); in a pack (M, B, N, embed_dim)."""
        axes = len(self.grid)
        images = tokens.transpose(-2, -1).unflatten(-1, self.grid)
        mixed = convolve(images, self.kernel(), self.bias, axes, stride=1, padding=self.kernel_size // 2)
        return mixed.flatten(-axes).transpose(-2, -1)
