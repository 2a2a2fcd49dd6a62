"""The usual way to train one trial, shared by the arms that people use instead of the engine: plain, optuna and bash.
Lightning has its own loop and takes images, optimiser and schedule from here.

A DataLoader with torchvision's transforms; float32; torch's AdamW. It trains the same networks on the same images for
the same steps as the engine, evaluated as often. The images lie decoded in memory and one long sampler reads them, so
that no loader's process starts twice; no checkpoint is saved.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import data
from torchvision.transforms import v2

from benchmarks.common import available_cores
from cvit.config import TrialConfig
from cvit.data.datasets import Dataset
from cvit.data.subsets import subset_size
from cvit.init.registry import initial_model
from cvit.stages import TrainingStage, stages_of
from cvit.training.batches import LabelledImages, pack_data
from cvit.training.groups import groups_of
from cvit.training.optimizer import decays
from cvit.training.schedule import rate_at
from cvit.vocabulary import GRAD_NORM, LEARNING_RATE, TRAIN_ACCURACY, TRAIN_LOSS, VAL_ACCURACY, VAL_LOSS

GPU_PROCESSES = 4
"""The number of trials that share a GPU in the arms without Ray."""
MOST_LOADER_PROCESSES = 4
EVALUATION_BATCH_SIZE = 500

Report = Callable[[dict[str, float]], object]


@dataclass(frozen=True)
class Place:
    """The place where a trial is trained: a device ("cpu": one thread), and the processes that load images for it."""

    device: str
    loader_processes: int = 0


def place_of_each(device: str, at_once: int) -> Place:
    """Returns the place of each of the trials that are trained at the same time on this machine."""
    if device == "cpu":
        return Place(device)
    return Place(device, min(MOST_LOADER_PROCESSES, available_cores() // at_once))


def at_once(device: str) -> int:
    """Returns the number of trials that the arms without Ray train at the same time."""
    return available_cores() if device == "cpu" else GPU_PROCESSES


class TransformedImages(data.Dataset[tuple[Tensor, int]], Sized):
    """The images are kept decoded, as uint8 tensors, each transformed when it is asked for."""

    def __init__(self, part: LabelledImages, transform: v2.Transform) -> None:
        self._images, self._labels, self._transform = part.images, part.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self._images[index]), self._labels[index]


@dataclass(frozen=True)
class TrialImages:
    """The images of one trial, transformed as each part is used."""

    train: TransformedImages
    validation: TransformedImages
    test: TransformedImages


def prepared(config: Mapping[str, Any], dataset: Dataset) -> tuple[Sequence[TrainingStage], TrialImages]:
    """Returns the phases of a trial, given by its flat parameters, and its images; seeds torch."""
    trial = TrialConfig.from_flat(config)
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
    return stages, TrialImages(train, validation, test)


def models_of(stages: Sequence[TrainingStage]) -> Iterator[tuple[TrainingStage, nn.Module]]:
    """Yields each phase with the model that it starts from, which is to be trained before the next is asked for."""
    model = None
    for stage in stages:
        model, _ = initial_model(stage, model.cpu() if model is not None else None)
        yield stage, model


def train_one(config: Mapping[str, Any], dataset: Dataset, place: Place, report: Report) -> float:
    """Trains one trial, reports at every evaluation, and returns the accuracy on the test images.

    Args:
        config: the flat parameters of the trial.
    """
    if place.device == "cpu":
        torch.set_num_threads(1)
    stages, images = prepared(config, dataset)
    model = None
    for stage, model in models_of(stages):
        model.to(place.device)
        _train_stage(stage, model, images, place, report)
    assert model is not None
    return _evaluate(model, images.test, place.device)[1]


class AdamWTowardsStart(torch.optim.AdamW):
    """torch's AdamW with decay towards the weights at the start (L2-SP) instead of towards zero."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups)
        self._starts = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]

    def step(self, closure: Any = None) -> Any:
        """Takes torch's step, which subtracts the share lr · weight_decay of a weight, and adds that of its start."""
        loss = super().step(closure)
        with torch.no_grad():
            for group, starts in zip(self.param_groups, self._starts, strict=True):
                if group["weight_decay"]:
                    share = group["lr"] * group["weight_decay"]
                    torch._foreach_add_(group["params"], starts, alpha=share)  # pyright: ignore[reportPrivateImportUsage]
        return loss


