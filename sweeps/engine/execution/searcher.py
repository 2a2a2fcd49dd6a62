"""Walks the plan within one Tuner run: stages are suggested in packs, each once its parent is done."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ray.tune.search import Searcher

from cvit.stages import Stage
from sweeps.engine.execution.faults import CODE_RETRIES, Fault
from sweeps.engine.planning.plan import Plan
from sweeps.engine.recording.backoff import pause_s

LEAST_SHARE = 4
"""Divided among workers, packs still are at least this part of what they may be: on a GPU the small ones that would
come out in the end take hardly less time than large ones."""

Pack = tuple[Stage, ...]
"""Stages of one shape that a worker trains together."""


class PlanSearcher(Searcher):
    """Suggests packs of stages that are ready. `suggest` answers None while every stage left waits for another, or
    rests after a fault: what a pack that failed has not finished is suggested again, in a Tune trial of its own."""

    def __init__(self, plan: Plan, settings: dict[str, Any], limits: Mapping[Any, int], num_workers: int = 1) -> None:
        """
        Args:
            settings: further entries of every suggestion.
            limits: stages in a pack at most, by shape; 1 where a shape is not named.
            num_workers: among which the last stages are divided, rather than put into fewer packs.
        """
        super().__init__()
        self._plan, self._settings, self._limits, self._num_workers = plan, settings, limits, num_workers
        self._ready: dict[Any, list[Stage]] = {}
        self._waiting: dict[str, list[Stage]] = {}
        self._packs: dict[str, Pack] = {}
        self._running: set[str] = set()
        self._resting: list[tuple[float, Stage]] = []
        self._machine_faults: Counter[str] = Counter()
        self._code_faults: Counter[str] = Counter()
        self.failed: dict[str, str] = {}
        self.storage_fault: str | None = None
        todo = {stage.key: stage for stage in plan.todo}
        parents = {stage.parent.key for stage in todo.values() if stage.parent is not None}
        # Those that others wait for come first, so that at the end no worker waits for them.
        for stage in sorted(todo.values(), key=lambda stage: stage.key not in parents):
            if stage.parent is not None and stage.parent.key in todo:
                self._waiting.setdefault(stage.parent.key, []).append(stage)
            else:
                self._make_ready(stage)

    # Ray's annotation leaves out Searcher.FINISHED, which its documentation asks for.
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.storage_fault is not None:
            return Searcher.FINISHED
        self._wake()
        if not self._ready:
            # Of what runs now, something may have to be suggested again.
            return None if self._waiting or self._resting or self._running else Searcher.FINISHED
        shape, stages = next(iter(self._ready.items()))
        size = self._size_of_next_pack(shape, len(stages))
        pack, left = tuple(stages[:size]), stages[size:]
        if left:
            self._ready[shape] = left
        else:
            del self._ready[shape]
        self._packs[trial_id] = pack
        self._running.add(trial_id)
        return self._settings | {"pack": pack}

    def _size_of_next_pack(self, shape: Any, num_ready: int) -> int:
        """As large as is allowed, until what is left has to be divided among the workers; and so that what is ready of
        this shape makes packs of about the same size."""
        limit = self._limits.get(shape, 1)
        num_left = sum(len(stages) for groups in (self._ready, self._waiting) for stages in groups.values())
        most = min(limit, max(-(-num_left // self._num_workers), limit // LEAST_SHARE))
        num_packs = -(-num_ready // most)
        return -(-num_ready // num_packs)

    def _make_ready(self, stage: Stage) -> None:
        """A stage that has raised an error is trained alone, so that it costs no other one anything."""
        group = stage.key if self._code_faults[stage.key] else stage.shape
        self._ready.setdefault(group, []).append(stage)

    def _wake(self) -> None:
        now = time.monotonic()
        due = [stage for due_at, stage in self._resting if due_at <= now]
        self._resting = [(due_at, stage) for due_at, stage in self._resting if due_at > now]
        for stage in due:
            self._make_ready(stage)

    def stage_done(self, key: str) -> None:
        """The plan has a stage's result: what starts from it is ready, unless it diverged."""
        children = self._waiting.pop(key, ())
        if self._plan.results[key].diverged_step is None:
            for stage in children:
                self._make_ready(stage)

    def stage_advanced(self, key: str) -> None:
        """A stage has come to a checkpoint, so whatever disturbed it has passed."""
        del self._machine_faults[key]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A pack ended. What follows from an error is said by `trial_failed`, which is called right after this."""
        self._running.discard(trial_id)
        for stage in self.pack_of(trial_id):
            if self._is_pruned(stage):
                self._waiting.pop(stage.key, None)

    def trial_failed(self, trial_id: str, fault: Fault) -> list[str]:
        """Decides what becomes of the stages that a pack has not finished, and says so in a line each."""
        lines = []
        for stage in self.pack_of(trial_id):
            if stage.key in self._plan.results or self._is_pruned(stage):
                continue
            what = f"stage {stage.key}: {fault.line}"
            if fault.kind == "storage":
                self.storage_fault = fault.line
            elif fault.kind == "machine":
                self._machine_faults[stage.key] += 1
                pause = pause_s(self._machine_faults[stage.key])
                self._resting.append((time.monotonic() + pause, stage))
                lines.append(f"lost a worker, trying again in {pause:.0f} s: {what}")
            else:
                self._code_faults[stage.key] += 1
                tries = self._code_faults[stage.key]
                if tries <= CODE_RETRIES:
                    self._make_ready(stage)
                else:
                    self.failed[stage.key] = fault.line
                    self._waiting.pop(stage.key, None)  # nothing can start from it
                lines.append(f"failed, try {tries} of {CODE_RETRIES + 1}: {what}")
        return lines

    def _is_pruned(self, stage: Stage) -> bool:
        return all(trial.key in self._plan.pruned for trial in self._plan.trials_of[stage.key])

    def pack_of(self, trial_id: str) -> Pack:
        """The stages that a Tune trial trains or trained."""
        return self._packs.get(trial_id, ())

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the state of a sweep is in the storage."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""
