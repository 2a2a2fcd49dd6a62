"""The progress of a sweep through its plan: the results so far, and the stages that are still to be trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

from cvit.engine.planning.plan import Plan
from cvit.engine.planning.trials import Trial
from cvit.errors import one_line
from cvit.results import StageResult, checkpoint_step, load_result, packed, read_part
from cvit.stages import Stage
from cvit.storage import Storage, StorageError
from cvit.tasks import task_named
from cvit.vocabulary import STAGES_FOLDER, STATUS_PRUNED


@dataclass(frozen=True)
class Outcome:
    """The outcome of a stage that was to be trained.

    Attributes:
        kind: `failed` after repeated errors; `left` if it was not reached, for example because its parent diverged.
        error: the last line of the error of a stage that failed.
    """

    kind: Literal["done", "failed", "pruned", "left"]
    error: str = ""


@dataclass
class Progress:
    """A plan, and the state of its trials so far.

    Attributes:
        plan: a search replaces it by one with more trials.
        results: the results of finished stages, by key.
        pruned: trials of a search that were stopped early, by key, with their last validation accuracy.
        failed: trials that this session gave up, by key, with the last line of the error; they are not finished.
        num_ended_here: trials that this session has finished.
        steps: the optimiser steps that the storage keeps of unfinished stages, by key.
    """

    plan: Plan
    results: dict[str, StageResult]
    pruned: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    num_ended_here: int = 0
    steps: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, plan: Plan, storage: Storage) -> Self:
        """The progress that a storage holds.

        Raises:
            StorageError: the storage cannot be read.
        """
        progress = cls(plan, _results_in(storage, plan))
        progress.read_steps(storage)
        return progress

    def grow(self, plan: Plan, storage: Storage) -> None:
        """Continues with a plan that has more trials, some of which the storage may have already.

        Raises:
            StorageError: the storage cannot be read.
        """
        self.plan, self.results = plan, _results_in(storage, plan)
        self.read_steps(storage)

    def read_steps(self, storage: Storage, *, with_results: bool = False) -> None:
        """Reads how many steps the storage keeps of stages that are not finished.

        Args:
            with_results: after a stop, a worker may have written a result that it did not report any more.

        Raises:
            StorageError: the storage cannot be read.
        """
        try:
            begun = set(storage.names(STAGES_FOLDER))
            unfinished = [stage for stage in self.todo if stage.key in begun]
            self.steps = {stage.key: checkpoint_step(storage, stage.key) for stage in unfinished}
            if with_results:
                ended = [stage for stage in unfinished if load_result(storage, stage.key) is not None]
                self.steps |= {stage.key: stage.steps for stage in ended}
        except OSError as error:
            raise _unreadable(storage, error) from error

    def status(self, trial: Trial) -> str | None:
        """The status of a finished trial: that of its last stage, or of an earlier one that diverged; None for an
        unfinished trial."""
        if trial.key in self.pruned:
            return STATUS_PRUNED
        for stage in trial.stages:
            result = self.results.get(stage.key)
            if result is None:
                return None
            if result.diverged_step is not None:
                return result.status
        return self.results[trial.stages[-1].key].status

    @property
    def num_done(self) -> int:
        """The number of trials that are finished."""
        return sum(self.status(trial) is not None for trial in self.plan.trials)

    @property
    def is_finished(self) -> bool:
        return self.num_done == len(self.plan.trials)

    @property
    def todo(self) -> list[Stage]:
        """The stages to train, which unfinished trials need. A child of a diverged stage is not trained."""
        needed = {
            stage.key: stage
            for trial in self.plan.trials
            if self.status(trial) is None
            for stage in trial.stages
            if stage.key not in self.results
        }
        return list(needed.values())

    @property
    def num_steps_to_train(self) -> int:
        """The optimiser steps of the stages to train, without those that the storage keeps."""
        return sum(stage.steps - self.steps.get(stage.key, 0) for stage in self.todo)

    @property
    def num_stages_kept(self) -> int:
        """The number of the plan's stages that are trained to their end."""
        ended = sum(key in self.results for key in self.plan.stages)
        return ended + sum(self.plan.stages[key].steps == steps for key, steps in self.steps.items())

    @property
    def num_steps_kept(self) -> int:
        """The optimiser steps that need not be trained again, of all stages of the plan."""
        ended = sum(stage.steps for key, stage in self.plan.stages.items() if key in self.results)
        return ended + sum(self.steps.values())


def _results_in(storage: Storage, plan: Plan) -> dict[str, StageResult]:
    try:
        return _usable_results(storage, plan.stages)
    except OSError as error:
        raise _unreadable(storage, error) from error


def _unreadable(storage: Storage, error: OSError) -> StorageError:
    return StorageError(f"storage {storage.url!r} cannot be read: {one_line(error)}")


def _usable_results(storage: Storage, stages: Mapping[str, Stage]) -> dict[str, StageResult]:
    """The results of finished stages. A result does not count if a stage that is still to be trained starts from a part
    of it that is missing or altered: the weights, or the moments, which earlier versions did not store."""
    results = {key: packed(result) for key in stages if (result := load_result(storage, key)) is not None}
    starting_points = {
        (stage.parent.key, part)
        for stage in stages.values()
        if stage.parent is not None and stage.key not in results
        for part in task_named(stage.task).starts_from(stage)
    }
    for key, part in starting_points:
        if key in results and results[key].diverged_step is None and read_part(storage, key, part) is None:
            del results[key]
    return results
