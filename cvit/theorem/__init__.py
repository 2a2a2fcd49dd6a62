"""The theorem: how many heads attention over patches needs to compute a convolution, and the layer that computes it.

Importing this package does not import torch; a name that needs torch imports it at its first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cvit.theorem.conversion import Conversion, convert
    from cvit.theorem.counts import (
        general_kernel_heads,
        heads_by_layer,
        heads_needed,
        least_hidden_width,
        maps_of,
        window_heads,
    )
    from cvit.theorem.depth import DeepAttention, axial_error, convolution_as_deep_attention, depth_bounds, depth_ranks
    from cvit.theorem.kernel import error_bound, kernel_heads, offsets, patch_maps, singular_values
    from cvit.theorem.layer import PatchAttention, convolution_as_attention
    from cvit.theorem.windows import (
        convolution_as_two_window_layers,
        crossing_energy,
        window_attention,
        window_error,
        window_pairs,
    )

__all__ = [
    "Conversion",
    "DeepAttention",
    "PatchAttention",
    "axial_error",
    "convert",
    "convolution_as_attention",
    "convolution_as_deep_attention",
    "convolution_as_two_window_layers",
    "crossing_energy",
    "depth_bounds",
    "depth_ranks",
    "error_bound",
    "general_kernel_heads",
    "heads_by_layer",
    "heads_needed",
    "kernel_heads",
    "least_hidden_width",
    "maps_of",
    "offsets",
    "patch_maps",
    "singular_values",
    "window_attention",
    "window_error",
    "window_heads",
    "window_pairs",
]

_MODULES = {
    "Conversion": "conversion",
    "DeepAttention": "depth",
    "PatchAttention": "layer",
    "axial_error": "depth",
    "convert": "conversion",
    "convolution_as_attention": "layer",
    "convolution_as_deep_attention": "depth",
    "convolution_as_two_window_layers": "windows",
    "crossing_energy": "windows",
    "depth_bounds": "depth",
    "depth_ranks": "depth",
    "error_bound": "kernel",
    "general_kernel_heads": "counts",
    "heads_by_layer": "counts",
    "heads_needed": "counts",
    "kernel_heads": "kernel",
    "least_hidden_width": "counts",
    "maps_of": "counts",
    "offsets": "kernel",
    "patch_maps": "kernel",
    "singular_values": "kernel",
    "window_attention": "windows",
    "window_error": "windows",
    "window_heads": "counts",
    "window_pairs": "windows",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
