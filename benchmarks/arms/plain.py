"""This arm of throughput.py, not meant to be run by hand, runs the grid the way it is usually done.

One Ray Tune function trial per configuration; a DataLoader with torchvision's transforms; float32; torch's AdamW; Ray's
own MLflow callback; everything else as Tune has it. It trains the same networks on the same images for the same steps,
evaluated as often.

python benchmarks/arms/plain.py GPU_SHARE [options of sweeps/low_data.py]
"""

import math
import sys
import tempfile
from collections.abc import Sized
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import data
from torchvision.transforms import v2

from benchmarks.arms.grid import planned
from benchmarks.common import available_cores
from cvit.config import TrialConfig
from cvit.data.datasets import Dataset, load
from cvit.data.subsets import subset_size
from cvit.init.registry import initial_model
from cvit.stages import TrainingStage, stages_of
from cvit.training.batches import LabelledImages, pack_data
from cvit.training.optimizer import decays
from cvit.training.schedule import learning_rate
from cvit.vocabulary import GRAD_NORM, LEARNING_RATE, TEST_ACCURACY, TRAIN_ACCURACY, TRAIN_LOSS, VAL_ACCURACY, VAL_LOSS

MOST_LOADER_PROCESSES = 4
EVALUATION_BATCH_SIZE = 500


class TransformedImages(data.Dataset[tuple[Tensor, int]], Sized):
    """The images are kept decoded, as uint8 tensors, each transformed when it is asked for."""

    def __init__(self, part: LabelledImages, transform: v2.Transform) -> None:
        self._images, self._labels, self._transform = part.images, part.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self._images[index]), self._labels[index]


def train_trial(config: dict[str, Any], dataset: Dataset, device: str, loader_processes: int) -> None:
    """Tune's function trainable: trains the phases of one trial and reports at every evaluation."""
    trial = TrialConfig.from_flat(config["trial"])
    num_images = subset_size(dataset.train.labels, trial.data.data_fraction, trial.data.validation_fraction)
    stages = stages_of(trial, num_images)
    kept = pack_data(dataset, stages[:1], torch.device("cpu"))  # the same images as ours, and their statistics
    size, margin = trial.model.image_size, max(1, trial.model.image_size // 8)
    augmentations: dict[str, list[nn.Module]] = {
        "none": [],
        "shift": [v2.RandomCrop(size, padding=margin)],
        "crop_flip": [v2.RandomCrop(size, padding=margin), v2.RandomHorizontalFlip()],
    }
    normalise = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(kept.mean[0].tolist(), kept.std[0].tolist())]
    train = TransformedImages(kept.train, v2.Compose([*augmentations[trial.data.augmentation], *normalise]))
    validation, test = (TransformedImages(part, v2.Compose(normalise)) for part in (kept.validation, kept.test))
    torch.manual_seed(trial.seed)

    model = None
    for stage in stages:
        model, _ = initial_model(stage, model.cpu() if model is not None else None)
        model.to(device)
        _train_stage(stage, model, train, validation, device, loader_processes)
    assert model is not None
    tune.report({TEST_ACCURACY: _evaluate(model, test, device)[1]})


def _train_stage(
    stage: TrainingStage,
    model: nn.Module,
    train: TransformedImages,
    validation: TransformedImages,
    device: str,
    loader_processes: int,
) -> None:
    config = stage.trial.training
    groups = {True: config.weight_decay, False: 0.0}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in model.named_parameters() if decays(n, p.shape) == decayed], "weight_decay": decay}
            for decayed, decay in groups.items()
        ],
        lr=stage.learning_rate,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(step, stage.steps, 1.0, stage.warmup_fraction)
    )
    # As many images as the stage has steps for: the loader's processes start once, not once an epoch.
    sampler = data.RandomSampler(train, num_samples=stage.steps * config.batch_size)
    loader = data.DataLoader(
        train, config.batch_size, sampler=sampler, num_workers=loader_processes, pin_memory=device == "cuda"
    )
    losses, norms, correct = [], [], []
    for step, (images, labels) in enumerate(loader, start=stage.first_step + 1):
        model.train()
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        logits = model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip_norm or math.inf))
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        correct.append((logits.detach().argmax(1) == labels).float().mean())
        if step % stage.evaluation_interval == 0 or step == stage.last_step:
            val_loss, val_accuracy = _evaluate(model, validation, device)
            tune.report(
                {
                    "step": step,
                    TRAIN_LOSS: float(torch.stack(losses).mean()),
                    TRAIN_ACCURACY: float(torch.stack(correct).mean()),
                    GRAD_NORM: float(torch.stack(norms).mean()),
                    LEARNING_RATE: rate,
                    VAL_LOSS: val_loss,
                    VAL_ACCURACY: val_accuracy,
                }
            )
            losses, norms, correct = [], [], []


@torch.inference_mode()
def _evaluate(model: nn.Module, images: TransformedImages, device: str) -> tuple[float, float]:
    """Returns mean cross-entropy and accuracy."""
    model.eval()
    loss, correct = 0.0, 0.0
    for batch, labels in data.DataLoader(images, EVALUATION_BATCH_SIZE):
        logits = model(batch.to(device))
        loss += float(F.cross_entropy(logits, labels.to(device), reduction="sum"))
        correct += float((logits.argmax(1) == labels.to(device)).sum())
    return loss / len(images), correct / len(images)


def main(gpu_share: float, options: list[str]) -> None:
    """Runs the grid that the sweep's options describe."""
    progress, info, request = planned(options)
    plan = progress.plan
    at_once = int(1 / gpu_share) if gpu_share else available_cores()
    loader_processes = min(MOST_LOADER_PROCESSES, available_cores() // at_once) if gpu_share else 0
    trainable = tune.with_parameters(
        train_trial,
        dataset=load(info),
        device="cuda" if gpu_share else "cpu",
        loader_processes=loader_processes,
    )
    with tempfile.TemporaryDirectory(prefix="cvit-plain-", ignore_cleanup_errors=True) as folder:
        results = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1, "gpu": gpu_share}),
            param_space={"trial": tune.grid_search([dict(trial.params) for trial in plan.trials])},
            run_config=tune.RunConfig(
                storage_path=folder,
                callbacks=[MLflowLoggerCallback(tracking_uri=request.tracking_uri, experiment_name=plan.study.sweep)],
            ),
        ).fit()
    sys.exit(1 if results.num_errors else 0)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
