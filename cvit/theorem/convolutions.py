"""The kernel of a convolution module and its options as numbers, or the reason why attention cannot replace it."""

from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The modules that attention can replace."""
Causal = bool | tuple[bool, ...]
"""True for a kernel that sees its own pixel and those before it, along all axes or for each."""


class KernelOptions(TypedDict):
    """`cvit.theorem.counts.Options` as numbers, one for each axis."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]


def kernel_of(conv: Convolution, causal: Causal = False) -> tuple[Tensor, Tensor | None, KernelOptions]:
    """The kernel of a convolution without groups, its bias, and its options.

    Args:
        causal: the axes along which the kernel sees its own pixel and those before it, whatever the module's padding.

    Raises:
        ValueError: the convolution cannot be replaced by attention.
    """
    reason = reason_not_convertible(conv, causal=causal)
    if reason is not None:
        raise ValueError(f"this convolution cannot be replaced by attention: {reason}")
    with torch.enable_grad():  # a parametrised weight is computed: it requires a gradient only if computed with grad
        weight, bias = _ungrouped(conv, conv.weight), conv.bias
    stride, dilation = (tuple(int(size) for size in sizes) for sizes in (conv.stride, conv.dilation))
    return weight, bias, {"stride": stride, "dilation": dilation, "padding": _zeros_before(conv, causal)}


def reason_not_convertible(conv: nn.Module, *, causal: Causal = False) -> str | None:
    """The reason why a module cannot be replaced by attention over patches, of any size; None if it can.

    A convolution gives n/s outputs from n inputs along an axis, for every n that its stride divides, if its padding is
    D(K − 1) + 1 − s to D(K − 1) zeros in all. Along causal axes its own padding does not count.
    """
    kind = next((kind for kind in CONVOLUTIONS if isinstance(conv, kind)), None)
    if kind is None or not isinstance(conv, CONVOLUTIONS):
        return f"{type(conv).__name__} is not a {' or '.join(kind.__name__ for kind in CONVOLUTIONS)}"
    if getattr(conv.forward, "__func__", None) is not kind.forward or (
        type(conv)._conv_forward is not kind._conv_forward
    ):
        return f"{type(conv).__name__} has a forward of its own"
    if conv._forward_hooks or conv._forward_pre_hooks:
        return "it has forward hooks, which would be lost"
    if conv._backward_hooks or conv._backward_pre_hooks:
        return "it has backward hooks, which would be lost"
    if conv.padding_mode != "zeros":
        return f"padding mode {conv.padding_mode!r}"
    if conv.padding == "same":
        return None
    padding = (0,) * len(conv.kernel_size) if conv.padding == "valid" else conv.padding
    looks_back = _per_axis_flags(causal, len(conv.kernel_size))
    for before, size, step, ignored in zip(padding, _effective_size(conv), conv.stride, looks_back, strict=True):
        if not ignored and not size - step <= 2 * int(before) <= size - 1:
            strided = "" if max(conv.stride) == 1 else f" for stride {conv.stride}"
            return f"padding {conv.padding!r} is not 'same'{strided}"
    return None


def _zeros_before(conv: Convolution, causal: Causal) -> tuple[int, ...]:
    """The zeros that stand before the first pixel along each axis."""
    reaches = [size - 1 for size in _effective_size(conv)]
    if isinstance(conv.padding, str):
        own = tuple(reach // 2 if conv.padding == "same" else 0 for reach in reaches)
    else:
        own = tuple(int(zeros) for zeros in conv.padding)
    looks_back = _per_axis_flags(causal, len(reaches))
    return tuple(reach if past else before for reach, before, past in zip(reaches, own, looks_back, strict=True))


def _per_axis_flags(causal: Causal, axes: int) -> tuple[bool, ...]:
    flags = (causal,) * axes if isinstance(causal, bool) else causal
    if len(flags) != axes:
        raise ValueError(f"causal has {len(flags)} values for {axes} axes")
    return flags


def dense_kernel(conv: Convolution) -> Tensor:
    """The kernel (D_out, C, K, ..., K) of an equal convolution that has one group, no dilation, padding "same" and the
    same length along all axes.

    K is the longest side of the dilated kernel, d(k − 1) + 1. Groups become blocks with zeros between them; taps keep
    their distance from the centre ⌊(K−1)/2⌋.
    """
    sides = _effective_size(conv)
    size = max(sides)
    starts = [(size - 1) // 2 - (side - 1) // 2 for side in sides]
    along_axes = zip(starts, sides, conv.dilation, strict=True)
    taps = [slice(start, start + side, dilation) for start, side, dilation in along_axes]
    cube = conv.weight.new_zeros(*conv.weight.shape[:2], *(size,) * len(sides))
    cube[:, :, *taps] = conv.weight
    return _ungrouped(conv, cube)


def _ungrouped(conv: Convolution, weight: Tensor) -> Tensor:
    """(D_out, C/groups, ...) → (D_out, C, ...): groups become blocks with zeros between them."""
    if conv.groups == 1:
        return weight
    grouped = weight.unflatten(0, (conv.groups, -1))  # (G, D_out/G, C/G, ...)
    group = torch.arange(conv.groups, device=weight.device)
    dense = weight.new_zeros(*grouped.shape[:2], *grouped.shape[:1], *grouped.shape[2:])
    dense[group, :, group] = grouped
    return dense.flatten(2, 3).flatten(0, 1)


def _effective_size(conv: _ConvNd) -> tuple[int, ...]:
    """The sides of the dilated kernel."""
    return tuple(step * (taps - 1) + 1 for taps, step in zip(conv.kernel_size, conv.dilation, strict=True))
