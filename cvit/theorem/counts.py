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
