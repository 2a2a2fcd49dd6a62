"""Attention with bias and zero slot for NVIDIA GPUs, as two Triton kernels: one for the output, one for all gradients.

A head of one image is a single tile of a multiprocessor: N ≤ LARGEST_GRID patches. So the weights never leave it, the
zero slot is a term of the softmax's sum instead of one more key (65 keys cost a general kernel as much as 128), and the
gradient of the bias is summed over images where it arises. No sum depends on the order in which programs run.

Equations, for one head: S = Q Kᵀ / √D + B, with B (N, N); z (N,) the logits of the zero slot, whose key and value are
0; L = log(Σ exp S + exp z) along a row, P = exp(S − L), O = P V. With G the gradient of O: dV = Pᵀ G,
dS = P ∘ (G Vᵀ − Σ (G ∘ O)), dz = −exp(z − L) Σ (G ∘ O), dQ = dS K / √D, dK = dSᵀ Q / √D, dB = Σ dS over images.
"""
# pyright: reportArgumentType=false, reportCallIssue=false
# Triton compiles the kernels: their arguments are no Python values, and sizes need not be of its type `constexpr`.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

LARGEST_GRID = 64
"""The most patches: the weights of a head of 64 × 64 fill the registers of 4 warps."""
LARGEST_HEAD = 64
"""The widest head."""
_PROGRAMS = 1056
"""Programs in all, about: 8 on each of an H100's 132 multiprocessors. Each takes several images of one head, whose bias
it reads once."""


def fits_a_tile(projected: Tensor) -> bool:
    """True if the kernels serve projections (..., N, 3, num_heads, head_dim) of this size and type."""
    tokens, _, _, width = projected.shape[-4:]
    return tokens <= LARGEST_GRID and width <= LARGEST_HEAD and projected.dtype != torch.float64


def tile_attention(projected: Tensor, bias: Tensor) -> Tensor:
    """softmax([query keyᵀ / √head_dim, 0] + bias) [value, 0], for every head; 0 is the zero slot.

    Args:
        projected: (M, B, N, 3, num_heads, head_dim), queries, keys and values side by side, as one projection makes
            them; float32, or bfloat16 with sums in float32.
        bias: (M, num_heads, N, N + 1); the last column is the zero slot's.

    Returns:
        (M, B, N, num_heads, head_dim), of the type of `projected`.
    """
    output, _ = _forward(projected.contiguous(), bias.float().contiguous())
    return output


# As operators, the kernels are one call each for torch.compile, which need not look into them.


