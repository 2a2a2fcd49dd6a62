"""Walks the plan within one Tuner run: a stage is suggested once its parent is done."""

from typing import Any

from ray.tune.search import Searcher

from cvit.stages import AnyStage, FitStage
from sweeps.engine.plan import MAX_PACK, Pack, Plan, pack


class PlanSearcher(Searcher):
    """Suggests packs of stages that are ready. `suggest` answers None while every stage left waits for another."""

    def __init__(self, plan: Plan, settings: dict[str, Any]) -> None:
        super().__init__()
        self._plan, self._settings = plan, settings
        self._waiting = {stage.key: stage for stage in plan.todo}
        self._packs: dict[str, Pack] = {}
        self.failed: set[str] = set()

    # Ray's annotation leaves out Searcher.FINISHED, which its documentation asks for.
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._drop_children_of_lost_stages()
        if not self._waiting:
            return Searcher.FINISHED
        ready = [s for s in self._waiting.values() if s.parent is None or s.parent.key in self._plan.results]
        if not ready:
            return None
        chosen = pack(ready, MAX_PACK, _shape)[0]
        for stage in chosen:
            del self._waiting[stage.key]
        self._packs[trial_id] = chosen
        return self._settings | {"pack": chosen}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        for stage in self.pack_of(trial_id):
            if stage.key not in self._plan.results and not self._is_pruned(stage):
                self.failed.add(stage.key)

    def _drop_children_of_lost_stages(self) -> None:
        """A stage whose parent diverged, failed or was pruned has nothing to start from."""
        for stage in list(self._waiting.values()):
            parent = stage.parent.key if stage.parent else None
            result = self._plan.results.get(parent or "")
            is_lost = parent in self.failed or (result is not None and result.diverged_step is not None)
            if is_lost or self._is_pruned(stage):
                del self._waiting[stage.key]

    def _is_pruned(self, stage: AnyStage) -> bool:
        return all(trial.key in self._plan.pruned for trial in self._plan.trials_of[stage.key])

    def pack_of(self, trial_id: str) -> Pack:
        """The stages that a Tune trial trains or trained."""
        return self._packs.get(trial_id, ())

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the state of a sweep is in the storage."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


def _shape(stage: AnyStage) -> tuple[Any, ...]:
    """What must be equal for stages to be trained together."""
    if isinstance(stage, FitStage):
        return (stage.key,)
    return stage.architecture, stage.trial.training.batch_size, stage.steps
