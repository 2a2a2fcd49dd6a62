"""Fits: the configuration and the single stage of a trial of the task `expressivity`.

A trial is an attempt to fit an attention layer to a random convolution; see `cvit.training.fit`.
"""

import dataclasses
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from cvit.config import LARGEST_LEARNING_RATE, Parameter, option, parameters_of, require, require_divisor, require_known
from cvit.stages import stage_key
from cvit.vocabulary import EXPRESSIVITY, FIT


@dataclass(frozen=True, kw_only=True)
class ExpressivityConfig:
    """One attempt to fit an attention layer to a random convolution; see `cvit.training.fit`."""

    kernel_size: int = option("Side of the convolution's kernel, pixels.", 3)
    patch_size: int = option("Side of a patch, pixels; divides the image size.", 1)
    num_heads: int = option("Heads of the attention layer.", 9)
    fit_image_size: int = option("Side of the images that the operators act on, pixels.", 8)
    fit_channels: int = option("Channels in and out; the theorem's count needs their square ≥ kernel_size².", 8)
    fit_steps: int = option("Steps of gradient descent on the attention.", 400)
    fit_learning_rate: float = option("Learning rate of the attention's logits.", 0.2)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("kernel_size", "patch_size", "num_heads", "fit_image_size", "fit_channels", "fit_steps"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require_divisor("patch_size", self.patch_size, self.fit_image_size)
        require(
            0 < self.fit_learning_rate <= LARGEST_LEARNING_RATE,
            "fit_learning_rate",
            self.fit_learning_rate,
            f"must be positive and at most {LARGEST_LEARNING_RATE:g}",
        )
        require(self.seed >= 0, "seed", self.seed, "must be at least 0")

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
