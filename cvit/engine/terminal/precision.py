"""The arithmetic of a training: `--precision auto` becomes the one that is fastest on this machine and as accurate as
float32, and a plan says so where bfloat16 would be slow."""

from collections.abc import Collection, Mapping
from typing import Any

from cvit.config import Precision
from cvit.engine.execution.forecast import likely_workers_here
from cvit.engine.planning.grids import Grid
from cvit.engine.planning.request import Resources
from cvit.native.library import multiplies_halves, processor_flags
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


def slow_precision(precisions: Collection[Any], device: str, resources: Resources) -> tuple[str, ...]:
    """A line for the plan if bfloat16 is trained on a CPU of this machine that has no instructions for it."""
    flags = processor_flags()  # none where the system does not tell
    if "bfloat16" not in precisions or not flags or "avx512_bf16" in flags:
        return ()
    if likely_workers_here(device, resources).device != "cpu":
        return ()
    return ("precision bfloat16: this processor has no instructions for it; float32 trains about ten times as fast",)


def fastest_precision(device: str) -> Precision:
    """The precision in which this machine trains fastest without a loss of accuracy; docs/PERFORMANCE.md has the
    measurements."""
    if device == "cuda":
        import torch  # takes seconds, which other requests are spared

        has_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if has_bfloat16 else "float32"
    return "bfloat16" if multiplies_halves() else "float32"
