"""This arm of throughput.py, not meant to be run by hand, runs the grid with PyTorch Lightning on Ray.

As benchmarks/arms/plain.py, but a trial's phases are trained by a Lightning Trainer, with Ray's callback for it.
Images, optimiser and schedule are those of benchmarks/arms/plain_training.py. It needs the extra `benchmarks`.

python benchmarks/arms/with_lightning.py GPU_SHARE [options of sweeps/low_data.py]
"""

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from lightning import pytorch as lightning  # pyright: ignore[reportMissingImports]
from ray import tune
from ray.tune.integration.pytorch_lightning import TuneReportCheckpointCallback
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.arms import plain
from benchmarks.arms.plain_training import (
    Place,
    TrialImages,
    evaluation_loader,
    models_of,
    optimizer_of,
    prepared,
    schedule_of,
    training_loader,
)
from cvit.data.datasets import Dataset
from cvit.stages import TrainingStage
from cvit.vocabulary import LEARNING_RATE, TEST_ACCURACY, TRAIN_ACCURACY, TRAIN_LOSS, VAL_ACCURACY, VAL_LOSS

MEASURED = [TRAIN_LOSS, TRAIN_ACCURACY, LEARNING_RATE, VAL_LOSS, VAL_ACCURACY]


class Training(lightning.LightningModule):
    """A phase of a trial."""

    def __init__(self, stage: TrainingStage, model: nn.Module) -> None:
        super().__init__()
        self.stage, self.model = stage, model

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = optimizer_of(self.stage, self.model)
        schedule = {"scheduler": schedule_of(self.stage, optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.stage.trial.training.label_smoothing)
        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        rate = self.lr_schedulers().get_last_lr()[0]
        self.log_dict({TRAIN_LOSS: loss, TRAIN_ACCURACY: accuracy, LEARNING_RATE: rate})
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        logits, labels = self.model(batch[0]), batch[1]
        self.log_dict({VAL_LOSS: F.cross_entropy(logits, labels), VAL_ACCURACY: _accuracy(logits, labels)})

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.log(TEST_ACCURACY, _accuracy(self.model(batch[0]), batch[1]))


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).float().mean()


def train_trial(config: dict[str, Any], dataset: Dataset, place: Place) -> None:
    """Tune's function trainable: trains the phases of one trial and reports at every evaluation."""
    if place.device == "cpu":
        torch.set_num_threads(1)
    stages, images = prepared(config["trial"], dataset)
    trainer = module = None
    for stage, model in models_of(stages):
        module = Training(stage, model)
        trainer = _trained(module, images, place)
    assert trainer is not None
    (measured,) = trainer.test(module, evaluation_loader(images.test), verbose=False)
    tune.report({TEST_ACCURACY: measured[TEST_ACCURACY]})


def _trained(module: Training, images: TrialImages, place: Place) -> lightning.Trainer:
    stage = module.stage
    trainer = lightning.Trainer(
        accelerator="gpu" if place.device == "cuda" else "cpu",
        devices=1,
        max_steps=stage.steps,
        val_check_interval=stage.evaluation_interval,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=stage.trial.training.gradient_clip_norm or None,
        callbacks=[TuneReportCheckpointCallback(MEASURED, save_checkpoints=False)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    validation = evaluation_loader(images.validation)
    trainer.fit(module, training_loader(stage, images.train, place), validation)
    if stage.steps % stage.evaluation_interval:
        trainer.validate(module, validation, verbose=False)  # as the other arms do at the end of a phase
    return trainer


if __name__ == "__main__":
    plain.main(train_trial, float(sys.argv[1]), sys.argv[2:])
