from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cvit.engine.planning.grids import as_grids, product

AXES = {"a": [1, 2, 3], "b": ["x", "y"], "seed": [0, 1]}
cells = st.fixed_dictionaries({axis: st.sampled_from(values) for axis, values in AXES.items()})


def identity(cell: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(cell[axis] for axis in AXES)


@given(st.lists(cells, unique_by=identity))
def test_the_grids_of_some_cells_are_those_cells_each_once(some: list[dict[str, Any]]) -> None:
    found = [identity(cell) for grid in as_grids(some) for cell in product(grid)]
    assert sorted(found) == sorted(map(identity, some))


def test_a_full_grid_gives_itself_back() -> None:
    grid = {axis: tuple(values) for axis, values in AXES.items()}
    assert as_grids(product(grid)) == (grid,)


def test_what_is_left_of_a_grid_is_few_grids() -> None:
    """Where a small token grid allows fewer heads, two grids are left."""
    left = [c for c in product({"p": (2, 4), "h": (4, 9, 16), "seed": (0, 1)}) if c["p"] == 2 or c["h"] <= 9]
    assert as_grids(left) == ({"p": (2,), "h": (4, 9, 16), "seed": (0, 1)}, {"p": (4,), "h": (4, 9), "seed": (0, 1)})
