"""A worker of the scale simulation: it is handed packs and says at once that they are done. Light, so that many fit one
machine: it knows nothing of torch."""

from typing import Any

from ray import tune

DONE_KEYS = "done_keys"


class NoOpTrainer(tune.Trainable):
    """One step a stage, and one that says that there are none left, as `sweeps.engine.worker.PackTrainer` has it."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._keys = [stage.key for stage in new_config["pack"]]
        return True

    def step(self) -> dict[str, Any]:
        return {DONE_KEYS: [self._keys.pop()], "done": False} if self._keys else {DONE_KEYS: [], "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing to load."""
