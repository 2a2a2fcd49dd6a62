"""From a request to trials, from trials to stages, from stages to what is left to do."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

from cvit.config import CombinationError, ConfigError
from cvit.data.datasets import DatasetInfo
from cvit.errors import one_line
from cvit.results import StageResult, load_result, read_weights
from cvit.stages import Stage
from cvit.storage import Storage, StorageError
from cvit.vocabulary import STATUS_PRUNED
from sweeps.engine.declaration import Search, Sweep
from sweeps.engine.planning.grids import Cell, product
from sweeps.engine.planning.request import Request
from sweeps.engine.planning.trials import Study, Trial, study_of


@dataclass(frozen=True)
class Plan:
    """The stages that a sweep needs, parents before children, and the results that there already are.

    Attributes:
        make_trial: from a value of every axis to the trial there.
        dropped: combinations of the grid that cannot be, and why; the trials are the rest.
        search: for a sweep whose later trials depend on the results of earlier ones; see `planning.search`.
        pruned: trials of a search that were stopped early, by key, with their last validation accuracy.
        failed: trials that this session gave up, by key, with the last line of the error; they are not finished.
    """

    study: Study
    make_trial: Callable[[Cell], Trial] = field(repr=False)
    trials: tuple[Trial, ...]
    stages: Mapping[str, Stage]
    results: dict[str, StageResult]
    dropped: tuple[tuple[Cell, str], ...] = ()
    search: Search | None = None
    pruned: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, sweep: Sweep, request: Request, info: DatasetInfo | None, storage: Storage) -> Self:
        """The whole plan of a grid; that of a search, which has no trials yet.

        Args:
            info: the data set, for a sweep that trains on one.

        Raises:
            ConfigError: a combination of values cannot be trained.
            StorageError: the storage cannot be read.
        """
        study, make_trial = study_of(sweep, request, info)
        search = sweep.presets[request.preset].search
        if search is not None:
            search = replace(search, trials=request.search_trials or search.trials, asha=request.asha)
            return cls(study, make_trial, (), {}, {}, (), search)
        trials: list[Trial] = []
        dropped: list[tuple[Cell, str]] = []
        for cell in product({"seed": study.cells["seed"], **request.grid}):
            try:
                trials.append(make_trial(cell))
            except CombinationError as error:
                if not sweep.drop_invalid:
                    raise
                dropped.append((cell, str(error)))
        if not trials:
            raise ConfigError(dropped[0][1])
        return cls(study, make_trial, (), {}, {}, tuple(dropped)).extended(trials, storage)

    def extended(self, more: Iterable[Trial], storage: Storage) -> Self:
        """The plan with more trials.

        Raises:
            StorageError: the storage cannot be read.
        """
        trials = (*self.trials, *more)
        stages = {stage.key: stage for trial in trials for stage in trial.stages}
        try:
            results = _usable_results(storage, stages)
        except OSError as error:
            raise StorageError(f"storage {storage.url!r} cannot be read: {one_line(error)}") from error
        return replace(self, trials=trials, stages=stages, results=results)

    @property
    def todo(self) -> list[Stage]:
        """Stages to train: those that unfinished trials need. A child of a diverged stage is not trained."""
        needed = {
            stage.key: stage
            for trial in self.trials
            if self.status(trial) is None
            for stage in trial.stages
            if stage.key not in self.results
        }
        return list(needed.values())

    def status(self, trial: Trial) -> str | None:
        """The status of a finished trial: its last stage's, or that of a stage that diverged before; else None."""
        if trial.key in self.pruned:
            return STATUS_PRUNED
        for stage in trial.stages:
            result = self.results.get(stage.key)
            if result is None:
                return None
            if result.diverged_step is not None:
                return result.status
        return self.results[trial.stages[-1].key].status

    @cached_property
    def trials_of(self) -> Mapping[str, list[Trial]]:
        """The trials that each stage belongs to."""
        found: dict[str, list[Trial]] = {}
        for trial in self.trials:
            for stage in trial.stages:
                found.setdefault(stage.key, []).append(trial)
        return found

    @property
    def shared(self) -> list[Stage]:
        """Stages saved because several trials share them, each as often as it is saved."""
        return [stage for key, trials in self.trials_of.items() for stage in [self.stages[key]] * (len(trials) - 1)]


def _usable_results(storage: Storage, stages: Mapping[str, Stage]) -> dict[str, StageResult]:
    """Results of finished stages. One whose trained weights are missing or altered does not count where a stage that
    is still to be trained starts from them."""
    found = {key: result for key in stages if (result := load_result(storage, key)) is not None}
    starting_points = {s.parent.key for s in stages.values() if s.parent is not None and s.key not in found}
    for key in starting_points & found.keys():
        if found[key].diverged_step is None and read_weights(storage, key) is None:
            del found[key]
    return found
