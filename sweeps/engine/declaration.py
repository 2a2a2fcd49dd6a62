"""What a sweep script declares: a question, its grid, and presets of it at several scales."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cvit.config import Task


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The sweep at one scale.

    Attributes:
        description: one line for `--help`: purpose, hardware, duration.
        grid: the values of every axis but the seed, by flat parameter name.
        seeds: number of seeds, from 0 on.
        settings: flat parameters that all trials share, where they differ from the configuration's defaults.
        scheme_settings: flat parameters of single init schemes: each scheme's own best on validation.
    """

    description: str
    grid: Mapping[str, tuple[Any, ...]]
    seeds: int
    settings: Mapping[str, Any]
    scheme_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A question and the presets that answer it; the first preset is the default. All presets have the same axes.

    Attributes:
        task: what its trials do: `training` on a data set, or `expressivity`, a fit that needs none.
        dataset: the default data set of a training.
    """

    name: str
    question: str
    presets: Mapping[str, Preset]
    task: Task = "training"
    dataset: str = "digits"

    @property
    def default_preset(self) -> str:
        return next(iter(self.presets))
