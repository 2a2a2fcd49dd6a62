"""The declaration of a sweep: a question, its grid, and presets at several scales."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cvit.engine.scripts import SWEEPS_FOLDER
from cvit.settings import SettingsOfSchemes, read_settings
from cvit.vocabulary import TRAINING

SETTINGS_FOLDER = SWEEPS_FOLDER / "settings"
"""The settings of init schemes that presets have, a file for each kind of data and model."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """The range of a parameter in a search; `log` samples it on a logarithmic scale."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The values of a parameter in a search, of which every trial has one; they have no order."""

    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search for every init scheme's own best settings, with an equal number of trials each.

    The first trial of a scheme has the settings that the preset gives it, so that no search ends below them.

    Attributes:
        space: the parameters searched over, by flat name. A scheme varies those that have an influence on it.
        trials: number of trials per init scheme.
        round_size: number of trials per init scheme that are chosen, and run, at a time.
        finalists: number of best settings per init scheme that are trained again on `finalist_seeds` other seeds, whose
            mean validation accuracy decides; without them, one seed decides.
        asha: stop early the trials of the search that fall behind; see `cvit.engine.execution.pruning`.
    """

    space: Mapping[str, Range | Choice]
    trials: int
    round_size: int
    finalists: int = 0
    finalist_seeds: int = 3
    asha: bool = False

    @property
    def num_finals(self) -> int:
        """The number of trials per init scheme that decide among the finalists."""
        num_finalists = min(self.finalists, self.trials)
        return num_finalists * self.finalist_seeds if num_finalists > 1 else 0

    @property
    def space_text(self) -> str:
        """The space as JSON, for the journal."""
        return json.dumps({name: asdict(within) for name, within in self.space.items()})


def tuned(name: str, schemes: Collection[str]) -> SettingsOfSchemes:
    """The settings of some init schemes in `sweeps/settings/<name>.json`, the result of a search as `sweeps/tuned.py`
    writes it; the first search of the file counts. A scheme that the file does not have keeps the preset's settings.

    Raises:
        ConfigError: there is no such file, or it is none.
    """
    settings = read_settings(SETTINGS_FOLDER / f"{name}.json").searches[0].settings
    return {scheme: settings[scheme] for scheme in schemes if scheme in settings}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The sweep at one scale.

    Attributes:
        description: one line for `--help`: purpose, hardware, duration.
        grid: the values of every axis but the seed, by flat parameter name.
        seeds: number of seeds, from 0 on; in a search, of the fresh seeds on which the winners are trained, from 1 on.
        settings: flat parameters that all trials share and that differ from the configuration's defaults.
        scheme_settings: flat parameters of single init schemes: the best settings of each on validation images; see
            `tuned`.
        fixed: the parameters among them that belong to the question: no file of settings replaces them.
        search: the search for these best settings, in a sweep that has one.
    """

    description: str
    grid: Mapping[str, tuple[Any, ...]]
    seeds: int
    settings: Mapping[str, Any]
    scheme_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fixed: Collection[str] = ()
    search: Search | None = None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A question and the presets that answer it; the first preset is the default. All presets have the same axes,
    but for variants of schemes (`cvit/analysis/statistics/variants.py`), such as the unit of the budget.

    Attributes:
        task: the task of its trials, the name of a module in `cvit.tasks`.
        dataset: the default data set, for a task that needs one.
        further_axes: parameters that become axes where several values of them are given; one value is a setting.
        drop_invalid: leave out impossible combinations, such as more heads than there are offsets, and list them;
            without it they are refused.
    """

    name: str
    question: str
    presets: Mapping[str, Preset]
    task: str = TRAINING
    dataset: str = "digits"
    further_axes: tuple[str, ...] = ()
    drop_invalid: bool = False

    @property
    def default_preset(self) -> str:
        return next(iter(self.presets))
