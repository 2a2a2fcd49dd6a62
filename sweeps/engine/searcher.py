"""Walks the plan within one Tuner run: stages are suggested in packs, each once its parent is done."""

from collections.abc import Mapping
from typing import Any

from ray.tune.search import Searcher

from cvit.stages import AnyStage
from sweeps.engine.plan import Plan

Pack = tuple[AnyStage, ...]
"""Stages of one shape that a worker trains together."""


class PlanSearcher(Searcher):
    """Suggests packs of stages that are ready. `suggest` answers None while every stage left waits for another."""

    def __init__(self, plan: Plan, settings: dict[str, Any], limits: Mapping[Any, int], num_workers: int = 1) -> None:
        """
        Args:
            settings: further entries of every suggestion.
            limits: stages in a pack at most, by shape; 1 where a shape is not named.
            num_workers: among which ready stages are divided, rather than put into fewer packs.
        """
        super().__init__()
        self._plan, self._settings, self._limits, self._num_workers = plan, settings, limits, num_workers
        self._ready: dict[Any, list[AnyStage]] = {}
        self._waiting: dict[str, list[AnyStage]] = {}
        self._packs: dict[str, Pack] = {}
        self.failed: set[str] = set()
        todo = {stage.key: stage for stage in plan.todo}
        for stage in todo.values():
            if stage.parent is not None and stage.parent.key in todo:
                self._waiting.setdefault(stage.parent.key, []).append(stage)
            else:
                self._ready.setdefault(stage.shape, []).append(stage)

    # Ray's annotation leaves out Searcher.FINISHED, which its documentation asks for.
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not self._ready:
            return None if self._waiting else Searcher.FINISHED
        shape, stages = next(iter(self._ready.items()))
        size = min(self._limits.get(shape, 1), -(-len(stages) // self._num_workers))
        pack, left = tuple(stages[:size]), stages[size:]
        if left:
            self._ready[shape] = left
        else:
            del self._ready[shape]
        self._packs[trial_id] = pack
        return self._settings | {"pack": pack}

    def stage_done(self, key: str) -> None:
        """The plan has a stage's result: what starts from it is ready, unless it diverged."""
        children = self._waiting.pop(key, ())
        if self._plan.results[key].diverged_step is None:
            for stage in children:
                self._ready.setdefault(stage.shape, []).append(stage)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A stage that ends without a result has failed or was pruned, and nothing can start from it."""
        for stage in self.pack_of(trial_id):
            if stage.key not in self._plan.results:
                self._waiting.pop(stage.key, None)
                if not all(trial.key in self._plan.pruned for trial in self._plan.trials_of[stage.key]):
                    self.failed.add(stage.key)

    def pack_of(self, trial_id: str) -> Pack:
        """The stages that a Tune trial trains or trained."""
        return self._packs.get(trial_id, ())

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the state of a sweep is in the storage."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""
