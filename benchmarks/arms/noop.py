"""This arm of overhead.py, not meant to be run by hand, has Ray Tune run trials that do nothing, with reused actors.

python benchmarks/arms/noop.py NUM_TRIALS [TRACKING_URI]        # with a URI: Ray's own MLflow callback writes there
"""

import sys
import tempfile
from typing import Any

from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback


class Nothing(tune.Trainable):
    """Ends at its first step."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True

    def step(self) -> dict[str, Any]:
        return {"done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Saves nothing: there is no state."""


def main(num_trials: int, tracking_uri: str | None) -> None:
    callbacks: list[tune.Callback] = []
    if tracking_uri is not None:
        callbacks.append(MLflowLoggerCallback(tracking_uri, experiment_name="noop"))
    with tempfile.TemporaryDirectory(prefix="cvit-noop-", ignore_cleanup_errors=True) as folder:
        results = tune.Tuner(
            tune.with_resources(Nothing, {"cpu": 1}),
            param_space={"seed": tune.grid_search(list(range(num_trials)))},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(storage_path=folder, callbacks=callbacks, verbose=0),
        ).fit()
    sys.exit(1 if results.num_errors else 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
