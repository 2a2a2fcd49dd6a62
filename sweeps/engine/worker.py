"""The Tune trainable: trains one pack of stages after another in the same process."""

from collections.abc import Iterator
from typing import Any

import torch
from ray import tune

from cvit.data.datasets import Dataset
from cvit.stages import AnyStage, FitStage
from cvit.storage import Storage
from cvit.theorem.expressivity import fit
from cvit.training.batches import stage_data
from cvit.training.loop import Report, train_stage
from cvit.vocabulary import VAL_ACCURACY

STEP = "step"
"""Key of a Tune result that holds optimiser steps of the trial, both phases together."""
REPORTS = "reports"
"""Key of a Tune result that holds [(stage key, Report), …]."""


class PackTrainer(tune.Trainable):
    """One call of `step` trains up to the next checkpoint; the stage's state is in the storage, not in Tune's."""

    def setup(self, config: dict[str, Any], dataset: Dataset | None = None) -> None:
        self._dataset = dataset
        if config["device"] == "cpu":
            torch.set_num_threads(1)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next pack; Tune reuses the process where this returns True."""
        self._report_every_evaluation: bool = new_config["report_every_evaluation"]
        self._reports = self._train(new_config["pack"], new_config["storage"], torch.device(new_config["device"]))
        return True

    def _train(
        self, pack: tuple[AnyStage, ...], storage_url: str, device: torch.device
    ) -> Iterator[tuple[str, Report]]:
        storage = Storage.open(storage_url)
        for stage in pack:
            for report in self._reports_of(stage, storage, device):
                yield stage.key, report

    def _reports_of(self, stage: AnyStage, storage: Storage, device: torch.device) -> Iterator[Report]:
        if isinstance(stage, FitStage):
            return fit(stage, storage)
        assert self._dataset is not None
        data = stage_data(self._dataset, stage.trial.data, stage.trial.seed, device)
        return train_stage(stage, data, storage, device, self._report_every_evaluation)

    def step(self) -> dict[str, Any]:
        reported = next(self._reports, None)
        if reported is None:
            return {REPORTS: [], "done": True}
        _, report = reported
        accuracies = [(step, value) for metric, step, value, _ in report.points if metric == VAL_ACCURACY]
        # What a scheduler may stop a trial by; one that is done cannot be stopped any more.
        last = dict(zip((STEP, VAL_ACCURACY), accuracies[-1], strict=True)) if accuracies and not report.result else {}
        return {REPORTS: [reported], "done": False} | last

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save: a stage goes on from its own checkpoint in the storage."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing to load."""
