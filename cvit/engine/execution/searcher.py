"""The queue of stages as a Tune searcher: Tune asks it for a pack when a worker is free."""

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from cvit.engine.execution.queue import StageQueue


class PlanSearcher(Searcher):
    """Suggests packs of stages, each in a Tune trial of its own."""

    def __init__(
        self,
        queue: StageQueue,
        most: int | None,
        settings: Callable[[], dict[str, Any]],
        waiting: Callable[[str], None],
    ) -> None:
        """
        Args:
            most: the largest number of packs that train at a time; None: as many as the cluster has room for.
            settings: returns the entries that a suggestion holds beside its pack.
            waiting: called with a line while the stages that are left wait for another driver.
        """
        super().__init__()
        self._queue, self._most, self._settings, self._waiting = queue, most, settings, waiting

    # Ray's annotation lacks Searcher.FINISHED, which its documentation asks for.
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A pack; None while none is ready, or all workers have one."""
        if self._queue.is_finished:
            return Searcher.FINISHED
        if self._most is not None and len(self._queue.names_running) >= self._most:
            return None
        pack = self._queue.next_pack(trial_id)
        if self._queue.waiting_line is not None:
            self._waiting(self._queue.waiting_line)
        return None if pack is None else self._settings() | {"pack": pack}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A pack has ended. After an error, the recorder calls `pack_failed` right after this."""
        self._queue.pack_ended(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the state of a sweep is in the storage."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""
