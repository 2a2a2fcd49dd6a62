"""Offsets between patches on a grid of any number of axes: heads ↔ offsets, and the tables of relative positions.

A grid of patches has one axis for series, two for images, three for volumes or videos; its axes may differ in length.
Patches are numbered with the last axis fastest: row by row on an image.

The tables are tensors; the rest needs no torch, and neither does importing this module: a plan counts operations by it.
"""

import itertools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Grid = tuple[int, ...]
"""Patches along each axis."""
Offset = tuple[int, ...]
"""Steps along each axis, from the attending patch to the patch attended to; (rows, columns) on an image."""


def nearest_offsets(count: int, grid: Grid) -> tuple[Offset, ...]:
    """The `count` offsets on a grid that are nearest to the centre, ring by ring.

    On a large square grid 9 make a 3×3 neighbourhood and 25 a 5×5 one. Within a ring the nearer offsets come first,
    then those further back along the first axis (further up), then along the second (further left), and so on.

    Raises:
        ValueError: the grid has fewer offsets.
    """
    radius = radius_of(count, grid)
    spans = (range(-min(radius, length - 1), min(radius, length - 1) + 1) for length in grid)
    offsets = list(itertools.product(*spans))
    offsets.sort(key=lambda offset: (reach((offset,)), sum(step**2 for step in offset), offset))
    return tuple(offsets[:count])


def radius_of(count: int, grid: Grid) -> int:
    """The largest distance along one axis among the `count` nearest offsets on a grid.

    Raises:
        ValueError: the grid has fewer offsets.
    """
    if count > num_relative_positions(grid):
        raise ValueError(f"{count} offsets do not occur on a grid of {by_axis(grid)} patches")
    radius = 0
    while math.prod(2 * min(radius, length - 1) + 1 for length in grid) < count:
        radius += 1
    return radius


def neighbourhood(grid: Grid) -> tuple[Offset, ...]:
    """The offsets on a grid of at most one step along each axis, nearest first: on images the 9 of a 3×3 square."""
    return nearest_offsets(math.prod(min(3, 2 * length - 1) for length in grid), grid)


def reach(offsets: tuple[Offset, ...]) -> int:
    """Largest distance of an offset along one axis, in patches."""
    return max(abs(step) for offset in offsets for step in offset)


def occurs(offset: Offset, grid: Grid) -> bool:
    """True if some two patches of the grid lie at this offset."""
    return all(abs(step) < length for step, length in zip(offset, grid, strict=True))


def num_relative_positions(grid: Grid) -> int:
    """Number of offsets between two patches of a grid."""
    return math.prod(2 * length - 1 for length in grid)


def relative_position(offset: Offset, grid: Grid) -> int:
    """Index of an offset among the relative positions of a grid, the last axis fastest.

    Raises:
        ValueError: no two patches of the grid lie at this offset.
    """
    if not occurs(offset, grid):
        raise ValueError(f"offset {offset} does not occur on a grid of {by_axis(grid)} patches")
    index = 0
    for step, length in zip(offset, grid, strict=True):
        index = index * (2 * length - 1) + step + length - 1
    return index


def relative_position_index(grid: Grid) -> "Tensor":
    """(N, N) int64 for N patches: the index of the relative position of key patch j, seen from query patch i."""
    import torch

    index = torch.zeros(1, dtype=torch.int64, device="cpu")
    for place, length in zip(patch_places(grid).unbind(dim=1), grid, strict=True):
        index = index * (2 * length - 1) + place[None, :] - place[:, None] + length - 1
    return index


def crosses_windows(grid: Grid, window_size: Grid, window_shift: Grid) -> "Tensor":
    """(N, N) bool for N patches: True for two patches of different windows. Along an axis, windows begin at every
    multiple of their size less the shift; those at a border may be smaller."""
    places = patch_places(grid)
    window = (places + places.new_tensor(window_shift)) // places.new_tensor(window_size)
    return (window[None, :] != window[:, None]).any(dim=-1)


def patch_places(grid: Grid) -> "Tensor":
    """(N, axes) int64: the place of each patch on the grid. It is on the CPU even where a model is made on the device
    `meta`, without weights: integers there are computed by code of torch that imports its compiler, for a second."""
    import torch

    places = torch.meshgrid(*(torch.arange(length, device="cpu") for length in grid), indexing="ij")
    return torch.stack([place.flatten() for place in places], dim=1)


def by_axis(sizes: Grid) -> str:
    """Sizes along the axes as text, such as 3x4."""
    return "x".join(map(str, sizes))
