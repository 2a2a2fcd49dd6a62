"""Multi-head self-attention with a relative position bias per head and a zero slot."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvit.geometry import Grid, crosses_windows, num_relative_positions, relative_position_index
from cvit.models.layers import Linear, linear

MASKED = -1
"""The index of the bias of a query and a key that are kept apart, as the fused operators take it (`cvit/native`)."""


class RelativeAttention(nn.Module):
    """Self-attention over a grid of patches: softmax(Q Kᵀ / √head_dim + bias) V, heads concatenated, projected.

    The bias of a head depends only on the offset between two patches (paper, section 3). One more key and value, the
    *zero slot*, are zero: a head that attends to it contributes nothing. That gives zero padding for a head whose
    target lies outside the image.

    With windows, a patch attends to the patches of its own window only, and to the zero slot: the bias of all others is
    −∞. Unlike Swin's, shifted windows do not continue on the other side of the image; those at its border are smaller.

    Attributes:
        relative_bias: (num_heads, R + 1): a column for each of the grid's R relative positions, then the zero slot's.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        head_dim: int,
        grid: Grid,
        window_size: int | None = None,
        window_shift: int = 0,
    ) -> None:
        """
        Args:
            window_size: patches along each axis of a window; None: attention to all patches.
            window_shift: patches by which windows are shifted along each axis.
        """
        super().__init__()
        self.num_heads, self.head_dim, self.grid = num_heads, head_dim, grid
        self.window_size, self.window_shift = window_size, window_shift
        inner_dim = num_heads * head_dim
        self.query = Linear(embed_dim, inner_dim, bias=False)
        self.key = Linear(embed_dim, inner_dim, bias=False)
        self.value = Linear(embed_dim, inner_dim, bias=False)
        self.output = Linear(inner_dim, embed_dim)
        positions = num_relative_positions(grid)
        self.relative_bias = nn.Parameter(torch.zeros(num_heads, positions + 1))
        index = relative_position_index(grid)
        if window_size is not None:
            outside = crosses_windows(grid, (window_size,) * len(grid), (window_shift,) * len(grid))
            index = index.masked_fill(outside, MASKED)
        index = F.pad(index, (0, 1), value=positions)
        self.register_buffer("_bias_index", index.flatten().to(self.relative_bias.device), persistent=False)

    def position_bias(self) -> Tensor:
        """The bias of every query and key, (num_heads, N, N + 1); the last key is the zero slot."""
        num_patches = math.prod(self.grid)
        index = self.get_buffer("_bias_index")
        if self.window_size is None:
            bias = self.relative_bias.index_select(-1, index)
        else:
            bias = self.relative_bias.index_select(-1, index.clamp(min=0)).masked_fill(index == MASKED, -torch.inf)
        return bias.unflatten(-1, (num_patches, num_patches + 1))

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.num_heads, self.head_dim)).transpose(-3, -2)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, embed_dim) → (B, N, embed_dim); in a pack (M, B, N, embed_dim)."""
        if tokens.is_cuda and tokens.dtype != torch.float64:
            return self._forward_on_cuda(tokens)
        query, key, value = (self._heads(project(tokens)) for project in (self.query, self.key, self.value))
        mixed = attend(query, key, value, self.position_bias().unsqueeze(-4))
        return self.output(mixed.transpose(-3, -2).flatten(-2))

    def _forward_on_cuda(self, tokens: Tensor) -> Tensor:
        """The same with one product for queries, keys and values, which on a CPU does not pay."""
        from cvit.models.cuda_attention import attention_on_cuda

        weights = torch.cat([project.weight for project in (self.query, self.key, self.value)], dim=-2)
        projected = linear(tokens, weights).unflatten(-1, (3, self.num_heads, self.head_dim))
        return self.output(attention_on_cuda(projected, self.position_bias()).flatten(-2))


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """softmax([query keyᵀ / √head_dim, 0] + bias) [value, 0], over the last two dimensions; 0 is the zero slot.

    On CPUs torch has no fused kernel for a learned bias; its fallback takes 1.6 times as long as this.

    Args:
        query, key, value: (B, num_heads, N, head_dim), in a pack (M, B, ...).
        bias: (1, num_heads, N, N + 1), or (M, 1, ...); the last column is the zero slot's.
    """
    key, value = (F.pad(heads, (0, 0, 0, 1)) for heads in (key, value))
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + bias.to(query.dtype)
    return logits.softmax(dim=-1) @ value
