"""A convolution as linear maps between the patches of an image, one per offset, and the number of independent ones.

A kernel W of shape (D_out, C, K_1, ..., K_d) with "same" zero padding, ⌊(K−1)/2⌋ pixels before and the rest after
along each of d axes, takes the patches x_j of an image to Σ_δ M_δᵀ x_{i+δ}, a sum over the Π (2r+1) offsets δ between
patches. As a matrix over whole images that is Σ_δ S_δ ⊗ M_δ, where the shift S_δ has a 1 for every two patches that lie
δ apart (paper, theorem 1).

Strides, dilations and other paddings (`cvit.theorem.counts.Options`) change which offsets there are and which taps the
M_δ have, and nothing else: with a stride s that divides the patch, M_δ takes P pixels along an axis to P/s, and the
tokens stay on the same grid.

A patch is a vector in the order of `torch.pixel_unshuffle` and `F.unfold`: channel first, index c · Π P + u, where u is
the number of the pixel inside the patch, the last axis fastest: P·row + column on an image.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from cvit.geometry import Grid, Offset
from cvit.theorem.counts import Axis, Options, Size, axes_of, per_axis


def offsets(kernel_size: Size, patch_size: Size, **options: Unpack[Options]) -> tuple[Offset, ...]:
    """The offsets between patches that a kernel spans, Π (2r+1) with padding "same"; the last axis fastest."""
    return tuple(itertools.product(*(axis.offsets for axis in axes_of(kernel_size, patch_size, **options))))


def patch_maps(weight: Tensor, patch_size: Size, **options: Unpack[Options]) -> Tensor:
    """The maps M_δ[(c,u), (o,v)] = W[o, c, k], k = (u + Pδ − s·v + before) / D along each axis, with 0 where that is no
    tap of the kernel. For stride s and dilation D of 1, before is ⌊(K−1)/2⌋.

    Here u and v are the pixel's places in the patch attended to and in the attending one.

    Args:
        weight: (D_out, C, K_1, ..., K_d).
        patch_size: pixels along each axis; an int is the same along all.
        options: as `cvit.theorem.counts.Options`.

    Returns:
        (number of offsets, Π P · C, Π (P/s) · D_out), in the order of `offsets`.

    Raises:
        ValueError: `weight` has no axes, or as `cvit.theorem.counts.axes_of`.
    """
    along = axes_of(_kernel_size(weight), patch_size, **options)
    axes = len(along)
    taps = []
    for number, axis in enumerate(along):
        # Each of the axes (δ, u, v) occurs `axes` times: all the δ, then all the u, then all the v.
        shape = tuple(slice(None) if place % axes == number else None for place in range(3 * axes))
        taps.append(_taps(axis, weight.device)[shape])
    padded = F.pad(weight, (0, 1) * axes)  # so that the tap K, which stands for all taps outside the kernel, is zero
    maps = padded[:, :, *taps]  # (o, c, δ..., u..., v...)
    maps = maps.flatten(2 + 2 * axes).flatten(2 + axes, 1 + 2 * axes).flatten(2, 1 + axes)  # (o, c, δ, u, v)
    return maps.permute(2, 1, 3, 0, 4).flatten(3).flatten(1, 2)


def _taps(axis: Axis, device: torch.device) -> Tensor:
    """(offsets, P, P/s): along one axis, the tap that connects pixel u of the patch attended to with pixel v of the
    attending one; K if the kernel has no such tap."""
    offset = torch.tensor(axis.offsets, device=device)[:, None, None]
    source = torch.arange(axis.patch, device=device)[:, None]
    target = torch.arange(axis.out_patch, device=device)
    place = source + axis.patch * offset - axis.stride * target + axis.before[0]
    tap = place.div(axis.dilation, rounding_mode="floor")
    return torch.where((place % axis.dilation == 0) & (tap >= 0) & (tap < axis.taps), tap, axis.taps)


def shift_norms(offsets: Sequence[Offset], grid: Grid) -> Tensor:
    """‖S_δ‖_F = √Π (n − |δ|)₊ on a grid of n patches along each axis: (number of offsets), float64.

    Its square is the number of pairs of patches that lie δ apart.
    """
    pairs = [
        math.prod(max(length - abs(step), 0) for length, step in zip(grid, offset, strict=True)) for offset in offsets
    ]
    return torch.tensor(pairs, dtype=torch.float64).sqrt()


def singular_values(
    weight: Tensor, patch_size: Size, image_size: Size | None = None, **options: Unpack[Options]
) -> Tensor:
    """The singular values of the matrix with the rows ‖S_δ‖_F · vec(M_δ), which is the convolution rearranged.

    The S_δ have disjoint supports, so S_δ / ‖S_δ‖_F are orthonormal and these are the singular values of the whole
    operator Σ_δ S_δ ⊗ M_δ after the rearrangement that makes each A ⊗ B the rank-one matrix vec(A) vec(B)ᵀ
    (Van Loan and Pitsianis, "Approximation with Kronecker products", 1993).

    Args:
        weight: (D_out, C, K_1, ..., K_d).
        patch_size: in pixels along each axis; an int is the same along all.
        image_size: likewise; None: an image so large that its borders do not count, ‖S_δ‖_F = 1.
        options: as `cvit.theorem.counts.Options`.

    Returns:
        (number of offsets) float64, descending. Values at rounding level, as in `torch.linalg.matrix_rank`, are 0.

    Raises:
        ValueError: `weight` has no axes, or the patch size is below 1, does not divide the image or has another number
            of axes; or as `cvit.theorem.counts.axes_of`.
    """
    patch = per_axis(patch_size, len(_kernel_size(weight)))
    rows = map_rows(weight, patch, **options)
    if image_size is not None:
        spanned = offsets(_kernel_size(weight), patch, **options)
        rows = rows * shift_norms(spanned, grid_of(image_size, patch)).to(rows.device)[:, None]
    return spectrum(rows, weight.shape[0] * weight.shape[1] * math.prod(patch) ** 2)


def map_rows(weight: Tensor, patch_size: Size, **options: Unpack[Options]) -> Tensor:
    """(offsets, n) float64: rows with the scalar products of the vec(M_δ), and no longer than Π K patches of pixels.

    With W = QR over the pairs of channels, Q's columns orthonormal, R has the same scalar products as W and Π K rows or
    fewer: nothing here grows with the channels.
    """
    kernel_size = _kernel_size(weight)
    triangle = torch.linalg.qr(weight.detach().double().flatten(2).flatten(0, 1), mode="r").R
    return patch_maps(triangle.unflatten(1, (1, *kernel_size)), patch_size, **options).flatten(1)


def spectrum(rows: Tensor, length: int) -> Tensor:
    """The singular values of a matrix, one for each row, descending; values at rounding level, as in
    `torch.linalg.matrix_rank` for rows of the given length, are 0."""
    values = torch.linalg.svdvals(rows)
    values = F.pad(values, (0, len(rows) - len(values)))
    rounding = max(len(rows), length) * torch.finfo(values.dtype).eps * values[0]
    return torch.where(values > rounding, values, 0.0)


def error_bound(
    weight: Tensor, patch_size: Size, num_heads: int, image_size: Size, **options: Unpack[Options]
) -> float:
    """√(Σ_{h > num_heads} σ_h²) / ‖convolution‖_F: the least error of attention with so many heads.

    Attention that does not depend on the content is Σ_h A_h ⊗ W_h. No sum of `num_heads` such terms is closer to the
    convolution, as a linear operator in Frobenius norm, than this (Eckart and Young on the rearranged operator),
    whatever the matrices A_h. Matrices of a softmax are not negative, so they may not reach the bound.

    Args:
        weight: (D_out, C, K_1, ..., K_d).
        patch_size: in pixels along each axis; an int is the same along all.
        num_heads: the number of terms.
        image_size: like patch_size.
        options: as `cvit.theorem.counts.Options`.

    Returns:
        The error relative to the convolution's norm: 0.0 from `kernel_heads` heads on, and for a kernel of zeros.

    Raises:
        ValueError: `num_heads` is negative, or as for `singular_values`.
    """
    if num_heads < 0:
        raise ValueError(f"num_heads must be at least 0, not {num_heads}")
    values = singular_values(weight, patch_size, image_size, **options)
    left_out = values[num_heads:].norm()
    return float(left_out / values.norm()) if left_out > 0 else 0.0


def kernel_heads(weight: Tensor, patch_size: Size, image_size: Size | None = None, **options: Unpack[Options]) -> int:
    """The number of heads that a given kernel needs: the number of linearly independent M_δ (paper, theorem 2).

    Fewer never suffice. A softmax is never negative. It comes arbitrarily close with this number of heads, or with one
    more if Σ_δ c_δ M_δ = 0 for some coefficients c_δ > 0, as for an edge filter: R + 1 vectors, not R, span a space of
    R dimensions with coefficients ≥ 0. If the M_δ ≠ 0 are independent, as for a general kernel, one head each is exact.

    Args:
        weight: (D_out, C, K_1, ..., K_d).
        patch_size: in pixels along each axis; an int is the same along all.
        image_size: like patch_size. On a small image some offsets do not occur; None stands for a large one.
        options: as `cvit.theorem.counts.Options`.

    Raises:
        ValueError: as for `singular_values`.
    """
    return int(singular_values(weight, patch_size, image_size, **options).count_nonzero())


def grid_of(image_size: Size, patch: tuple[int, ...]) -> Grid:
    """Patches along each axis of an image.

    Raises:
        ValueError: the patch does not divide the image, or has another number of axes.
    """
    shape = per_axis(image_size, len(patch))
    for pixels, side in zip(shape, patch, strict=True):
        if pixels % side:
            raise ValueError(f"patch size {side} does not divide the image size {pixels}")
    return tuple(pixels // side for pixels, side in zip(shape, patch, strict=True))


def _kernel_size(weight: Tensor) -> tuple[int, ...]:
    if weight.ndim < 3:
        raise ValueError(f"a kernel must have the shape (D_out, C, K_1, ..., K_d), not {tuple(weight.shape)}")
    return tuple(weight.shape[2:])
