"""The convolutional twins of the attention layer: what it is replaced by in the convolution phase.

Both are convolutions on the token grid with zero padding and stride 1, written as one linear map per offset.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvit.config import THREE_BY_THREE
from cvit.geometry import Offset, nearest_offsets, num_relative_positions, reach
from cvit.models.layers import Linear, convolve


class FactorizedConvolution(nn.Module):
    """Value projection → shift of each head's channels by its offset → output projection.

    An attention layer of the same head_dim whose heads look at these offsets computes the same function.
    """

    def __init__(self, embed_dim: int, num_heads: int, head_dim: int, grid_size: int) -> None:
        super().__init__()
        self.head_dim, self.grid_size = head_dim, grid_size
        self.offsets: tuple[Offset, ...] = nearest_offsets(num_heads)
        self.value = Linear(embed_dim, num_heads * head_dim, bias=False)
        self.output = Linear(num_heads * head_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, embed_dim) → (B, N, embed_dim); of a pack, (M, B, N, embed_dim) each."""
        grid = self.value(tokens).unflatten(-2, (self.grid_size, self.grid_size))
        heads = grid.split(self.head_dim, dim=-1)
        # A negative padding crops: patch (y, x) takes the value of patch (y + dy, x + dx), or zero outside.
        shifted = [F.pad(head, (0, 0, -dx, dx, -dy, dy)) for head, (dy, dx) in zip(heads, self.offsets, strict=True)]
        return self.output(torch.cat(shifted, dim=-1).flatten(-3, -2))


class FullConvolution(nn.Module):
    """A convolution of full rank: one (embed_dim, embed_dim) map per offset.

    It has a 3×3 neighbourhood, or as many offsets as there are heads where there are more than 9; on a grid of a single
    patch the only offset there is.

    Attributes:
        weight: (number of offsets, embed_dim out, embed_dim in).
    """

    def __init__(self, embed_dim: int, num_heads: int, grid_size: int) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.offsets: tuple[Offset, ...] = nearest_offsets(
            min(max(THREE_BY_THREE, num_heads), num_relative_positions(grid_size))
        )
        self.weight = nn.Parameter(torch.zeros(len(self.offsets), embed_dim, embed_dim))
        self.bias = nn.Parameter(torch.zeros(embed_dim))
        side = 2 * reach(self.offsets) + 1
        places = [(dy + side // 2) * side + dx + side // 2 for dy, dx in self.offsets]
        self.register_buffer("_places", torch.tensor(places), persistent=False)
        self.kernel_size = side

    def kernel(self) -> Tensor:
        """(embed_dim out, embed_dim in, K, K), as `torch.nn.functional.conv2d` takes it; of a pack, (M, ...)."""
        side = self.kernel_size
        maps = self.weight.movedim(-3, -1)
        empty = maps.new_zeros(*maps.shape[:-1], side * side)
        return empty.index_copy(-1, self.get_buffer("_places"), maps).unflatten(-1, (side, side))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, embed_dim) → (B, N, embed_dim); of a pack, (M, B, N, embed_dim) each."""
        grid = tokens.transpose(-2, -1).unflatten(-1, (self.grid_size, self.grid_size))
        mixed = convolve(grid, self.kernel(), self.bias, stride=1, padding=self.kernel_size // 2)
        return mixed.flatten(-2).transpose(-2, -1)
