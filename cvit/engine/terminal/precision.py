"""Replaces `--precision auto` by the arithmetic that is fastest on this machine and as accurate as float32."""

from collections.abc import Mapping
from typing import Any

from cvit.config import Precision
from cvit.engine.execution.forecast import likely_workers_here
from cvit.engine.planning.grids import Grid
from cvit.engine.planning.request import Resources
from cvit.native.library import multiplies_halves
from cvit.parameters import AUTO

PRECISION = "precision"


def with_precision(
    given: Mapping[str, Any], grid: Grid, device: str, resources: Resources
) -> tuple[dict[str, Any], Grid, tuple[str, ...]]:
    """The options and axes with a precision in place of `auto`, and a line about it for the plan.

    The value becomes part of keys, so that results of another machine are never taken for those of this one. This
    machine decides for a cluster too, whose nodes may differ.
    """
    if given.get(PRECISION) != AUTO and AUTO not in grid.get(PRECISION, ()):
        return dict(given), grid, ()
    chosen = fastest_precision(likely_workers_here(device, resources).device)
    values = tuple(dict.fromkeys(chosen if value == AUTO else value for value in grid.get(PRECISION, ())))
    options = {name: chosen if name == PRECISION and value == AUTO else value for name, value in given.items()}
    return options, {**grid, PRECISION: values} if values else grid, (f"precision auto: {chosen} on this machine",)


def fastest_precision(device: str) -> Precision:
    """The precision in which this machine trains fastest without a loss of accuracy; docs/PERFORMANCE.md has the
    measurements."""
    if device == "cuda":
        import torch  # takes seconds, which other requests are spared

        has_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if has_bfloat16 else "float32"
    return "bfloat16" if multiplies_halves() else "float32"
