"""The theorem: how many heads attention over patches needs to compute a convolution, and the layer that computes it.

Importing this package does not import torch; a name that needs torch imports it at its first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cvit.theorem.conversion import convert
    from cvit.theorem.counts import heads_needed
    from cvit.theorem.kernel import error_bound, kernel_heads
    from cvit.theorem.layer import convolution_as_attention

__all__ = ["convert", "convolution_as_attention", "error_bound", "heads_needed", "kernel_heads"]

_MODULES = {
    "convert": "conversion",
    "convolution_as_attention": "layer",
    "error_bound": "kernel",
    "heads_needed": "counts",
    "kernel_heads": "kernel",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
