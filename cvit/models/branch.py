"""A residual branch of a block: tokens + layer(norm(tokens)), by one fused operator of `cvit.native` where it applies.

It applies on a CPU that has the operators, to float32 and float64, and to layers as this project makes them: a layer of
another type, or with a hook, is computed by torch, which calls it. So is everything where torch's own operators have to
be seen: by a counter of operations, by a compiler, in fake tensors. The results differ by rounding only.

Under bfloat16 autocast the operators round the factors of products to bfloat16; sums, norms, softmax and the tokens
between branches stay float32.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch._C import _len_torch_dispatch_stack
from torch._C._functorch import peek_interpreter_stack

from cvit import native
from cvit.geometry import Grid, Offset, patch_places
from cvit.models.attention import RelativeAttention
from cvit.models.convolution import FactorizedConvolution
from cvit.models.layers import LayerNorm, Linear

M = TypeVar("M", bound=nn.Module)


def add_branch(
    tokens: Tensor, norm: nn.Module, layer: nn.Module, scale: Tensor | None, outputs: list[Tensor] | None = None
) -> Tensor:
    """tokens + scale · layer(norm(tokens)).

    Args:
        tokens: (B, N, embed_dim), in a pack (M, B, N, embed_dim).
        scale: a factor per image, (B,), in a pack (M, B); None stands for ones.
        outputs: if given, scale · layer(norm(tokens)) is appended to it, and torch computes everything.
    """
    if outputs is None and (fused := _operator(norm, layer, tokens)) is not None:
        return fused(tokens, scale)
    output = layer(norm(tokens))
    if scale is not None:
        output = output * scale[..., None, None]
    if outputs is not None:
        outputs.append(output)
    return tokens + output


def _operator(norm: nn.Module, layer: nn.Module, tokens: Tensor) -> Callable[[Tensor, Tensor | None], Tensor] | None:
    """The operator that computes this branch of tokens and scale, or None where torch has to."""
    if not (_applies(tokens) and _is_plain(norm, LayerNorm)):
        return None
    operators = torch.ops.cvit
    norms = (norm.weight, norm.bias, norm.eps)
    halves = torch.is_autocast_enabled("cpu")
    if _is_plain(layer, RelativeAttention):
        query, key, value, output = layer.query, layer.key, layer.value, layer.output
        if all(_is_plain(each, Linear) for each in (query, key, value, output)):
            bias = (layer.relative_bias, layer.get_buffer("_bias_index"))
            weights = (query.weight, key.weight, value.weight, *bias, output.weight, output.bias)
            return lambda tokens, scale: operators.attention_block.default(tokens, *norms, *weights, scale, halves)
    elif _is_plain(layer, FactorizedConvolution):
        if _is_plain(layer.value, Linear) and _is_plain(layer.output, Linear):
            places = shift_places(layer.offsets, layer.grid)
            weights = (layer.value.weight, *places, layer.output.weight, layer.output.bias)
            return lambda tokens, scale: operators.shift_block.default(tokens, *norms, *weights, scale, halves)
    elif _is_plain(layer, nn.Sequential) and len(layer) == 3:
        first, activation, second = layer
        if (
            _is_plain(first, Linear)
            and _is_plain(activation, nn.GELU)
            and activation.approximate == "none"
            and _is_plain(second, Linear)
        ):
            weights = (first.weight, first.bias, second.weight, second.bias)
            return lambda tokens, scale: operators.mlp_block.default(tokens, *norms, *weights, scale, halves)
    return None


@lru_cache(maxsize=64)
def shift_places(offsets: tuple[Offset, ...], grid: Grid) -> tuple[Tensor, Tensor]:
    """Where each head's values come from and where they go to, both (num_heads, N) int64: the number of the patch at
    the head's offset from each patch, and at the opposite one; −1 outside the grid."""
    # Tensors made in inference mode could not be used for training later.
    with torch.inference_mode(False), torch.device("cpu"):
        opposite = tuple(tuple(-step for step in offset) for offset in offsets)
        return _patches_at(offsets, grid), _patches_at(opposite, grid)


def _patches_at(offsets: tuple[Offset, ...], grid: Grid) -> Tensor:
    """(num_heads, N): the number of the patch at an offset from each patch, or −1 outside the grid."""
    numbers = torch.zeros(len(offsets), 1, dtype=torch.int64)
    is_inside = torch.ones_like(numbers, dtype=torch.bool)
    for axis, (place, length) in enumerate(zip(patch_places(grid).unbind(dim=1), grid, strict=True)):
        there = place + torch.tensor([offset[axis] for offset in offsets])[:, None]
        numbers = numbers * length + there
        is_inside = is_inside & (there >= 0) & (there < length)
    return torch.where(is_inside, numbers, -1)


def _applies(tokens: Tensor) -> bool:
    if tokens.device.type != "cpu" or not native.is_available() or torch.compiler.is_compiling():
        return False
    if _len_torch_dispatch_stack() or peek_interpreter_stack() is not None:
        return False
    if torch.is_autocast_enabled("cpu"):
        is_bfloat16 = torch.get_autocast_dtype("cpu") == torch.bfloat16
        return is_bfloat16 and tokens.dtype == torch.float32 and native.has_half_products()
    return tokens.dtype in (torch.float32, torch.float64)


def _is_plain(module: nn.Module, kind: type[M]) -> TypeGuard[M]:
    """True if a module is of this type, not of a subclass, and has no hooks."""
    return type(module) is kind and not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