def optimizer_of(stage: TrainingStage, model: nn.Module) -> torch.optim.AdamW:
    """Returns torch's AdamW with the learning rates and the decay that ours gives each parameter."""
    parameters, decay = dict(model.named_parameters()), stage.trial.training.weight_decay
    members: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, group in groups_of(stage, parameters).items():
        decayed = decays(name, parameters[name].shape)
        members.setdefault((group.rate_factor, decayed), []).append(parameters[name])
    groups = [
        {"params": params, "lr": stage.learning_rate * factor, "weight_decay": decay if decayed else 0.0}
        for (factor, decayed), params in members.items()
    ]
    return AdamWTowardsStart(groups) if stage.decays_towards_start else torch.optim.AdamW(groups)


def schedule_of(stage: TrainingStage, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """Returns the learning rate's schedule."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(stage, step) / stage.learning_rate)


def reason_not_trained(stages: Iterable[TrainingStage]) -> str | None:
    """Returns an option that this training does not have although some stage uses it, and its value; None if it has
    all."""
    for stage in stages:
        data, training = stage.trial.data, stage.trial.training
        used = {
            "augmentation_policy": data.augmentation_policy != "none" and data.augmentation_policy,
            "mixup_alpha": data.mixup_alpha,
            "cutmix_alpha": data.cutmix_alpha,
            "erasing_probability": data.erasing_probability,
            "stochastic_depth": training.stochastic_depth,
            "optimizer_state": stage.carries_moments and training.optimizer_state,
            "init_scheme": stage.num_readings > 1 and stage.trial.init.init_scheme,
        }
        for name, value in used.items():
            if value:
                return f"{name} {value}"
    return None


def training_loader(stage: TrainingStage, train: TransformedImages, place: Place) -> data.DataLoader[Any]:
    """Returns a loader of as many images as the stage has steps for: its processes start once, not once an epoch."""
    batch_size = stage.trial.training.batch_size
    sampler = data.RandomSampler(train, num_samples=stage.steps * batch_size)
    is_pinned = place.device == "cuda"
    return data.DataLoader(train, batch_size, sampler=sampler, num_workers=place.loader_processes, pin_memory=is_pinned)


def evaluation_loader(images: TransformedImages) -> data.DataLoader[Any]:
    """Returns a loader of the images in their order."""
    return data.DataLoader(images, EVALUATION_BATCH_SIZE)


def _train_stage(stage: TrainingStage, model: nn.Module, images: TrialImages, place: Place, report: Report) -> None:
    config = stage.trial.training
    optimizer = optimizer_of(stage, model)
    schedule = schedule_of(stage, optimizer)
    losses, norms, correct = [], [], []
    for step, (batch, labels) in enumerate(training_loader(stage, images.train, place), start=stage.first_step + 1):
        model.train()
        batch, labels = batch.to(place.device, non_blocking=True), labels.to(place.device, non_blocking=True)
        logits = model(batch)
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip_norm or math.inf))
        rate = float(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        correct.append((logits.detach().argmax(1) == labels).float().mean())
        if step % stage.evaluation_interval == 0 or step == stage.last_step:
            val_loss, val_accuracy = _evaluate(model, images.validation, place.device)
            report(
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
    for batch, labels in evaluation_loader(images):
        logits = model(batch.to(device))
        loss += float(F.cross_entropy(logits, labels.to(device), reduction="sum"))
        correct += float((logits.argmax(1) == labels.to(device)).sum())
    return loss / len(images), correct / len(images)
