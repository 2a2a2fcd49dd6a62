"""The init schemes by name: a scheme is a file `cvit/init/<name>.py` and its line in `SCHEMES`.

The file holds a function with the name of the scheme, imported when a model is made; see `cvit.init.registry`. This
table is light, because the command line, the plan and the analysis read it without torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class InitScheme:
    """The properties of an init scheme that planning needs.

    Attributes:
        ignores: the parameters that have no influence on the scheme's trials. Trials that differ only in them share
            their stages, and a search does not vary them.
        has_convolution_phase: True if a convolutional twin is trained first and the scheme starts from it.
        is_reference: True if the name stands for another model, trained for comparison, rather than for a way to
            initialise the transformer.
        is_twin: True if that other model is the convolutional twin.
    """

    name: str
    ignores: frozenset[str] = frozenset()
    has_convolution_phase: bool = False
    is_reference: bool = False
    is_twin: bool = False


_CONVOLUTION = frozenset({"attention_sharpness", "convolution_form"})
_TRANSFORMER = frozenset({"patch_size", "num_heads", "head_dim", "position_encoding", "stochastic_depth"})

SCHEMES: Mapping[str, InitScheme] = {
    scheme.name: scheme
    for scheme in (
        InitScheme("random", ignores=_CONVOLUTION),
        InitScheme("two_phase", has_convolution_phase=True),
        InitScheme("conv_structured"),
        InitScheme("mimetic", ignores=_CONVOLUTION),
        InitScheme("impulse", ignores=frozenset({"convolution_form"})),
        InitScheme("local", ignores=_CONVOLUTION),
        InitScheme("convolution", ignores=frozenset({"attention_sharpness"}), is_reference=True, is_twin=True),
        InitScheme("resnet", ignores=_CONVOLUTION | _TRANSFORMER, is_reference=True),
    )
}

REFERENCES = tuple(scheme.name for scheme in SCHEMES.values() if scheme.is_reference)
"""The names of the schemes that are other models."""
