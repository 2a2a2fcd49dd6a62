"""A convolution seen from the patches of an image: one linear map per offset, and how many of them are independent.

A kernel W of shape (D_out, C, K, K) with "same" zero padding, ⌊(K−1)/2⌋ pixels before and the rest after, takes the
patches x_j of an image to Σ_δ M_δᵀ x_{i+δ}, a sum over the (2r+1)² offsets δ between patches. As a matrix over whole
images that is Σ_δ S_δ ⊗ M_δ, where the shift S_δ has a 1 for every two patches that lie δ apart (paper, theorem 1).

A patch is a vector in the order of `torch.pixel_unshuffle` and `F.unfold`: channel first, index c·P² + u, where
u = P·row + column is the pixel's position inside the patch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cvit.geometry import Offset
from cvit.theorem.counts import half_width


def offsets(kernel_size: int, patch_size: int) -> tuple[Offset, ...]:
    """The (2r+1)² offsets between patches that a kernel spans, row by row."""
    reach = half_width(kernel_size, patch_size)
    span = range(-reach, reach + 1)
    return tuple((dy, dx) for dy in span for dx in span)


def patch_maps(weight: Tensor, patch_size: int) -> Tensor:
    """M_δ[(c,u), (o,v)] = W[o, c, u + Pδ − v + ⌊(K−1)/2⌋] where that lies inside the kernel, 0 elsewhere.

    Here u and v are the pixel's (row, column) in the patch attended to and in the attending one.

    Args:
        weight: (D_out, C, K, K).

    Returns:
        (number of offsets, P²C, P²D_out), in the order of `offsets`.

    Raises:
        ValueError: the kernel is not square, or the patch size is below 1.
    """
    kernel_size = _kernel_size(weight)
    reach = half_width(kernel_size, patch_size)
    pixel = torch.arange(patch_size, device=weight.device)
    offset = torch.arange(-reach, reach + 1, device=weight.device)
    tap = pixel[:, None] + patch_size * offset[:, None, None] - pixel + (kernel_size - 1) // 2  # (δ, u, v)
    tap = torch.where((tap >= 0) & (tap < kernel_size), tap, kernel_size)
    padded = F.pad(weight, (0, 1, 0, 1))  # so the tap K, which stands for any outside the kernel, is zero
    maps = padded[:, :, tap[:, None, :, None, :, None], tap[None, :, None, :, None, :]]  # (o, c, δ, δ, u, u, v, v)
    maps = maps.permute(2, 3, 1, 4, 5, 0, 6, 7)
    area = patch_size**2
    return maps.reshape(len(offset) ** 2, weight.shape[1] * area, weight.shape[0] * area)


def shift_norms(offsets: Sequence[Offset], rows: int, columns: int) -> Tensor:
    """‖S_δ‖_F = √((rows − |dy|)₊ (columns − |dx|)₊) on a grid of rows × columns patches: (number of offsets), float64.

    The square of it counts the pairs of patches that lie δ apart.
    """
    pairs = [max(rows - abs(dy), 0) * max(columns - abs(dx), 0) for dy, dx in offsets]
    return torch.tensor(pairs, dtype=torch.float64).sqrt()


def singular_values(weight: Tensor, patch_size: int, image_size: int | None = None) -> Tensor:
    """Singular values of the matrix with the rows ‖S_δ‖_F · vec(M_δ), which is the convolution rearranged.

    The S_δ have disjoint supports, so S_δ / ‖S_δ‖_F are orthonormal and these are the singular values of the whole
    operator Σ_δ S_δ ⊗ M_δ after the rearrangement that makes each A ⊗ B the rank-one matrix vec(A) vec(B)ᵀ
    (Van Loan and Pitsianis, "Approximation with Kronecker products", 1993).

    Args:
        weight: (D_out, C, K, K).
        image_size: in pixels, of a square image. None: one so large that its borders do not count, ‖S_δ‖_F = 1.

    Returns:
        (number of offsets) float64, descending. What is only rounding, as `torch.linalg.matrix_rank` defines it, is 0.

    Raises:
        ValueError: the kernel is not square, or the patch size is below 1 or does not divide the image.
    """
    kernel_size = _kernel_size(weight)
    spanned = offsets(kernel_size, patch_size)
    out_channels, in_channels = weight.shape[:2]
    # With W = QR over the pairs of channels, Q's columns orthonormal, R has the same singular values and K² rows or
    # fewer: nothing here grows with the channels.
    triangle = torch.linalg.qr(weight.detach().double().flatten(2).flatten(0, 1), mode="r").R
    rows = patch_maps(triangle.unflatten(1, (1, kernel_size, kernel_size)), patch_size).flatten(1)
    if image_size is not None:
        if image_size % patch_size:
            raise ValueError(f"patch size {patch_size} does not divide the image size {image_size}")
        side = image_size // patch_size
        rows = rows * shift_norms(spanned, side, side).to(rows.device)[:, None]
    values = torch.linalg.svdvals(rows)
    values = F.pad(values, (0, len(spanned) - len(values)))
    size = max(len(spanned), in_channels * out_channels * patch_size**4)
    rounding = size * torch.finfo(values.dtype).eps * values[0]
    return torch.where(values > rounding, values, 0.0)


def error_bound(weight: Tensor, patch_size: int, num_heads: int, image_size: int) -> float:
    """√(Σ_{h > num_heads} σ_h²) / ‖convolution‖_F: how close attention with so few heads can come at best.

    Attention that doesn't depend on the content is Σ_h A_h ⊗ W_h. No sum of `num_heads` such terms is closer to the
    convolution, as a linear operator in Frobenius norm, than this (Eckart and Young on the rearranged operator),
    whatever the matrices A_h: for those of a softmax, which are not negative, the bound may be out of reach.

    Args:
        weight: (D_out, C, K, K).
        image_size: in pixels, of a square image.

    Returns:
        The error relative to the convolution's norm: 0.0 from `kernel_heads` heads on, and for a kernel of zeros.

    Raises:
        ValueError: as `singular_values`, or `num_heads` is negative.
    """
    if num_heads < 0:
        raise ValueError(f"num_heads must be at least 0, not {num_heads}")
    values = singular_values(weight, patch_size, image_size)
    left_out = values[num_heads:].norm()
    return float(left_out / values.norm()) if left_out > 0 else 0.0


def kernel_heads(weight: Tensor, patch_size: int, image_size: int | None = None) -> int:
    """The heads that this very kernel needs: how many of its M_δ are linearly independent (paper, theorem 2).

    Fewer never suffice. A softmax is never negative; it comes as close as one likes with this number of heads, or with
    one more where Σ_δ c_δ M_δ = 0 for some coefficients c_δ > 0, as for an edge filter: R + 1 vectors, not R, span a
    space of R dimensions with coefficients ≥ 0. Where the M_δ ≠ 0 are independent, as a general kernel's are, one head
    each is exact.

    Args:
        weight: (D_out, C, K, K).
        image_size: in pixels, of a square image; on a small one some offsets do not occur. None: a large one.

    Raises:
        ValueError: as `singular_values`.
    """
    return int(singular_values(weight, patch_size, image_size).count_nonzero())


def _kernel_size(weight: Tensor) -> int:
    if weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"a kernel must have the shape (D_out, C, K, K), not {tuple(weight.shape)}")
    return weight.shape[3]
