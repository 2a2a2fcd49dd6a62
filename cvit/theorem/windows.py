"""Convolutions by attention in windows, as in a Swin transformer: what one layer loses, and two that lose nothing.

Windows of w patches along each axis of a grid of n; a patch attends to the patches of its own window, and to the zero
slot. Of the n(δ) = Π (n − |δ|)₊ pairs of patches that lie δ apart, n_in(δ) lie in one window: (n/w)ᵈ Π (w − |δ|)₊ if
w divides n and nothing is shifted.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Unpack

import torch
from torch import Tensor, nn

from cvit.geometry import Grid, Offset, by_axis, num_relative_positions, relative_position
from cvit.theorem.convolutions import Causal, Convolution, kernel_of
from cvit.theorem.counts import Options, Size, axes_of, per_axis
from cvit.theorem.kernel import grid_of, map_rows, offsets, patch_maps, shift_norms, spectrum
from cvit.theorem.layer import HARD, PatchAttention, convolution_as_attention


def window_pairs(offsets: Sequence[Offset], grid: Grid, window_size: Size, window_shift: Size = 0) -> Tensor:
    """n_in(δ): the number of pairs of patches of one window that lie δ apart, (number of offsets), float64."""
    lengths = []
    for length, window, shift in _windows_along(grid, window_size, window_shift):
        places = [(place + shift) // window for place in range(length)]
        lengths.append([places.count(number) for number in sorted({*places})])
    pairs = [
        math.prod(
            sum(max(length - abs(step), 0) for length in along) for along, step in zip(lengths, offset, strict=True)
        )
        for offset in offsets
    ]
    return torch.tensor(pairs, dtype=torch.float64)


def window_error(
    weight: Tensor,
    patch_size: Size,
    num_heads: int,
    image_size: Size,
    window_size: Size,
    window_shift: Size = 0,
    **options: Unpack[Options],
) -> float:
    """The least error of one layer of attention in windows, relative to the convolution's norm:

        err² = Σ_δ (n(δ) − n_in(δ)) ‖M_δ‖² + Σ_{h > num_heads} σ_h²

    where σ are the singular values of the rows √n_in(δ) · vec M_δ. The first part is the energy that crosses windows:
    no number of heads helps. `crossing_energy` gives its share. With at least as many heads as offsets the layer
    `window_attention` has this error.

    Proof: pairs of patches in one window and pairs in two are disjoint blocks of the operator. Attention is zero on the
    latter. On the former the convolution is Σ_δ (S_δ ∘ B) ⊗ M_δ, B the windows' mask, whose S_δ ∘ B have disjoint
    supports and norms √n_in(δ): Eckart and Young as in `cvit.theorem.error_bound`. As there, matrices of a softmax are
    not negative and may not reach the bound with fewer heads than offsets. Source: ours.

    Args:
        weight: (D_out, C, K_1, ..., K_d).
        patch_size: in pixels along each axis; an int is the same along all.
        num_heads: heads of the layer.
        image_size: like patch_size.
        window_size: in patches along each axis.
        window_shift: likewise; windows begin at every multiple of their size less the shift.
        options: as `cvit.theorem.counts.Options`.

    Returns:
        0.0 for a kernel of zeros, or where nothing crosses and the heads suffice.

    Raises:
        ValueError: `num_heads` is negative, a window is below 1, or as `cvit.theorem.error_bound`.
    """
    if num_heads < 0:
        raise ValueError(f"num_heads must be at least 0, not {num_heads}")
    rows, pairs, inside = _rows_and_pairs(weight, patch_size, image_size, window_size, window_shift, **options)
    energies = rows.square().sum(dim=1)
    length = weight.shape[0] * weight.shape[1] * math.prod(per_axis(patch_size, weight.ndim - 2)) ** 2
    left_out = spectrum(rows * inside.sqrt()[:, None], length)[num_heads:]
    whole = float(energies @ pairs)
    return math.sqrt(float(energies @ (pairs - inside) + left_out.square().sum()) / whole) if whole else 0.0


def crossing_energy(
    weight: Tensor,
    patch_size: Size,
    image_size: Size,
    window_size: Size,
    window_shift: Size = 0,
    **options: Unpack[Options],
) -> float:
    """The share of a convolution's energy that crosses windows, which one layer loses with any number of heads:

        Σ_δ (n(δ) − n_in(δ)) ‖M_δ‖² / Σ_δ n(δ) ‖M_δ‖²

    It is the square of `window_error` with a head for each offset, and has its arguments.
    """
    rows, pairs, inside = _rows_and_pairs(weight, patch_size, image_size, window_size, window_shift, **options)
    energies = rows.square().sum(dim=1)
    whole = float(energies @ pairs)
    return float(energies @ (pairs - inside)) / whole if whole else 0.0


def window_attention(
    conv: Convolution, patch_size: Size, window_size: Size, window_shift: Size = 0, *, causal: Causal = False
) -> PatchAttention:
    """One layer of attention in windows with a head for each offset: a convolution less what crosses windows.

    A head whose target lies outside its window attends to the zero slot. The error is `window_error`, and no layer of
    attention in these windows has a smaller one.

    Args:
        conv: as in `cvit.theorem.convolution_as_attention`.
        patch_size: in pixels along each axis; an int is the same along all.
        window_size: in patches along each axis.
        window_shift: likewise; windows begin at every multiple of their size less the shift.
        causal: as in `cvit.theorem.convolution_as_attention`.

    Raises:
        ValueError: as there, or a window is below 1.
    """
    layer = convolution_as_attention(conv, patch_size, causal=causal)
    windows = list(_windows_along(layer.patch, window_size, window_shift))
    layer.window_size = tuple(window for _, window, _ in windows)
    layer.window_shift = tuple(shift for _, _, shift in windows)
    return layer


def convolution_as_two_window_layers(
    conv: Convolution, patch_size: Size, window_size: Size, *, causal: Causal = False
) -> nn.Sequential:
    """Attention in windows, then in windows shifted by ⌊w/2⌋, that together compute a convolution exactly.

    It holds for every kernel whose offsets reach at most ⌊w/2⌋ patches, on grids of any size:

        S_δ = Π_axes (inside + across),  inside = S ∘ B along the axis, across = S − S ∘ B

    with the windows' mask B. Along an axis, a pair inside a window is left to layer 1, and one across its border to
    layer 2. So for each choice of the axes that cross and of offsets β along them (0 along the others), layer 1 writes
    into a block of its own, at patch k, the sum of M_δᵀ x_{k+e} over the δ that agree with β where it crosses; e is δ
    along the other axes. Layer 2 has a head for each block, which attends to the patch at β, and adds.

    The block may hold only what crosses: "k − β lies outside my window, along each axis that crosses". That gate is
    linear. Two heads with the values M_δ and −M_δ attend to the first of these patches that is in the window:
    {k + e − β along one axis that crosses, for each of them; then k + e} and {the same, but then the zero slot}. Their
    difference is M_δᵀ x_{k+e} where no such patch is in the window, and 0 elsewhere.

    Proof that layer 2 sees it: two patches across a border of the first windows, at most ⌊w/2⌋ apart, lie within
    ⌊w/2⌋ patches of that border, which is the middle of a shifted window. Source: ours. A Swin transformer has no zero
    slot and no gate, and its windows are shifted cyclically.

    The layers have `cvit.theorem.counts.window_heads` heads, on images with r = 1 41 and 9, and the blocks in between
    are Π (2r + 1) times as wide as the output.

    Args:
        conv: as in `cvit.theorem.convolution_as_attention`.
        patch_size: in pixels along each axis; an int is the same along all.
        window_size: in patches along each axis.
        causal: as in `cvit.theorem.convolution_as_attention`.

    Returns:
        The layers `windows` and `shifted`, with parameters of their own, of the convolution's dtype and device.

    Raises:
        ValueError: as `cvit.theorem.convolution_as_attention`, or an offset is longer than half a window.
    """
    weight, bias, options = kernel_of(conv, causal)
    patch = per_axis(patch_size, weight.ndim - 2)
    axes = axes_of(tuple(weight.shape[2:]), patch, **options)
    window = tuple(size for _, size, _ in _windows_along(patch, window_size, 0))
    reaches = tuple(max(map(abs, axis.offsets)) for axis in axes)
    if any(reach > size // 2 for reach, size in zip(reaches, window, strict=True)):
        raise ValueError(f"offsets of up to {by_axis(reaches)} patches reach further than half a window of {window}")
    out_patch = tuple(axis.out_patch for axis in axes)
    maps = patch_maps(weight.detach(), patch, **options)
    by_offset = dict(zip(offsets(tuple(weight.shape[2:]), patch, **options), maps, strict=True))
    blocks = list(product(*(sorted({0, *axis.offsets}) for axis in axes)))
    heads = [
        (targets, sign * by_offset[offset], number)
        for number, block in enumerate(blocks)
        for offset in by_offset
        for targets, sign in _heads_of(block, offset)
    ]
    _, in_dim, out_dim = maps.shape
    identity = torch.eye(in_dim, dtype=maps.dtype, device=maps.device)
    output = maps.new_zeros(len(blocks), out_dim, len(heads), in_dim)
    for head, (_, map_, number) in enumerate(heads):
        output[number, :, head] = map_.T
    out_channels = weight.shape[0]
    first = PatchAttention(
        weight.shape[1],
        len(blocks) * out_channels,
        patch,
        len(heads),
        in_dim,
        reaches,
        bias=False,
        out_patch=out_patch,
        window_size=window,
    )
    second = PatchAttention(
        len(blocks) * out_channels,
        out_channels,
        out_patch,
        len(blocks),
        out_dim,
        reaches,
        bias=bias is not None,
        window_size=window,
        window_shift=tuple(size // 2 for size in window),
    )
    wide = torch.eye(len(blocks) * out_dim, dtype=maps.dtype, device=maps.device)
    states = (
        {
            "relative_bias": _preferring([targets for targets, _, _ in heads], reaches).to(maps),
            "value.weight": identity.repeat(len(heads), 1),
            "output.weight": output.flatten(2).flatten(0, 1),
        },
        {
            "relative_bias": _preferring([[block] for block in blocks], reaches).to(maps),
            "value.weight": wide,
            "output.weight": wide[:out_dim, :out_dim].repeat(1, len(blocks)),
        },
    )
    if bias is not None:
        states[1]["bias"] = bias.detach().clone()
    for layer, state in zip((first, second), states, strict=True):
        layer.load_state_dict(state, assign=True)
        layer.requires_grad_(weight.requires_grad).train(conv.training)
    return nn.Sequential(OrderedDict(windows=first, shifted=second))


def _heads_of(block: Offset, offset: Offset) -> Iterator[tuple[list[Offset], int]]:
    """The heads of layer 1 that write an offset of the kernel into a block: the patches that they attend to, the first
    of them that is in the window, and the sign of their values."""
    crossing = [axis for axis, step in enumerate(block) if step]
    if any(block[axis] != offset[axis] for axis in crossing):
        return
    inside = tuple(0 if axis in crossing else step for axis, step in enumerate(offset))
    gates = [tuple(-block[a] if a == axis else step for a, step in enumerate(inside)) for axis in crossing]
    yield [*gates, inside], 1
    if crossing:
        yield gates, -1


def _preferring(heads: Sequence[Sequence[Offset]], reaches: tuple[int, ...]) -> Tensor:
    """The relative biases of heads that attend to the first of their targets that is in the window, or else to the zero
    slot, as hard attention."""
    neighbourhood = tuple(reach + 1 for reach in reaches)
    bias = torch.full((len(heads), num_relative_positions(neighbourhood) + 2), -HARD, dtype=torch.float64)
    bias[:, -1] = 0.0
    for head, targets in enumerate(heads):
        for rank, target in enumerate(reversed(targets), start=1):
            bias[head, relative_position(target, neighbourhood)] = rank * HARD
    return bias


def _rows_and_pairs(
    weight: Tensor,
    patch_size: Size,
    image_size: Size,
    window_size: Size,
    window_shift: Size,
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows with the scalar products of the maps, and for each offset the pairs of patches, and those in one window."""
    kernel_size = tuple(weight.shape[2:])
    rows = map_rows(weight, patch_size, **options)
    patch = per_axis(patch_size, len(kernel_size))
    grid, spanned = grid_of(image_size, patch), offsets(kernel_size, patch, **options)
    pairs = shift_norms(spanned, grid).square().round()
    inside = window_pairs(spanned, grid, window_size, window_shift)
    return rows, pairs.to(rows.device), inside.to(rows.device)


def _windows_along(lengths: Grid, window_size: Size, window_shift: Size) -> Iterator[tuple[int, int, int]]:
    """(length, size of the windows, their shift) along each axis.

    Raises:
        ValueError: a window is below 1, a shift below 0, or there are other numbers of axes.
    """
    sizes, shifts = (per_axis(size, len(lengths)) for size in (window_size, window_shift))
    for name, values, least in (("window_size", sizes, 1), ("window_shift", shifts, 0)):
        if min(values) < least:
            raise ValueError(f"{name} must be at least {least}, not {min(values)}")
    yield from zip(lengths, sizes, shifts, strict=True)
