"""The Tune trainable, which trains one pack of stages after another in the same process."""

from typing import Any

import ray
from ray import tune
from ray._raylet import setproctitle  # pyright: ignore[reportAttributeAccessIssue]

from cvit.data.datasets import Dataset
from cvit.engine.execution.pruning import STEP
from cvit.engine.execution.queue import named
from cvit.engine.execution.steps import Bench, Steps, last_evaluation
from cvit.provenance import announce_code_version
from cvit.vocabulary import VAL_ACCURACY

REPORTS = "reports"
"""The key under which a Tune result holds [(stage key, Report), …]."""
BUSY_S = "busy_s"
WAITED_S = "waited_s"
"""The keys under which a Tune result holds the worker's time in this call, and since the previous one."""
NODE = "node"
"""The key under which a Tune result holds the id of the worker's node."""
LOAD = "load"
"""The key under which a Tune result holds the load of the worker's machine, once an interval is over."""


class PackTrainer(tune.Trainable):
    """Trains packs: one call of `step` trains up to the next checkpoint. The state of the stages is in the storage of
    the sweep, not in Tune's."""

    def setup(self, config: dict[str, Any], dataset: Dataset | None = None) -> None:
        import torch  # the driver, which imports this module too, needs none

        self._node = ray.get_runtime_context().get_node_id()
        announce_code_version(*config["code"])
        torch.set_num_threads(config["threads"])
        self._bench = Bench(dataset, config["storage"], config["device"], config["report_every_evaluation"])
        self._steps = Steps()
        self.reset_config(config)

    def __repr__(self) -> str:
        """The name of the actor in Ray's dashboard and logs. Ray asks for it once, when the actor starts."""
        return f"PackTrainer({self.config['sweep']})"

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next pack. Returning True tells Tune to reuse the process."""
        pack = new_config["pack"]
        self._title = f"ray::PackTrainer {new_config['sweep']}: {pack[0].phase} {named(pack)}"
        self._steps.take(self._bench.train(pack))
        return True

    def step(self) -> dict[str, Any]:
        setproctitle(self._title)  # for `ps` and the dashboard; Ray sets its own title before and after each call
        step = self._steps.next()
        facts = {BUSY_S: step.busy_s, WAITED_S: step.waited_s, NODE: self._node, LOAD: step.load}
        if step.reports is None:
            return {REPORTS: [], "done": True, **facts}
        evaluation = last_evaluation(step.reports)
        judged = dict(zip((STEP, VAL_ACCURACY), evaluation, strict=True)) if evaluation is not None else {}
        return {REPORTS: step.reports, "done": False, **facts, **judged}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save: a stage continues from its own checkpoint in the storage."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing to load."""
