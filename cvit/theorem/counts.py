"""How many heads the theorem counts for a convolution."""


def half_width(kernel_size: int, patch_size: int) -> int:
    """r = ⌈(K − 1) / 2P⌉: how many patches away, along one axis, a K×K kernel still finds pixels.

    Raises:
        ValueError: a size below 1.
    """
    for name, value in (("kernel_size", kernel_size), ("patch_size", patch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    return -((1 - kernel_size) // (2 * patch_size))


def heads_needed(kernel_size: int, patch_size: int) -> int:
    """(2r + 1)²: the heads with which attention over patches computes any K×K convolution (paper, theorem 1).

    Raises:
        ValueError: a size below 1.
    """
    return (2 * half_width(kernel_size, patch_size) + 1) ** 2


def general_kernel_heads(
    kernel_size: int, patch_size: int, in_channels: int, out_channels: int, grid_size: int | None = None
) -> int:
    """The heads that a general K×K kernel needs, the rank of its M_δ: min(s², D_in D_out (2P − 1)²).

    Along one axis s offsets occur, 1 + ⌈⌊(K − 1)/2⌋ / P⌉ + ⌈⌊K/2⌋ / P⌉, none longer than the grid: an even-sized kernel
    may need no neighbour on one side. Per pair of channels the M_δ are Toeplitz in rows and columns, a space of
    (2P − 1)² dimensions. So this is `heads_needed` for a kernel that needs both sides, enough channels and a large
    enough image, and less otherwise; `cvit.theorem.kernel.kernel_heads` counts for a given kernel, which may need still
    fewer.

    Args:
        grid_size: patches along one side of the image; None: any number.

    Raises:
        ValueError: a size below 1.
    """
    half_width(kernel_size, patch_size)  # refuses sizes below 1
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("grid_size", grid_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    sides = [-(-taps // patch_size) for taps in ((kernel_size - 1) // 2, kernel_size // 2)]
    if grid_size is not None:
        sides = [min(side, grid_size - 1) for side in sides]
    return min((1 + sum(sides)) ** 2, in_channels * out_channels * (2 * patch_size - 1) ** 2)
