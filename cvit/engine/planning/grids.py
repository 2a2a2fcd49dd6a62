"""Grids of trials: products of the axes' values, and cells merged back into grids."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Cell = Mapping[str, Any]
"""A place in a grid: one value of every axis, seed included."""
Grid = Mapping[str, tuple[Any, ...]]
"""The values of every axis, seed included."""


def product(grid: Grid) -> Iterator[dict[str, Any]]:
    """The cells of a grid; the first axis varies slowest."""
    return (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))


def as_grids(cells: Iterable[Cell]) -> tuple[Grid, ...]:
    """Grids whose union is these cells, merged axis by axis; a full grid gives itself back."""
    grids = [{axis: (value,) for axis, value in cell.items()} for cell in cells]
    for axis in reversed(grids[0] if grids else {}):
        merged: dict[tuple[Any, ...], dict[str, tuple[Any, ...]]] = {}
        for grid in grids:
            others = tuple(values for name, values in grid.items() if name != axis)
            union = merged.setdefault(others, grid | {axis: ()})
            union[axis] = tuple(dict.fromkeys((*union[axis], *grid[axis])))
        grids = list(merged.values())
    return tuple(grids)
