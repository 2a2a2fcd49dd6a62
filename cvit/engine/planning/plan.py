"""The plan of a sweep: from a request to trials, and from trials to the stages that they need. It never changes."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

from cvit.data.datasets import DatasetInfo
from cvit.engine.declaration import Search, Sweep
from cvit.engine.planning.grids import Cell, product
from cvit.engine.planning.request import Request
from cvit.engine.planning.trials import Study, Trial, fitted_request, study_of
from cvit.parameters import CombinationError, ConfigError
from cvit.stages import Stage

MOST_TRIALS = 100_000
"""The largest number of trials in a plan: the journal and the tracking store of so many take gigabytes
(docs/FAULTS.md, "Scale")."""
FRACTION = "data_fraction"


@dataclass(frozen=True)
class SameImages:
    """Shares of the training images that are the same images: the trials with one of them stand for all."""

    left_out: tuple[float, ...]
    kept: float
    num_images: int


@dataclass(frozen=True)
class Plan:
    """The trials of a sweep, and the stages that they need.

    Attributes:
        dropped: the impossible combinations of the grid, each with the reason; the trials are the rest.
        merged: the shares of the images that are left out, because the same images have another share too.
        search: for a sweep whose later trials depend on the results of earlier ones; see `planning.search`.
    """

    study: Study
    trials: tuple[Trial, ...] = ()
    dropped: tuple[tuple[Cell, str], ...] = ()
    merged: tuple[SameImages, ...] = ()
    search: Search | None = None

    @classmethod
    def make(cls, sweep: Sweep, request: Request, info: DatasetInfo | None) -> Self:
        """The whole plan of a grid, or the plan of a search, which has no trials yet.

        Args:
            info: the data set; None for a task that needs none.

        Raises:
            ConfigError: a combination of values cannot be trained.
        """
        request = fitted_request(sweep, request, info)
        require_feasible(sweep, request)
        study = study_of(sweep, request, info)
        search = sweep.presets[request.preset].search
        if search is not None:
            search = replace(search, trials=request.search_trials or search.trials, asha=request.asha)
            return cls(study, search=search)
        trials: list[Trial] = []
        dropped: list[tuple[Cell, str]] = []
        for cell in product({"seed": study.grid["seed"], **request.grid}):
            try:
                trials.append(study.trial_at(cell))
            except CombinationError as error:
                if not sweep.drop_invalid:
                    raise
                dropped.append((cell, str(error)))
        if not trials:
            raise ConfigError(dropped[0][1])
        kept, merged = _one_per_subset(trials)
        return cls(study, tuple(kept), tuple(dropped), merged)

    def extended(self, more: Iterable[Trial]) -> Self:
        """The plan with more trials."""
        return replace(self, trials=(*self.trials, *more))

    @cached_property
    def stages(self) -> Mapping[str, Stage]:
        """The stages by key, parents before children."""
        return {stage.key: stage for trial in self.trials for stage in trial.stages}

    @cached_property
    def trials_of(self) -> Mapping[str, list[Trial]]:
        """The trials that each stage belongs to."""
        trials_of: dict[str, list[Trial]] = {}
        for trial in self.trials:
            for stage in trial.stages:
                trials_of.setdefault(stage.key, []).append(trial)
        return trials_of

    @property
    def num_trials_to_come(self) -> int:
        """The number of trials by which the later rounds of a search extend the plan."""
        if self.search is None:
            return 0
        per_scheme = self.search.trials + self.search.num_finals + len(self.study.grid["seed"])
        return per_scheme * len(self.study.grid["init_scheme"]) - len(self.trials)

    @property
    def shared(self) -> list[Stage]:
        """The stages that sharing saves: one that n trials share is listed n − 1 times."""
        return [stage for key, trials in self.trials_of.items() for stage in [self.stages[key]] * (len(trials) - 1)]


def require_feasible(sweep: Sweep, request: Request) -> None:
    """Checks the number of trials before any of them is made.

    Raises:
        ConfigError: there are too many.
    """
    search = sweep.presets[request.preset].search
    if search is not None:
        search = replace(search, trials=request.search_trials or search.trials)
    per_place = request.seeds + (0 if search is None else search.trials + search.num_finals)
    num_trials = per_place * math.prod(map(len, request.grid.values()))
    if num_trials > MOST_TRIALS:
        numbers = [f"{len(values):,} of {axis}" for axis, values in request.grid.items()]
        numbers += [f"{request.seeds:,} seeds (seeds is their number, not a seed)"]
        if search is not None:
            numbers += [f"{search.trials:,} search trials", f"{search.num_finals:,} of finalists"]
        limit = f"{num_trials:,} trials are more than {MOST_TRIALS:,}, the most in a sweep"
        raise ConfigError(f"{limit}: {', '.join(numbers)}")


def _one_per_subset(trials: Sequence[Trial]) -> tuple[list[Trial], tuple[SameImages, ...]]:
    """The trials without those that would repeat another one: a class gives at least one image, so that small shares of
    few images are the same images. The largest share is kept, since it is the closest to the number of images."""
    groups: dict[Hashable, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(_place_and_images(trial), []).append(trial)
    kept = {place: max(group, key=lambda trial: trial.cell.get(FRACTION, 0.0)) for place, group in groups.items()}
    merged: dict[tuple[float, int], dict[float, None]] = {}
    for place, group in groups.items():
        images = kept[place].images
        if len(group) > 1 and images is not None:
            others = [trial.cell[FRACTION] for trial in group if trial is not kept[place]]
            merged.setdefault((kept[place].cell[FRACTION], images.train), {}).update(dict.fromkeys(others))
    lines = (SameImages(tuple(others), share, count) for (share, count), others in merged.items())
    return [trial for trial in trials if kept[_place_and_images(trial)] is trial], tuple(lines)


def _place_and_images(trial: Trial) -> Hashable:
    """A value that is equal for trials on the same images that differ in nothing but the share that asks for them."""
    if trial.images is None or FRACTION not in trial.cell:
        return trial.key
    return trial.images.train, *((axis, value) for axis, value in trial.cell.items() if axis != FRACTION)
