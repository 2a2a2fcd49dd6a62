"""Fits: the configuration and the single stage of a trial of the task `expressivity`.

A trial is an attempt to fit an attention layer to a random convolution; see `cvit.training.fit`.
"""

import dataclasses
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from cvit.config import LARGEST_LEARNING_RATE
from cvit.parameters import (
    CombinationError,
    Parameter,
    option,
    parameters_of,
    require,
    require_at_least_1_or_auto,
    require_divisor,
    require_known,
)
from cvit.stages import stage_key
from cvit.theorem.counts import Options, Padding, axes_of
from cvit.vocabulary import EXPRESSIVITY, FIT

MOST_DIMENSIONS = 3
MOST_TOKENS = 1024
"""The most patches of a fit, whose attention has a number for each pair of them and each head."""


@dataclass(frozen=True, kw_only=True)
class ExpressivityConfig:
    """One attempt to fit an attention layer to a random convolution; see `cvit.training.fit`."""

    kernel_size: int = option("Side of the convolution's kernel, pixels.", 3)
    patch_size: int = option("Side of a patch, pixels; divides the image size.", 1)
    num_heads: int = option("Heads of the attention layer.", 9)
    dimensions: int = option("Axes: 1 for series, 2 for images, 3 for volumes.", 2)
    stride: int = option("Stride of the convolution, pixels; divides the patch size.", 1)
    dilation: int = option("Pixels from one tap of the kernel to the next.", 1)
    causal: bool = option("The kernel reaches back only, along all axes.", False)
    window_size: int | None = option(
        "Side of the windows to which attention is confined, patches; auto: no windows.", None
    )
    fit_image_size: int = option("Side of the images that the operators act on, pixels.", 8)
    fit_channels: int = option("Channels in and out; the theorem's count needs their square ≥ kernel_size².", 8)
    fit_steps: int = option("Steps of gradient descent on the attention.", 400)
    fit_learning_rate: float = option("Learning rate of the attention's logits.", 0.2)
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = ("kernel_size", "patch_size", "num_heads", "stride", "dilation")
        for name in (*sizes, "fit_image_size", "fit_channels", "fit_steps"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require(
            1 <= self.dimensions <= MOST_DIMENSIONS,
            "dimensions",
            self.dimensions,
            f"must be between 1 and {MOST_DIMENSIONS}",
        )
        require_at_least_1_or_auto("window_size", self.window_size)
        require_divisor("patch_size", self.patch_size, self.fit_image_size)
        require(
            0 < self.fit_learning_rate <= LARGEST_LEARNING_RATE,
            "fit_learning_rate",
            self.fit_learning_rate,
            f"must be positive and at most {LARGEST_LEARNING_RATE:g}",
        )
        require(self.seed >= 0, "seed", self.seed, "must be at least 0")
        if self.patch_size % self.stride:
            raise CombinationError(f"stride {self.stride} must divide the patch size {self.patch_size}")
        tokens = self.grid_size**self.dimensions
        if tokens > MOST_TOKENS:
            raise CombinationError(
                f"fit_image_size {self.fit_image_size} gives {tokens} patches of {self.patch_size} pixels in "
                f"{self.dimensions} dimensions: at most {MOST_TOKENS} are fitted"
            )
        reach = max(
            abs(offset)
            for axis in axes_of(self.kernel_shape, self.patch_size, **self.options)
            for offset in axis.offsets
        )
        if self.dilation > 1 and reach >= self.grid_size:
            raise CombinationError(
                f"dilation {self.dilation} joins patches {reach} apart, which an image of {self.fit_image_size} pixels "
                f"does not have: it takes a fit_image_size of at least {(reach + 1) * self.patch_size}"
            )

    @property
    def grid_size(self) -> int:
        """The patches along each axis."""
        return self.fit_image_size // self.patch_size

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """The taps along each axis."""
        return (self.kernel_size,) * self.dimensions

    @property
    def options(self) -> Options:
        """The options of the convolution."""
        padding: Padding = "causal" if self.causal else "same"
        return {"stride": self.stride, "dilation": self.dilation, "padding": padding}

    def flat(self) -> dict[str, Any]:
        """Every field, by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> "ExpressivityConfig":
        """The inverse of `flat`; names that are missing keep their defaults.

        Raises:
            ConfigError: a name is unknown or a value invalid.
        """
        require_known(flat, PARAMETERS)
        return cls(**flat)


class FitConfig(Protocol):
    """The configuration of a fit, a frozen dataclass with a `seed`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def fit_steps(self) -> int:
        """Steps of gradient descent."""
        ...

    def flat(self) -> dict[str, Any]:
        """Every field, by name."""
        ...


FitConfigType = TypeVar("FitConfigType", bound=FitConfig)


@dataclass(frozen=True)
class SingleStage(Generic[FitConfigType]):
    """The single stage of a fit. The stage of a task is a subclass with the task's name and parameters."""

    trial: FitConfigType
    task: ClassVar[str]
    parameters: ClassVar[Mapping[str, Parameter]]
    phase: str = FIT
    parent: None = None

    @property
    def key(self) -> str:
        """The stage key, 24 hexadecimal digits."""
        return self._key

    @cached_property
    def _key(self) -> str:
        return stage_key(self.task, self.trial.flat(), self.parameters)

    @property
    def shape(self) -> Hashable:
        """A shape of its own for each fit, because fits are not packed."""
        return (self.key,)

    @property
    def cost_kind(self) -> Hashable:
        """The configuration without the seed."""
        return dataclasses.replace(self.trial, seed=0)

    @property
    def report_interval(self) -> int:
        """All steps, because a fit reports only at its end."""
        return self.steps

    @property
    def steps(self) -> int:
        return self.trial.fit_steps

    @property
    def last_step(self) -> int:
        return self.steps


PARAMETERS: Mapping[str, Parameter] = parameters_of({"fit": ExpressivityConfig})
"""Every flat parameter of a fit, by name."""


class FitStage(SingleStage[ExpressivityConfig]):
    """The single stage of an expressivity trial."""

    task: ClassVar[str] = EXPRESSIVITY
    parameters: ClassVar[Mapping[str, Parameter]] = PARAMETERS
