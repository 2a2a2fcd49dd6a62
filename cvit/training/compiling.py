"""torch.compile for the steps of a pack on a GPU: a block of the transformer and the optimiser, each compiled once for
its architecture, number of members, batch size and precision. The CUDA graph of a step then contains what was compiled.

Most of an unfused step reads and writes what the operation before it wrote: norms, GELU, additions, AdamW. On CPUs this
gains nothing. Where it is not possible, for want of Triton or of a compiler, steps run as they are; the log says so
once. TORCH_COMPILE_DISABLE=1 switches it off. Results differ by rounding only.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any

from cvit.cost import compile_seconds
from cvit.errors import short_line
from cvit.models.vit import VisionTransformer, run_block
from cvit.training.optimizer import AdamW
from cvit.training.readings import Reading

_MOST_KINDS = 256
"""The most kinds of blocks that a process keeps compiled; torch would stop at 8, and fail."""
_BACKEND = "inductor"
LONGEST_REASON = 200

_log = logging.getLogger(__name__)
_compiled_kinds: set[Hashable] = set()
_is_possible = True


def pays(kind: Hashable, seconds_left: float) -> bool:
    """True if steps of this kind should be compiled, given the time that the rest of the pack takes as it is."""
    if not _is_possible:
        return False
    return kind in _compiled_kinds or compile_seconds(seconds_left, "cuda") > 0


def compile_steps(readings: Sequence[Reading], optimizer: AdamW) -> Callable[..., None]:
    """Compiles the blocks of transformers in their place, and returns the compiled step of the optimiser. Compilation
    itself takes place in the first step, which may raise any exception."""
    for reading in readings:
        if isinstance(reading.model, VisionTransformer):
            reading.model.training_block = _compiled_block()
    return _compiled(optimizer.step)


def succeeded(kind: Hashable) -> None:
    """Steps of this kind have been compiled: another pack has them at once."""
    _compiled_kinds.add(kind)


def undo(readings: Sequence[Reading], error: Exception) -> None:
    """Puts the blocks back after a failed compilation, and gives it up for this process."""
    global _is_possible
    for reading in readings:
        if isinstance(reading.model, VisionTransformer):
            reading.model.training_block = run_block
    if _is_possible:
        _log.warning("steps are not compiled (%s); they take longer", short_line(error, LONGEST_REASON))
    _is_possible = False


@lru_cache(maxsize=1)
def _compiled_block() -> Any:
    return _compiled(run_block)


def _compiled(function: Callable[..., Any]) -> Any:
    import torch._dynamo  # takes a second, which steps on a CPU save

    torch._dynamo.config.recompile_limit = _MOST_KINDS
    return torch.compile(function, dynamic=False, fullgraph=True, backend=_BACKEND)