@torch.library.custom_op("cvit::tile_attention", mutates_args=())
def _forward(projected: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the logarithm of each row's sum, (M, B, num_heads, N) float32."""
    output, normaliser = _blank_output(projected, bias)
    grid, sizes = _launch(projected)
    _output_kernel[grid](projected, bias, output, normaliser, **sizes)
    return output, normaliser


@_forward.register_fake
def _blank_output(projected: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    members, images, tokens, _, num_heads, width = projected.shape
    output = projected.new_empty(members, images, tokens, num_heads, width)
    return output, projected.new_empty(members, images, num_heads, tokens, dtype=torch.float32)


@torch.library.custom_op("cvit::tile_attention_backward", mutates_args=())
def _backward(
    projected: Tensor, bias: Tensor, output: Tensor, normaliser: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of `projected` and `bias`."""
    grid, sizes = _launch(projected)
    of_projected = torch.empty_like(projected)
    of_bias = bias.new_empty(grid[1], *bias.shape)  # a part per group of images
    _gradient_kernel[grid](projected, bias, output, normaliser, gradient, of_projected, of_bias, **sizes)
    return of_projected, of_bias.sum(dim=0)


@_backward.register_fake
def _(projected: Tensor, bias: Tensor, output: Tensor, normaliser: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(projected), torch.empty_like(bias)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    return _backward(*ctx.saved_tensors, gradient.contiguous())


_forward.register_autograd(_differentiate, setup_context=_save)


@register_flop_formula(torch.ops.cvit.tile_attention)
def _forward_flops(projected: torch.Size, *others: Any, **options: Any) -> int:
    """Operations of the two products."""
    members, images, tokens, _, num_heads, width = projected
    return 2 * 2 * members * images * num_heads * tokens**2 * width


@register_flop_formula(torch.ops.cvit.tile_attention_backward)
def _backward_flops(projected: torch.Size, *others: Any, **options: Any) -> int:
    """Operations of the five products, as torch counts those of its own attention: the weights are computed again."""
    return 5 * _forward_flops(projected) // 2


def _launch(projected: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid of programs, (heads of all members, groups of images), and the sizes that a kernel is compiled for."""
    members, images, tokens, _, num_heads, width = projected.shape
    of_program = max(1, members * num_heads * images // _PROGRAMS)
    sizes = {
        "IMAGES": images,
        "TOKENS": tokens,
        "HEADS": num_heads,
        "WIDTH": width,
        "SCALE": width**-0.5,
        "OF_PROGRAM": of_program,
        "TILE": max(16, triton.next_power_of_2(tokens)),
        "TILE_WIDTH": max(16, triton.next_power_of_2(width)),
        "num_warps": 4,
    }
    return (members * num_heads, triton.cdiv(images, of_program)), sizes


@triton.jit
def _output_kernel(
    projected,
    bias,
    output,
    normaliser,
    IMAGES: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    SCALE: tl.constexpr,
    OF_PROGRAM: tl.constexpr,
    TILE: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
):
    head_of_member, group = tl.program_id(0), tl.program_id(1)
    member, head = head_of_member // HEADS, head_of_member % HEADS
    n, d = tl.arange(0, TILE), tl.arange(0, TILE_WIDTH)
    is_token, is_weight = n < TOKENS, (n[:, None] < TOKENS) & (n[None, :] < TOKENS)
    is_entry = (n[:, None] < TOKENS) & (d[None, :] < WIDTH)
    row = (head_of_member * TOKENS + n) * (TOKENS + 1)
    position = tl.load(bias + row[:, None] + n[None, :], mask=is_weight, other=float("-inf"))
    slot = tl.load(bias + row + TOKENS, mask=is_token, other=0.0)
    for image in range(group * OF_PROGRAM, min((group + 1) * OF_PROGRAM, IMAGES)):
        token = (member * IMAGES + image) * TOKENS + n
        place = (token[:, None] * HEADS + head) * WIDTH + d[None, :]
        of_three = (token[:, None] * 3 * HEADS + head) * WIDTH + d[None, :]
        q = tl.load(projected + of_three, mask=is_entry, other=0.0)
        k = tl.load(projected + of_three + HEADS * WIDTH, mask=is_entry, other=0.0)
        v = tl.load(projected + of_three + 2 * HEADS * WIDTH, mask=is_entry, other=0.0)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * SCALE + position
        largest = tl.maximum(tl.max(logits, axis=1), slot)
        weights = tl.exp(logits - largest[:, None])
        total = tl.sum(weights, axis=1) + tl.exp(slot - largest)
        mixed = tl.dot(weights.to(v.dtype), v, input_precision="ieee") / total[:, None]
        tl.store(output + place, mixed.to(v.dtype), mask=is_entry)
        row_of_image = ((member * IMAGES + image) * HEADS + head) * TOKENS + n
        tl.store(normaliser + row_of_image, largest + tl.log(total), mask=is_token)


@triton.jit
def _gradient_kernel(
    projected,
    bias,
    output,
    normaliser,
    gradient,
    of_projected,
    of_bias,
    IMAGES: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    SCALE: tl.constexpr,
    OF_PROGRAM: tl.constexpr,
    TILE: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
):
    head_of_member, group = tl.program_id(0), tl.program_id(1)
    member, head = head_of_member // HEADS, head_of_member % HEADS
    n, d = tl.arange(0, TILE), tl.arange(0, TILE_WIDTH)
    is_token, is_weight = n < TOKENS, (n[:, None] < TOKENS) & (n[None, :] < TOKENS)
    is_entry = (n[:, None] < TOKENS) & (d[None, :] < WIDTH)
    row = (head_of_member * TOKENS + n) * (TOKENS + 1)
    position = tl.load(bias + row[:, None] + n[None, :], mask=is_weight, other=float("-inf"))
    slot = tl.load(bias + row + TOKENS, mask=is_token, other=0.0)
    of_position = tl.zeros((TILE, TILE), dtype=tl.float32)
    of_slot = tl.zeros((TILE,), dtype=tl.float32)
    for image in range(group * OF_PROGRAM, min((group + 1) * OF_PROGRAM, IMAGES)):
        token = (member * IMAGES + image) * TOKENS + n
        place = (token[:, None] * HEADS + head) * WIDTH + d[None, :]
        of_three = (token[:, None] * 3 * HEADS + head) * WIDTH + d[None, :]
        q = tl.load(projected + of_three, mask=is_entry, other=0.0)
        k = tl.load(projected + of_three + HEADS * WIDTH, mask=is_entry, other=0.0)
        v = tl.load(projected + of_three + 2 * HEADS * WIDTH, mask=is_entry, other=0.0)
        o = tl.load(output + place, mask=is_entry, other=0.0)
        g = tl.load(gradient + place, mask=is_entry, other=0.0)
        row_of_image = ((member * IMAGES + image) * HEADS + head) * TOKENS + n
        normalised_by = tl.load(normaliser + row_of_image, mask=is_token, other=0.0)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * SCALE + position
        weights = tl.exp(logits - normalised_by[:, None])
        change = tl.sum(g.to(tl.float32) * o.to(tl.float32), axis=1)
        of_logits = weights * (tl.dot(g, tl.trans(v), input_precision="ieee") - change[:, None])
        of_position += of_logits
        of_slot -= tl.exp(slot - normalised_by) * change
        of_v = tl.dot(tl.trans(weights.to(g.dtype)), g, input_precision="ieee")
        of_q = tl.dot(of_logits.to(k.dtype), k, input_precision="ieee") * SCALE
        of_k = tl.dot(tl.trans(of_logits.to(q.dtype)), q, input_precision="ieee") * SCALE
        tl.store(of_projected + of_three, of_q.to(q.dtype), mask=is_entry)
        tl.store(of_projected + of_three + HEADS * WIDTH, of_k.to(k.dtype), mask=is_entry)
        tl.store(of_projected + of_three + 2 * HEADS * WIDTH, of_v.to(v.dtype), mask=is_entry)
    part = group * tl.num_programs(0) * TOKENS * (TOKENS + 1) + row
    tl.store(of_bias + part[:, None] + n[None, :], of_position, mask=is_weight)
    tl.store(of_bias + part + TOKENS, of_slot, mask=is_token)
