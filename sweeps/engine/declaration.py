"""The declaration of a sweep: a question, its grid, and presets at several scales."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cvit.vocabulary import TRAINING


@dataclass(frozen=True, kw_only=True)
class Range:
    """The range of a parameter in a search; `log` samples it on a logarithmic scale."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search for every init scheme's own best settings, with an equal number of trials each.

    Attributes:
        space: the parameters searched over, by flat name.
        trials: number of trials per init scheme.
        round_size: number of trials per init scheme that are chosen, and run, at a time.
        asha: stop early the trials that fall behind; see `sweeps.engine.execution.pruning`.
    """

    space: Mapping[str, Range]
    trials: int
    round_size: int
    asha: bool = False


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The sweep at one scale.

    Attributes:
        description: one line for `--help`: purpose, hardware, duration.
        grid: the values of every axis but the seed, by flat parameter name.
        seeds: number of seeds, from 0 on; in a search, of the fresh seeds on which the winners are trained, from 1 on.
        settings: flat parameters that all trials share and that differ from the configuration's defaults.
        scheme_settings: flat parameters of single init schemes: the best settings of each on validation images.
        search: the search for these best settings, in a sweep that has one.
    """

    description: str
    grid: Mapping[str, tuple[Any, ...]]
    seeds: int
    settings: Mapping[str, Any]
    scheme_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    search: Search | None = None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A question and the presets that answer it; the first preset is the default. All presets have the same axes,
    but for variants of schemes (`analysis/statistics/variants.py`), such as the unit of the budget.

    Attributes:
        task: the task of its trials, the name of a module in `cvit.tasks`.
        dataset: the default data set, for a task that needs one.
        drop_invalid: leave out impossible combinations, such as more heads than there are offsets, and list them;
            without it they are refused.
    """

    name: str
    question: str
    presets: Mapping[str, Preset]
    task: str = TRAINING
    dataset: str = "digits"
    drop_invalid: bool = False

    @property
    def default_preset(self) -> str:
        return next(iter(self.presets))
