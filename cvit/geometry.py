"""Offsets between patches of a square grid: heads ↔ offsets, and the tables of relative positions."""

import torch
from torch import Tensor

Offset = tuple[int, int]
"""(rows, columns) from the patch that attends to the patch attended to."""


def nearest_offsets(count: int) -> tuple[Offset, ...]:
    """The `count` offsets nearest to the centre, ring by ring: 9 make a 3×3 neighbourhood, 25 a 5×5 one.

    Within a ring the nearer offsets come first, then those further up, then those further left.
    """
    reach = 0
    while (2 * reach + 1) ** 2 < count:
        reach += 1
    span = range(-reach, reach + 1)
    offsets = [(dy, dx) for dy in span for dx in span]
    offsets.sort(key=lambda o: (max(abs(o[0]), abs(o[1])), o[0] ** 2 + o[1] ** 2, o))
    return tuple(offsets[:count])


def reach(offsets: tuple[Offset, ...]) -> int:
    """Largest distance of an offset along one axis, in patches."""
    return max(max(abs(dy), abs(dx)) for dy, dx in offsets)


def num_relative_positions(grid_size: int) -> int:
    """Number of offsets between two patches of a grid of `grid_size` × `grid_size`."""
    return (2 * grid_size - 1) ** 2


def relative_position(offset: Offset, grid_size: int) -> int:
    """Index of an offset among the relative positions of a grid, row by row.

    Raises:
        ValueError: no two patches of the grid are that far apart.
    """
    if reach((offset,)) >= grid_size:
        raise ValueError(f"offset {offset} does not occur on a grid of {grid_size}x{grid_size} patches")
    return (offset[0] + grid_size - 1) * (2 * grid_size - 1) + offset[1] + grid_size - 1


def relative_position_index(grid_size: int) -> Tensor:
    """(N, N) int64: index of the relative position of key patch j seen from query patch i; N = grid_size²."""
    rows, columns = torch.meshgrid(torch.arange(grid_size), torch.arange(grid_size), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    dy = rows[None, :] - rows[:, None] + grid_size - 1
    dx = columns[None, :] - columns[:, None] + grid_size - 1
    return dy * (2 * grid_size - 1) + dx
