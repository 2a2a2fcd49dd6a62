"""The init schemes by name: a scheme is a file `cvit/init/<name>.py` and its line in `SCHEMES`.

The file holds a function with the name of the scheme, imported when a model is made; see `cvit.init.registry`. This
table is light, because the command line, the plan and the analysis read it without torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_OF_TWO_PHASES = frozenset(
    {
        *("convolution_fraction", "convolution_learning_rate", "convolution_warmup_fraction"),
        *("transferred_learning_rate_factor", "optimizer_state", "schedule"),
    }
)
"""The parameters that have an influence only where a convolution phase precedes the attention phase."""

_OF_ATTENTION = frozenset({"decay_towards", "attention_blocks", "window_size", "window_shift"})
"""The parameters that have an influence only on an attention phase."""


@dataclass(frozen=True)
class InitScheme:
    """The properties of an init scheme that planning needs.

    Attributes:
        ignores: the parameters that have no influence on the scheme's trials, unless these are hybrids (`ignored`).
            Trials that differ only in them share
            their stages, and a search does not vary them. Those that need a convolution phase, or an attention phase,
            are added where the scheme has none.
        has_convolution_phase: True if a convolutional twin is trained first and the scheme starts from it.
        is_reference: True if the name stands for another model, trained for comparison, rather than for a way to
            initialise the transformer.
        is_twin: True if that other model is the convolutional twin.
        has_two_readings: True if every second step trains the transformer's weights as its convolutional twin.
    """

    name: str
    ignores: frozenset[str] = frozenset()
    has_convolution_phase: bool = False
    is_reference: bool = False
    is_twin: bool = False
    has_two_readings: bool = False

    def __post_init__(self) -> None:
        without = frozenset() if self.has_convolution_phase else _OF_TWO_PHASES
        without |= _OF_ATTENTION if self.is_reference else frozenset()
        without |= (
            {"budget_unit"}
            if not (self.is_reference or self.has_convolution_phase or self.has_two_readings)
            else frozenset()
        )
        object.__setattr__(self, "ignores", self.ignores | without)

    def ignored(self, is_hybrid: bool) -> frozenset[str]:
        """The parameters that have no influence on the scheme's trials if these are hybrids, or if they are not: a
        hybrid has convolutions whatever its scheme, and those of two readings are always factorized."""
        has_form = is_hybrid and not (self.is_reference or self.has_two_readings)
        return self.ignores - {"convolution_form"} if has_form else self.ignores


_START = frozenset({"attention_sharpness", "attention_leak"})
_CONVOLUTION = _START | {"convolution_form"}
_TRANSFORMER = frozenset(
    {
        *("patch_size", "num_heads", "head_dim", "position_encoding", "position_learning_rate_factor"),
        "stochastic_depth",
    }
)

SCHEMES: Mapping[str, InitScheme] = {
    scheme.name: scheme
    for scheme in (
        InitScheme("random", ignores=_CONVOLUTION),
        InitScheme("two_phase", has_convolution_phase=True),
        InitScheme("conv_structured"),
        InitScheme("joint", ignores=frozenset({"convolution_form"}), has_two_readings=True),
        InitScheme("mimetic", ignores=_CONVOLUTION),
        InitScheme("impulse", ignores=frozenset({"convolution_form"})),
        InitScheme("local", ignores=_CONVOLUTION),
        InitScheme("convolution", ignores=_START, is_reference=True, is_twin=True),
        InitScheme("resnet", ignores=_CONVOLUTION | _TRANSFORMER, is_reference=True),
    )
}

REFERENCES = tuple(scheme.name for scheme in SCHEMES.values() if scheme.is_reference)
"""The names of the schemes that are other models."""
