"""Attention over the patches of an image that computes a given convolution exactly (paper, theorem 1)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvit.geometry import (
    Grid,
    Offset,
    by_axis,
    crosses_windows,
    num_relative_positions,
    patch_places,
    relative_position,
)
from cvit.models.attention import attend
from cvit.models.embedding import from_patches, to_patches
from cvit.theorem.convolutions import Convolution, kernel_of
from cvit.theorem.counts import Size, per_axis
from cvit.theorem.kernel import offsets, patch_maps

HARD = 1000.0
"""Sharpness of hard attention: exp(−1000) is zero in float64 too, so that the softmax is exactly one-hot."""


class PatchAttention(nn.Module):
    """Multi-head self-attention over the patches of an image of any size that the patch divides along each axis.

    Logits are Q Kᵀ / √head_dim + bias, or the bias alone: then the attention does not depend on the content. The bias
    of a head depends on the offset between two patches (paper, section 3), up to `half_widths` patches along each axis;
    all patches further away share one value. One more key and value, the *zero slot*, are zero: a head that attends to
    it contributes nothing. That gives zero padding for a head whose target lies outside the image.

    Patches are vectors in the order of `cvit.theorem.kernel`: channel first, then along the axes, the last one fastest.
    A patch of the output may have other sides than one of the input, as after a convolution with a stride: the grid of
    tokens is the same.

    Attributes:
        relative_bias: (num_heads, Π (2·half_width + 1) + 2): the offsets, the last axis fastest, the patches further
            away, the zero slot.
        query, key: only with `content`. Their weights start at zero, where neither has a gradient: before training, one
            of them must get other values.
        bias: (out_channels), like that of a convolution, or None.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        patch: tuple[int, ...],
        num_heads: int,
        head_dim: int,
        half_widths: tuple[int, ...],
        *,
        bias: bool = True,
        content: bool = False,
        out_patch: tuple[int, ...] | None = None,
        window_size: Grid | None = None,
        window_shift: Grid | None = None,
    ) -> None:
        """
        Args:
            patch: pixels along each axis of a patch.
            half_widths: patches along each axis, as many as `patch` has.
            out_patch: pixels along each axis of a patch of the output; None: as many as `patch`.
            window_size: patches along each axis of a window; None: attention to all patches.
            window_shift: patches along each axis; None: 0.
        """
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.patch, self.num_heads, self.head_dim, self.half_widths = patch, num_heads, head_dim, half_widths
        self.out_patch = patch if out_patch is None else out_patch
        self.window_size = window_size
        self.window_shift = (0,) * len(patch) if window_shift is None else window_shift
        inner_dim = num_heads * head_dim
        in_dim, out_dim = in_channels * math.prod(patch), out_channels * math.prod(self.out_patch)
        self.value = nn.Linear(in_dim, inner_dim, bias=False)
        self.output = nn.Linear(inner_dim, out_dim, bias=False)
        self.query = nn.Linear(in_dim, inner_dim, bias=False) if content else None
        self.key = nn.Linear(in_dim, inner_dim, bias=False) if content else None
        for projection in (self.query, self.key):
            if projection is not None:
                nn.init.zeros_(projection.weight)
        self._neighbourhood: Grid = tuple(half_width + 1 for half_width in half_widths)
        num_offsets = num_relative_positions(self._neighbourhood)
        self.relative_bias = nn.Parameter(torch.zeros(num_heads, num_offsets + 2))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_channels)) if bias else None)

    def position_bias(self, grid: Grid) -> Tensor:
        """The bias of queries and keys on a grid of N patches, (num_heads, N, N + 1); the last key is the zero slot."""
        places = patch_places(grid).to(self.relative_bias.device)
        steps = places[None, :] - places[:, None]  # (N, N, axes)
        reach = steps.new_tensor(self.half_widths)
        index = steps.new_zeros(steps.shape[:2])
        for axis, most in enumerate(self.half_widths):
            index = index * (2 * most + 1) + steps[..., axis] + most
        num_offsets = num_relative_positions(self._neighbourhood)
        index = torch.where((steps.abs() <= reach).all(dim=-1), index, num_offsets)
        index = F.pad(index, (0, 1), value=num_offsets + 1)
        bias = self.relative_bias.index_select(1, index.flatten()).unflatten(1, index.shape)
        if self.window_size is None:
            return bias
        outside = crosses_windows(grid, self.window_size, self.window_shift).to(bias.device)
        return bias.masked_fill(F.pad(outside, (0, 1)), -torch.inf)  # the zero slot is in every window

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.num_heads, self.head_dim)).transpose(-3, -2)

    def forward(self, input: Tensor) -> Tensor:
        """(B, in_channels, *shape) → (B, out_channels, *shape), or the shape that patches of `out_patch` give on the
        same grid; the batch dimension is optional. The argument has the name
        that it has in a convolution, so that calls by name go on working.

        Every output is a sum over all patches: one pixel that is not finite makes the whole image NaN.

        Raises:
            ValueError: the patch does not divide the image.
        """
        shape = tuple(input.shape[-len(self.patch) :])
        for side, pixels in zip(self.patch, shape, strict=True):
            if pixels % side:
                raise ValueError(f"patch size {side} does not divide an image of {by_axis(shape)} pixels")
        grid = tuple(pixels // side for pixels, side in zip(shape, self.patch, strict=True))
        tokens = to_patches(input, self.patch)
        bias = self.position_bias(grid)
        value = self._heads(self.value(tokens))
        if self.query is None or self.key is None:
            attention = bias.softmax(dim=-1)[..., :-1]
            mixed = torch.einsum("hij,...hjd->...hid", attention, value)
        else:
            query, key = self._heads(self.query(tokens)), self._heads(self.key(tokens))
            mixed = attend(query, key, value, bias)
        output = from_patches(self.output(mixed.transpose(-3, -2).flatten(-2)), grid, self.out_patch)
        return output if self.bias is None else output + self.bias.view(-1, *(1,) * len(grid))


def convolution_as_attention(
    conv: Convolution,
    patch_size: Size,
    *,
    sharpness: float = HARD,
    content: bool = False,
    causal: bool | tuple[bool, ...] = False,
) -> PatchAttention:
    """Attention that computes the same as a convolution: head δ attends to the patch at offset δ and applies M_δ.

        conv(x)_i = Σ_δ M_δᵀ x_{i+δ} = Σ_δ (A_δ x W_δ)_i,  A_δ = S_δ, W_δ = M_δ

    There is a head for each offset at which a tap joins two patches, `cvit.theorem.heads_needed` with the
    convolution's own stride, dilation and padding: 3 for a 3-tap kernel on series, 9 on images, 27 on volumes, 4 for
    3×3 with stride 2. With stride s, tokens of P pixels become tokens of P/s on the same grid, so that a network whose
    strides' product divides P stays on one grid of tokens.

    The head's logits are +sharpness on that patch, 0 on the zero slot and −sharpness elsewhere. A head is as wide as
    the narrower side of M_δ; the projection on that side is the identity, so that nothing is rounded.

    Proof: `cvit.theorem.kernel` has the sum over δ; hard attention to the patch at δ is S_δ, and the zero slot takes
    the rows of S_δ that are zero, at the borders. Source: paper, theorem 1; strides, dilations and causal kernels ours.

    Args:
        conv: a convolution for which `reason_not_convertible` returns None.
        patch_size: pixels along each axis; an int is the same along all. The stride must divide it.
        sharpness: HARD is exact; a moderate value gives the position terms gradients, at an error of about
            e^−sharpness.
        content: give the layer queries and keys. They start at zero, where they have no effect.
        causal: the axes along which the kernel sees its own pixel and those before it, whatever padding the module has
            there: torch has no such padding, so networks pad or cut outside of the module.

    Returns:
        A layer with its own parameters, with the convolution's dtype, device, training mode and requires_grad.

    Raises:
        ValueError: the convolution cannot be replaced, or the patch size is below 1, no multiple of the stride, or has
            another number of axes.
    """
    weight, bias, options = kernel_of(conv, causal)
    patch = per_axis(patch_size, weight.ndim - 2)
    stride = per_axis(options["stride"], len(patch))
    layer = attention_at(
        offsets(tuple(weight.shape[2:]), patch, **options),
        patch_maps(weight.detach(), patch, **options),
        patch,
        tuple(side // step for side, step in zip(patch, stride, strict=True)),
        None if bias is None else bias.detach().clone(),
        sharpness=sharpness,
        content=content,
    )
    layer.requires_grad_(weight.requires_grad).train(conv.training)
    if layer.bias is not None and bias is not None:
        layer.bias.requires_grad_(bias.requires_grad)
    return layer


def attention_at(
    targets: Sequence[Offset],
    maps: Tensor,
    patch: tuple[int, ...],
    out_patch: tuple[int, ...],
    bias: Tensor | None = None,
    *,
    sharpness: float = HARD,
    content: bool = False,
) -> PatchAttention:
    """Attention with a head for each offset, which attends to the patch there and applies a map.

    Args:
        targets: the offsets.
        maps: (heads, pixels of a patch · channels, pixels of an output patch · out_channels).
        bias: (out_channels).
    """
    num_heads, in_dim, out_dim = maps.shape
    head_dim = min(in_dim, out_dim)
    identity = torch.eye(head_dim, dtype=maps.dtype, device=maps.device)
    half_widths = tuple(max(abs(step) for step in steps) for steps in zip(*targets, strict=True))
    neighbourhood = tuple(half_width + 1 for half_width in half_widths)
    relative_bias = maps.new_full((num_heads, num_relative_positions(neighbourhood) + 2), -sharpness)
    for head, offset in enumerate(targets):
        relative_bias[head, relative_position(offset, neighbourhood)] = sharpness
    relative_bias[:, -1] = 0.0
    state = {"relative_bias": relative_bias}
    if in_dim <= out_dim:
        state["value.weight"] = identity.repeat(num_heads, 1)
        state["output.weight"] = maps.permute(2, 0, 1).flatten(1).contiguous()
    else:
        state["value.weight"] = maps.transpose(1, 2).flatten(0, 1).contiguous()
        state["output.weight"] = identity.repeat(1, num_heads)
    if bias is not None:
        state["bias"] = bias
    if content:
        state |= {f"{name}.weight": torch.zeros_like(state["value.weight"]) for name in ("query", "key")}
    with torch.device("meta"):  # saves the random draws for weights that are replaced at once
        layer = PatchAttention(
            in_dim // math.prod(patch),
            out_dim // math.prod(out_patch),
            patch,
            num_heads,
            head_dim,
            half_widths,
            bias=bias is not None,
            content=content,
            out_patch=out_patch,
        )
    layer.load_state_dict(state, assign=True)
    return layer
