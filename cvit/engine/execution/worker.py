"""The Tune trainable, which trains one pack of stages after another in the same process."""

import time
from collections.abc import Iterator
from typing import Any

import ray
import torch
from ray import tune
from ray._raylet import setproctitle  # pyright: ignore[reportAttributeAccessIssue]

from cvit.data.datasets import Dataset
from cvit.engine.execution.queue import named
from cvit.machine import Load
from cvit.provenance import announce_code_version
from cvit.results import Reports
from cvit.storage import Storage
from cvit.tasks import task_named
from cvit.vocabulary import VAL_ACCURACY

STEP = "step"
"""The key under which a Tune result holds the optimiser steps of the trial, both phases together."""
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
        self._dataset = dataset
        self._node = ray.get_runtime_context().get_node_id()
        self._idle_since: float | None = None
        self._load = Load()
        announce_code_version(*config["code"])
        torch.set_num_threads(config["threads"])
        self.reset_config(config)

    def __repr__(self) -> str:
        """The name of the actor in Ray's dashboard and logs. Ray asks for it once, when the actor starts."""
        return f"PackTrainer({self.config['sweep']})"

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next pack. Returning True tells Tune to reuse the process."""
        self._reports = self._train(new_config)
        return True

    def _train(self, config: dict[str, Any]) -> Iterator[Reports]:
        storage, pack = Storage.open(config["storage"]), config["pack"]
        self._title = f"ray::PackTrainer {config['sweep']}: {pack[0].phase} {named(pack)}"
        train = task_named(pack[0].task).train
        return train(pack, self._dataset, storage, torch.device(config["device"]), config["report_every_evaluation"])

    def step(self) -> dict[str, Any]:
        setproctitle(self._title)  # for `ps` and the dashboard; Ray sets its own title before and after each call
        started = time.monotonic()
        waited_s = started - self._idle_since if self._idle_since is not None else 0.0
        reports = next(self._reports, None)
        self._idle_since = time.monotonic()
        facts = {BUSY_S: self._idle_since - started, WAITED_S: waited_s, NODE: self._node}
        facts[LOAD] = self._load.measure()
        if reports is None:
            return {REPORTS: [], "done": True, **facts}
        return {REPORTS: reports, "done": False, **facts, **_last_evaluation(reports)}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save: a stage continues from its own checkpoint in the storage."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing to load."""


def _last_evaluation(reports: Reports) -> dict[str, Any]:
    """Step and validation accuracy, by which a scheduler may stop the trial, whose pack then has one stage. Empty for a
    stage that is done: it cannot be stopped any more."""
    _, report = reports[0]
    accuracies = [(step, value) for metric, step, value, _ in report.points if metric == VAL_ACCURACY]
    return dict(zip((STEP, VAL_ACCURACY), accuracies[-1], strict=True)) if accuracies and not report.result else {}
