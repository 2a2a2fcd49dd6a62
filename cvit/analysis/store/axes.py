"""The axes of studies: the names of parameters that sweeps vary, and the order of their values."""

from collections.abc import Iterable, Mapping
from typing import Any

SEED = "seed"
SCHEME = "init_scheme"
FRACTION = "data_fraction"
NUM_HEADS = "num_heads"
INNER_DIM = "inner_dim"
PATCH_SIZE = "patch_size"
KERNEL_SIZE = "kernel_size"
DEPTH = "depth"
WARMUP = "warmup_fraction"
LEARNING_RATE = "learning_rate"
MIN_STEPS = "min_steps"
BUDGET_UNIT = "budget_unit"
TRANSFERRED_FACTOR = "transferred_learning_rate_factor"
SCHEDULE = "schedule"
ATTENTION_BLOCKS = "attention_blocks"

SHOWN_AS = "shown_as"
"""The column of a trial with the name of its scheme in tables, where variants are part of it."""


def axes_of(cells: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of the axes of a study's grids, without `seed`."""
    return [name for name in next(iter(cells), {}) if name != SEED]


def sort_key(value: Any) -> tuple[int, float, str]:
    """A key that sorts the values of an axis: None (not set) first, then numbers, then texts."""
    if value is None:
        return (0, 0, "")
    if isinstance(value, int | float):
        return (1, value, "")
    return (2, 0, str(value))
