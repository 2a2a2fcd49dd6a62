"""The number of heads that the theorem counts for a convolution."""

import math

Size = int | tuple[int, ...]
"""A size along each axis; an int stands for the same size along all axes."""


def per_axis(size: Size, axes: int) -> tuple[int, ...]:
    """The size along each of the axes.

    Raises:
        ValueError: the number of sizes is not the number of axes.
    """
    sizes = (size,) * axes if isinstance(size, int) else tuple(size)
    if len(sizes) != axes:
        raise ValueError(f"{sizes} has {len(sizes)} sizes for {axes} axes")
    return sizes


def paired_axes(kernel_size: Size, patch_size: Size) -> list[tuple[int, int]]:
    """(taps of the kernel, pixels of a patch) along each axis: as many axes as a tuple has, two for two ints.

    Raises:
        ValueError: the two have different numbers of axes.
    """
    axes = next((len(size) for size in (kernel_size, patch_size) if not isinstance(size, int)), 2)
    return list(zip(per_axis(kernel_size, axes), per_axis(patch_size, axes), strict=True))


def half_width(kernel_size: int, patch_size: int) -> int:
    """r = ⌈(K − 1) / 2P⌉: the number of patches, along one axis and to one side, that a kernel of K taps reaches.

    Raises:
        ValueError: a size is below 1.
    """
    for name, value in (("kernel_size", kernel_size), ("patch_size", patch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    return -((1 - kernel_size) // (2 * patch_size))


def heads_needed(kernel_size: Size, patch_size: Size) -> int:
    """Π (2r + 1) over the axes: the number of heads with which attention over patches computes any convolution (paper,
    theorem 1).

    Two ints are sizes on images, with two axes: `heads_needed(3, 16)` is 9. A tuple has a size per axis:
    `heads_needed((3,), 16)`, for series, is 3, and `heads_needed((3, 3, 3), 16)`, for volumes, is 27.

    Raises:
        ValueError: a size is below 1, or kernel and patch have different numbers of axes.
    """
    return math.prod(2 * half_width(taps, side) + 1 for taps, side in paired_axes(kernel_size, patch_size))


def general_kernel_heads(
    kernel_size: int,
    patch_size: int,
    in_channels: int,
    out_channels: int,
    grid_size: int | None = None,
    axes: int = 2,
) -> int:
    """The number of heads that a general kernel with K taps along each of d axes needs. It is the rank of the maps M_δ:
    min(sᵈ, D_in D_out (2P − 1)ᵈ).

    Along one axis s = 1 + ⌈⌊(K − 1)/2⌋ / P⌉ + ⌈⌊K/2⌋ / P⌉ offsets occur, none longer than the grid: an even-sized
    kernel may need no neighbour on one side. For each pair of channels the M_δ are Toeplitz along each axis, a space of
    (2P − 1)ᵈ dimensions. So this number equals `heads_needed` for a kernel that needs both sides, enough channels and a
    large enough image, and is smaller otherwise. A given kernel may need still fewer: see
    `cvit.theorem.kernel.kernel_heads`.

    Args:
        grid_size: patches along each axis of the image; None for a large image.
        axes: d.

    Raises:
        ValueError: a size is below 1.
    """
    half_width(kernel_size, patch_size)  # raises for sizes below 1
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("grid_size", grid_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    sides = [-(-taps // patch_size) for taps in ((kernel_size - 1) // 2, kernel_size // 2)]
    if grid_size is not None:
        sides = [min(side, grid_size - 1) for side in sides]
    return min((1 + sum(sides)) ** axes, in_channels * out_channels * (2 * patch_size - 1) ** axes)
