"""A worker of the scale simulation is handed packs, waits as long as their training would take and says that they are
done. It is light, so that many fit one machine: it knows nothing of torch."""

import os
import time
from typing import Any

from ray import tune

DONE_KEYS = "done_keys"
STAGE_SECONDS = "CVIT_SCALE_STAGE_SECONDS"
"""Variable of the environment: how long a stage takes."""


class NoOpTrainer(tune.Trainable):
    """The trainable takes one step a stage and one more to say that none are left, as
    `cvit.engine.execution.worker.PackTrainer` does; the times have the same names as there."""

    def setup(self, config: dict[str, Any]) -> None:
        self._idle_since: float | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._keys = [stage.key for stage in new_config["pack"]]
        return True

    def step(self) -> dict[str, Any]:
        started = time.monotonic()
        waited_s = started - self._idle_since if self._idle_since is not None else 0.0
        is_done = not self._keys
        done_keys = [] if is_done else [self._keys.pop()]
        if not is_done:
            time.sleep(float(os.environ[STAGE_SECONDS]))
        self._idle_since = time.monotonic()
        return {DONE_KEYS: done_keys, "done": is_done, "busy_s": self._idle_since - started, "waited_s": waited_s}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Saves nothing: there is no state."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Loads nothing: there is no state."""
