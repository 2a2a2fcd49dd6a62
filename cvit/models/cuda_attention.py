"""Attention with bias and zero slot on a GPU: by our own kernels where a head is a tile, else by torch's.

Neither takes the zero slot as one more key, since 65 keys cost a kernel as much as 128 and have been silently wrong in
bfloat16 (pytorch issue 191937). Attention over the patches alone gives O and, for each row, L = log Σ exp S. With the
slot's logit z the sum is exp L + exp z, so the output is O' = s O with s = sigmoid(L − z).

Its gradients are the kernel's own. With G the gradient of O', a kernel that is given s G as gradient and O' as output
computes P ∘ (s G Vᵀ − Σ s G ∘ O') = s P ∘ (G Vᵀ − Σ G ∘ O'): the gradient of the logits, since s P are the weights.
That of z is −(1 − s) Σ G ∘ O'.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_ALIGNMENT = 16
"""Rows of the bias begin at multiples of so many numbers, and heads have a width that is a multiple of half of it, as
torch's memory-efficient kernel requires in bfloat16."""


def attention_on_cuda(projected: Tensor, bias: Tensor) -> Tensor:
    """softmax([query keyᵀ / √head_dim, 0] + bias) [value, 0], for every head; 0 is the zero slot.

    Args:
        projected: (B, N, 3, num_heads, head_dim), in a pack (M, B, ...): queries, keys and values; float32 or bfloat16.
        bias: (num_heads, N, N + 1) float32, or (M, ...); the last column is the zero slot's.

    Returns:
        (B, N, num_heads, head_dim), in a pack (M, B, ...).
    """
    if projected.ndim == 5:
        return attention_on_cuda(projected[None], bias[None])[0]
    if _HAS_TRITON:
        from cvit.models.tile_attention import fits_a_tile, tile_attention

        if fits_a_tile(projected):
            return tile_attention(projected, bias)
    return _by_torch(projected, bias)


def _by_torch(projected: Tensor, bias: Tensor) -> Tensor:
    """Members become further heads, as the kernel takes four dimensions. Training and evaluation take the same kernel;
    cuDNN's, torch's choice where no gradient is needed, has had faults with an explicit bias (pytorch issue 196678)."""
    members, num_heads, width = len(projected), *projected.shape[-2:]
    by_head = projected.permute(3, 1, 0, 4, 2, 5).flatten(2, 3)  # (3, B, M · num_heads, N, head_dim)
    padded = F.pad(by_head, (0, -width % (_ALIGNMENT // 2)))
    bias = bias.flatten(0, 1)
    output, *_ = _slot_attention(*padded.unbind(0), bias[..., :-1], bias[..., -1], width**-0.5)
    return output[..., :width].unflatten(1, (members, num_heads)).permute(1, 0, 3, 2, 4)


Saved = tuple[Tensor, Tensor, Tensor, Tensor]
"""An output, the logarithm of the sum of each row without the slot, and the state of a dropout that is not used."""


@torch.library.custom_op("cvit::slot_attention", mutates_args=())
def _slot_attention(
    query: Tensor, key: Tensor, value: Tensor, position: Tensor, slot: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention over (B, H, N, D) with the bias `position` (H, N, N) and a zero slot with the logits `slot` (H, N)."""
    bias = _as_the_kernel_wants(position, query)
    output, *saved = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True, scale=scale)
    return (output * _kept(saved[0], slot)).to(query.dtype).contiguous(), *saved


@torch.library.custom_op("cvit::slot_attention_backward", mutates_args=())
def _slot_backward(
    gradient: Tensor, inputs: list[Tensor], saved: list[Tensor], scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key, value, position and slot."""
    query, key, value, position, slot = inputs
    output, *state = saved
    bias, kept = _as_the_kernel_wants(position, query), _kept(state[0], slot)
    *of_heads, of_bias = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
        (gradient * kept).to(query.dtype), query, key, value, bias, output, *state, 0.0, [True] * 4, scale=scale
    )
    agreement = (gradient.to(slot.dtype) * output.to(slot.dtype)).sum(dim=-1)
    of_slot = -((1 - kept[..., 0]) * agreement).sum(dim=0)
    of_position = of_bias.sum(dim=0, dtype=position.dtype)
    of_query, of_key, of_value = (heads.contiguous() for heads in of_heads)
    return of_query, of_key, of_value, of_position.contiguous(), of_slot


def _as_the_kernel_wants(position: Tensor, query: Tensor) -> Tensor:
    """The bias of every image, (B, H, N, N), of the type of the query, with aligned rows."""
    num_keys = position.shape[-1]
    padded = F.pad(position.to(query.dtype), (0, -num_keys % _ALIGNMENT))
    return padded[..., :num_keys].expand(len(query), -1, -1, -1)


def _kept(log_sum: Tensor, slot: Tensor) -> Tensor:
    """The share of the weights that is not the slot's, (B, H, N, 1). The kernel fills up the rows of its sums."""
    return torch.sigmoid(log_sum[..., : slot.shape[-1]] - slot)[..., None]


@_slot_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, position: Tensor, slot: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bias = _as_the_kernel_wants(position, query)
    _, *saved = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True, scale=scale)
    return torch.empty_like(query, memory_format=torch.contiguous_format), *saved


@_slot_backward.register_fake
def _(
    gradient: Tensor, inputs: list[Tensor], saved: list[Tensor], scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    query, key, value, position, slot = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)
    return query, key, value, position, slot


def _save(ctx: Any, inputs: tuple[Any, ...], output: Saved) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    return *_slot_backward(gradient, list(tensors[:5]), list(tensors[5:]), ctx.scale), None


_slot_attention.register_autograd(_differentiate, setup_context=_save)
