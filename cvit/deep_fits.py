"""The configuration and the single stage of a trial of the task `depth`: a fit of several layers of attention.

A trial is an attempt to fit layers to a random convolution; see `cvit.training.deep_fit`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from cvit.config import LARGEST_LEARNING_RATE
from cvit.fits import SingleStage
from cvit.parameters import (
    CombinationError,
    Parameter,
    option,
    parameters_of,
    require,
    require_choice,
    require_divisor,
    require_known,
)
from cvit.theorem.counts import Options, Padding, heads_needed, maps_of
from cvit.vocabulary import DEPTH

MOST_TOKENS = 256
MOST_TERMS = 128
"""The largest numbers of tokens and of products of heads in a fit, whose least squares have a row for each pair of
tokens and a column for each product."""
MOST_LAYERS = MOST_TERMS.bit_length() - 1
MOST_DIMENSIONS = 3


@dataclass(frozen=True, kw_only=True)
class DepthConfig:
    """One attempt to fit layers of attention to a random convolution; see `cvit.training.deep_fit`."""

    kernel_size: int = option("Taps of the convolution's kernel along each axis, pixels.", 9)
    patch_size: int = option("Side of a patch, pixels; divides the image size.", 1)
    dimensions: int = option("Axes of the images: 1 for series, 2 for images, 3 for volumes.", 1)
    padding: Padding = option("Zeros before the first pixel along each axis: all (causal) or half (same).", "causal")
    depth: int = option("Layers of attention, with a skip connection around each.", 2)
    num_heads: int = option("Heads of each layer.", 2)
    fit_image_size: int = option("Side of the images that the operators act on, pixels.", 32)
    fit_channels: int = option("Channels in and out; a general kernel has at most their square of maps on pixels.", 8)
    fit_steps: int = option("Steps of gradient descent on the attention.", 600)
    fit_learning_rate: float = option("Learning rate of the attention's logits.", 0.2)
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = ("kernel_size", "patch_size", "depth", "num_heads", "fit_image_size", "fit_channels", "fit_steps")
        for name in sizes:
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require(
            1 <= self.dimensions <= MOST_DIMENSIONS,
            "dimensions",
            self.dimensions,
            f"must be between 1 and {MOST_DIMENSIONS}",
        )
        require_choice(self, "padding", Padding)
        require_divisor("patch_size", self.patch_size, self.fit_image_size)
        require(
            0 < self.fit_learning_rate <= LARGEST_LEARNING_RATE,
            "fit_learning_rate",
            self.fit_learning_rate,
            f"must be positive and at most {LARGEST_LEARNING_RATE:g}",
        )
        require(self.seed >= 0, "seed", self.seed, "must be at least 0")
        tokens = (self.fit_image_size // self.patch_size) ** self.dimensions
        if tokens > MOST_TOKENS:
            raise CombinationError(
                f"fit_image_size {self.fit_image_size} gives {tokens} tokens of {self.patch_size} pixels along each of "
                f"{self.dimensions} axes: at most {MOST_TOKENS} are fitted, with a fit_image_size of "
                f"{self.patch_size * _root(MOST_TOKENS, self.dimensions)} or less"
            )
        require(self.depth <= MOST_LAYERS, "depth", self.depth, f"must be at most {MOST_LAYERS}")
        if self.terms > MOST_TERMS:  # without the number of heads, so that a plan lists a depth's combinations together
            raise CombinationError(
                f"depth {self.depth} takes a num_heads of at most {_root(MOST_TERMS, self.depth) - 1}: there may be "
                f"up to {MOST_TERMS} products of heads, (num_heads + 1)^depth"
            )

    @property
    def terms(self) -> int:
        """Π (H_l + 1), the number of maps that the layers can have between them."""
        return maps_of((self.num_heads,) * self.depth)

    @property
    def maps(self) -> int:
        """R, the number of maps between patches that the theorem counts for the convolution."""
        return heads_needed(self.kernel_shape, self.patch_size, **self.options)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """The taps along each axis."""
        return (self.kernel_size,) * self.dimensions

    @property
    def options(self) -> Options:
        """The convolution's options."""
        return {"padding": self.padding}

    def flat(self) -> dict[str, Any]:
        """Every field, by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> "DepthConfig":
        """The inverse of `flat`; names that are missing keep their defaults.

        Raises:
            ConfigError: a name is unknown or a value invalid.
        """
        require_known(flat, PARAMETERS)
        return cls(**flat)


PARAMETERS: Mapping[str, Parameter] = parameters_of({"fit": DepthConfig})
"""Every flat parameter of a fit of several layers, by name."""


class DeepFitStage(SingleStage[DepthConfig]):
    """The single stage of a trial of the task `depth`."""

    task: ClassVar[str] = DEPTH
    parameters: ClassVar[Mapping[str, Parameter]] = PARAMETERS


def _root(number: int, degree: int) -> int:
    """The largest integer whose power of this degree is at most a number."""
    return next(base for base in range(number, 0, -1) if base**degree <= number)
