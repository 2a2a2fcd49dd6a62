"""Attention over the patches of an image that computes a given convolution exactly (paper, theorem 1)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvit.models.attention import attend
from cvit.theorem.counts import half_width
from cvit.theorem.kernel import patch_maps

HARD = 1000.0
"""Sharpness of hard attention: exp(−1000) is zero in float64 too, so that the softmax is exactly one-hot."""


class PatchAttention(nn.Module):
    """Multi-head self-attention over the P×P patches of an image of any size that P divides.

    Logits are Q Kᵀ / √head_dim + bias, or the bias alone: then the attention doesn't depend on the content. The bias of
    a head depends on the offset between two patches (paper, section 3), up to `half_width` patches along each axis; all
    patches further away share one value. One more key and value, the *zero slot*, are zero: a head that attends to it
    contributes nothing, which is zero padding where its target lies outside the image.

    Patches are vectors in the order of `cvit.theorem.kernel`: channel first, then row, then column.

    Attributes:
        relative_bias: (num_heads, (2·half_width + 1)² + 2): the offsets row by row, the patches further away, the zero
            slot.
        query, key: only with `content`. Their weights are zero at the start, where neither has a gradient: training
            has to give one of them values first.
        bias: (out_channels), as a Conv2d's, or None.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        patch_size: int,
        num_heads: int,
        head_dim: int,
        half_width: int,
        *,
        bias: bool = True,
        content: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size, self.num_heads, self.head_dim, self.half_width = patch_size, num_heads, head_dim, half_width
        in_dim, inner_dim, out_dim = in_channels * patch_size**2, num_heads * head_dim, out_channels * patch_size**2
        self.value = nn.Linear(in_dim, inner_dim, bias=False)
        self.output = nn.Linear(inner_dim, out_dim, bias=False)
        self.query = nn.Linear(in_dim, inner_dim, bias=False) if content else None
        self.key = nn.Linear(in_dim, inner_dim, bias=False) if content else None
        for projection in (self.query, self.key):
            if projection is not None:
                nn.init.zeros_(projection.weight)
        self.relative_bias = nn.Parameter(torch.zeros(num_heads, (2 * half_width + 1) ** 2 + 2))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_channels)) if bias else None)

    def position_bias(self, rows: int, columns: int) -> Tensor:
        """(num_heads, N, N + 1) on a grid of N = rows · columns patches; the last key is the zero slot."""
        patch = torch.arange(rows * columns, device=self.relative_bias.device)
        row, column = patch // columns, patch % columns
        dy, dx = row - row[:, None], column - column[:, None]
        reach, side = self.half_width, 2 * self.half_width + 1
        near = (dy.abs() <= reach) & (dx.abs() <= reach)
        index = torch.where(near, (dy + reach) * side + dx + reach, side**2)
        index = F.pad(index, (0, 1), value=side**2 + 1)
        return self.relative_bias.index_select(1, index.flatten()).unflatten(1, index.shape)

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.num_heads, self.head_dim)).transpose(-3, -2)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H, W); the batch dimension may be missing, as in a Conv2d.

        Raises:
            ValueError: the patch size does not divide H or W.
        """
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"patch size {self.patch_size} does not divide an image of {height}x{width} pixels")
        rows, columns = height // self.patch_size, width // self.patch_size
        tokens = F.pixel_unshuffle(images, self.patch_size).flatten(-2).transpose(-2, -1)  # (B, N, P²C)
        bias = self.position_bias(rows, columns)
        value = self._heads(self.value(tokens))
        if self.query is None or self.key is None:
            attention = bias.softmax(dim=-1)[..., :-1]
            mixed = torch.einsum("hij,...hjd->...hid", attention, value)
        else:
            query, key = self._heads(self.query(tokens)), self._heads(self.key(tokens))
            mixed = attend(query, F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1)), bias)
        patches = self.output(mixed.transpose(-3, -2).flatten(-2)).transpose(-2, -1).unflatten(-1, (rows, columns))
        output = F.pixel_shuffle(patches, self.patch_size)
        return output if self.bias is None else output + self.bias[:, None, None]


def convolution_as_attention(
    conv: nn.Conv2d, patch_size: int, *, sharpness: float = HARD, content: bool = False
) -> PatchAttention:
    """Attention that computes the same as a convolution: head δ attends to the patch at offset δ and applies M_δ.

    The head's logits are +sharpness on that patch, 0 on the zero slot and −sharpness elsewhere. A head is as wide as
    the narrower side of M_δ; the projection on that side is the identity, so that nothing is rounded.

    Args:
        conv: any that `why_not` has nothing against.
        sharpness: HARD is exact; a moderate one leaves gradients to the positions, at an error of about e^−sharpness.
        content: whether the layer has queries and keys. They start at zero, where they change nothing.

    Returns:
        A layer with parameters of its own, of the convolution's dtype, device, training mode and requires_grad.

    Raises:
        ValueError: the convolution cannot be replaced, or the patch size is below 1.
    """
    reason = why_not(conv)
    if reason is not None:
        raise ValueError(f"this convolution cannot be replaced by attention: {reason}")
    with torch.enable_grad():  # a parametrised weight has no requires_grad of its own
        weight, bias = dense_kernel(conv), conv.bias
    maps = patch_maps(weight.detach(), patch_size)
    num_heads, in_dim, out_dim = maps.shape
    head_dim = min(in_dim, out_dim)
    identity = torch.eye(head_dim, dtype=maps.dtype, device=maps.device)
    relative_bias = maps.new_full((num_heads, num_heads + 2), -sharpness)
    relative_bias.fill_diagonal_(sharpness)
    relative_bias[:, -1] = 0.0
    state = {"relative_bias": relative_bias}
    if in_dim <= out_dim:
        state["value.weight"] = identity.repeat(num_heads, 1)
        state["output.weight"] = maps.permute(2, 0, 1).flatten(1).contiguous()
    else:
        state["value.weight"] = maps.transpose(1, 2).flatten(0, 1).contiguous()
        state["output.weight"] = identity.repeat(1, num_heads)
    if bias is not None:
        state["bias"] = bias.detach().clone()
    if content:
        state |= {f"{name}.weight": torch.zeros_like(state["value.weight"]) for name in ("query", "key")}
    reach = half_width(weight.shape[-1], patch_size)
    with torch.device("meta"):  # no random draws for weights that are replaced at once
        layer = PatchAttention(
            conv.in_channels,
            conv.out_channels,
            patch_size,
            num_heads,
            head_dim,
            reach,
            bias=bias is not None,
            content=content,
        )
    layer.load_state_dict(state, assign=True)
    layer.requires_grad_(weight.requires_grad).train(conv.training)
    if layer.bias is not None and bias is not None:
        layer.bias.requires_grad_(bias.requires_grad)
    return layer


def why_not(conv: nn.Conv2d) -> str | None:
    """Why a convolution cannot be replaced by attention over patches, in a few words; None: it can."""
    if getattr(conv.forward, "__func__", None) is not nn.Conv2d.forward or (
        type(conv)._conv_forward is not nn.Conv2d._conv_forward
    ):
        return f"{type(conv).__name__} has a forward of its own"
    if conv._forward_hooks or conv._forward_pre_hooks:
        return "it has forward hooks, which would be lost"
    if any(step != 1 for step in conv.stride):
        return f"stride {conv.stride}"
    if conv.padding_mode != "zeros":
        return f"padding mode {conv.padding_mode!r}"
    padding = (0, 0) if conv.padding == "valid" else conv.padding
    if padding != "same" and any(2 * p != size - 1 for p, size in zip(padding, _effective_size(conv), strict=True)):
        return f"padding {conv.padding!r} is not 'same'"
    return None


def dense_kernel(conv: nn.Conv2d) -> Tensor:
    """(D_out, C, K, K): the square kernel of one group that computes the same with padding "same".

    K is the larger side of the dilated kernel, d(k − 1) + 1. Groups become blocks with zeros between them; taps keep
    their distance from the centre ⌊(K−1)/2⌋.
    """
    height, width = _effective_size(conv)
    size = max(height, width)
    top, left = ((size - 1) // 2 - (side - 1) // 2 for side in (height, width))
    weight = conv.weight
    square = weight.new_zeros(*weight.shape[:2], size, size)
    rows, columns = slice(top, top + height, conv.dilation[0]), slice(left, left + width, conv.dilation[1])
    square[:, :, rows, columns] = weight
    square = square.unflatten(0, (conv.groups, -1))  # (G, D_out/G, C/G, K, K)
    group = torch.arange(conv.groups, device=weight.device)
    dense = weight.new_zeros(*square.shape[:2], *square.shape[:1], *square.shape[2:])
    dense[group, :, group] = square
    return dense.flatten(2, 3).flatten(0, 1)


def _effective_size(conv: nn.Conv2d) -> tuple[int, int]:
    (height, width), (dy, dx) = conv.kernel_size, conv.dilation
    return dy * (height - 1) + 1, dx * (width - 1) + 1
