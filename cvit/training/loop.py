"""Training of one stage: from its checkpoint, or from its start, to its result."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from cvit.config import TrialConfig
from cvit.init.registry import blank_model, initial_model
from cvit.stages import Stage
from cvit.storage import Storage
from cvit.training import checkpoint as ckpt
from cvit.training.batches import LabelledImages, StageData, training_batch
from cvit.training.checkpoint import Progress
from cvit.training.optimizer import adamw, load_state_tensors, set_learning_rate, state_tensors
from cvit.training.results import Point, StageResult, load_result
from cvit.training.schedule import learning_rate
from cvit.transfer import logit_error
from cvit.vocabulary import (
    CONVOLUTION,
    CONVOLUTION_TEST_ACCURACY,
    EARLY_GRAD_NORM,
    GRAD_NORM,
    IMAGES_PER_SECOND,
    LEARNING_RATE,
    STATUS_DIVERGED,
    STATUS_OK,
    TEST_ACCURACY,
    TRAIN_ACCURACY,
    TRAIN_LOSS,
    TRANSFER_LOGIT_ERROR,
    TRANSFER_VAL_ACCURACY,
    VAL_ACCURACY,
    VAL_LOSS,
)

CHECKPOINT_INTERVAL_S = 2.0
"""Least time between checkpoints. They are written at evaluations only, where nothing is accumulated."""
CHECKPOINT_TIME_SHARE = 0.05
"""Largest share of the time that may go into writing checkpoints; slow storage gets fewer of them."""
DIVERGENCE_MARGIN = 1.1
"""A loss that ends above this many times the first step's has diverged; less is the noise of a single batch."""
EARLY_STEPS = 100
"""First steps of a stage whose gradient norms are recorded one by one."""
EVALUATION_BATCH_SIZE = 500
LARGEST_ATTENTION = 2**25
"""Entries of the attention matrices of one layer and evaluation batch on a CPU: 128 MiB."""
TRANSFER_IMAGES = 256
"""Validation images on which the transfer's logit error is measured."""


class ParentStageMissing(Exception):
    """The trained weights that a stage starts from are missing or altered; running the sweep again trains them anew."""


@dataclass(frozen=True)
class Report:
    """What a stage has newly measured; all of it is already saved in the storage."""

    points: list[Point]
    step: int
    result: StageResult | None = None


def train_stage(
    stage: Stage,
    data: StageData,
    storage: Storage,
    device: torch.device,
    checkpoint_at_every_evaluation: bool = False,
) -> Iterator[Report]:
    """Trains a stage, yielding after every checkpoint and at the end; the last report holds the result.

    A stage that is done yields its result at once; one that was interrupted goes on from its last whole checkpoint
    and ends exactly as if it had not been.

    Args:
        checkpoint_at_every_evaluation: for a caller that wants to hear of every one, whatever it costs.

    Raises:
        ParentStageMissing: see there.
    """
    result = load_result(storage, stage.key)
    if result is not None and ckpt.load_weights(storage, stage.key) is not None:
        yield Report(result.points, stage.steps, result)
        return
    model, progress, optimizer = _restore_or_start(stage, data, storage, device)
    reported, saved_at, saving_s = 0, time.monotonic(), 0.0
    diverged_step: int | None = None
    while progress.step < stage.steps and diverged_step is None:
        started = time.monotonic()
        diverged_step = _train_interval(stage, model, optimizer, data, progress)
        progress.seconds += time.monotonic() - started
        pause = max(CHECKPOINT_INTERVAL_S, saving_s / CHECKPOINT_TIME_SHARE)
        unfinished = progress.step < stage.steps and diverged_step is None
        is_due = checkpoint_at_every_evaluation or time.monotonic() - saved_at >= pause
        if unfinished and is_due:
            saving_started = time.monotonic()
            ckpt.save_checkpoint(storage, stage.key, model.state_dict() | state_tensors(model, optimizer), progress)
            saved_at = time.monotonic()
            saving_s = saved_at - saving_started
            yield Report(progress.points[reported:], progress.step)
            reported = len(progress.points)
    result = _finish(stage, model, data, progress, diverged_step, device)
    ckpt.save_result(storage, stage.key, model.state_dict(), result)
    yield Report(result.points[reported:], progress.step, result)


def _restore_or_start(
    stage: Stage, data: StageData, storage: Storage, device: torch.device
) -> tuple[nn.Module, Progress, torch.optim.AdamW]:
    parent, initial_loss = None, None
    if stage.parent is not None:
        parent_result = load_result(storage, stage.parent.key)
        weights = ckpt.load_weights(storage, stage.parent.key)
        if parent_result is None or weights is None:
            raise ParentStageMissing(f"stage {stage.parent.key}, from which {stage.key} starts, is missing or altered")
        initial_loss = parent_result.initial_loss
        parent = blank_model(stage.parent)
        parent.load_state_dict(weights)
    model, measured = initial_model(stage, parent)
    model.to(device)
    optimizer = adamw(model, stage.trial.training)
    saved = ckpt.load_checkpoint(storage, stage.key)
    if saved is not None:
        tensors, progress = saved
        model.load_state_dict({name: tensors[name] for name in model.state_dict()})
        load_state_tensors(model, optimizer, tensors)
        return model, progress, optimizer
    progress = Progress(initial_loss=initial_loss)
    if parent is not None:
        images = data.normalised(data.validation.images[:TRANSFER_IMAGES])
        measured[TRANSFER_LOGIT_ERROR] = logit_error(parent.to(device).eval(), model.eval(), images)
        measured[TRANSFER_VAL_ACCURACY] = _evaluate(model, data, data.validation, stage.trial)[1]
    _record(progress, stage.first_step, measured)
    return model, progress, optimizer


def _train_interval(
    stage: Stage, model: nn.Module, optimizer: torch.optim.AdamW, data: StageData, progress: Progress
) -> int | None:
    """Trains up to the next evaluation, evaluates and records; returns the step at which the loss or the gradient
    stopped being finite, if it did. The device is waited for only at the end."""
    trial, config = stage.trial, stage.trial.training
    device = data.train.labels.device
    first = progress.step
    done = stage.first_step + first
    interval = stage.evaluation_interval
    last = min(stage.steps, first + interval - done % interval)
    losses, norms, correct = [], [], torch.zeros((), device=device)
    model.train()
    started = time.monotonic()
    for step in range(first, last):
        images, labels = training_batch(data, trial.data, stage.first_step + step, config.batch_size, trial.seed)
        set_learning_rate(optimizer, _learning_rate(stage, step))
        with _autocast(trial, device):
            logits = model(images)
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip_norm or math.inf)
        optimizer.step()
        losses.append(loss.detach())
        norms.append(norm.detach())
        correct += (logits.detach().argmax(1) == labels).sum()
    all_losses, all_norms = torch.stack(losses).cpu(), torch.stack(norms).cpu()
    seconds = time.monotonic() - started
    progress.step = last
    if progress.initial_loss is None:
        progress.initial_loss = float(all_losses[0])
    finite = torch.isfinite(all_losses) & torch.isfinite(all_norms)
    num_finite = len(finite) if finite.all() else int((~finite).int().argmax())
    early = all_norms[: max(0, min(num_finite, EARLY_STEPS - first))].tolist()
    for step, norm in enumerate(early, stage.first_step + first):
        _record(progress, step, {EARLY_GRAD_NORM: norm})
    progress.stability.update(
        all_losses[:num_finite].tolist(), all_norms[:num_finite].tolist(), first, stage.steps, progress.initial_loss
    )
    images_seen = (last - first) * config.batch_size
    measured = {
        TRAIN_LOSS: float(all_losses.mean()),
        TRAIN_ACCURACY: float(correct) / images_seen,
        LEARNING_RATE: _learning_rate(stage, last - 1),
        GRAD_NORM: float(all_norms.mean()),
        IMAGES_PER_SECOND: images_seen / seconds,
    }
    if num_finite < len(finite):
        bad = first + num_finite
        progress.step = bad + 1
        return stage.first_step + bad
    measured[VAL_LOSS], measured[VAL_ACCURACY] = _evaluate(model, data, data.validation, trial)
    _record(progress, stage.first_step + last, measured)
    return None


def _learning_rate(stage: Stage, step: int) -> float:
    return learning_rate(step, stage.steps, stage.learning_rate, stage.warmup_fraction)


def _finish(
    stage: Stage,
    model: nn.Module,
    data: StageData,
    progress: Progress,
    diverged_step: int | None,
    device: torch.device,
) -> StageResult:
    """The result. A loss that ends above where the trial's began counts as diverged, at the last step."""
    assert progress.initial_loss is not None
    end = stage.last_step if diverged_step is None else diverged_step
    _record(progress, end, progress.stability.measured(stage.first_step))
    if diverged_step is None:
        name = CONVOLUTION_TEST_ACCURACY if stage.phase == CONVOLUTION else TEST_ACCURACY
        _record(progress, stage.last_step, {name: _evaluate(model, data, data.test, stage.trial)[1]})
        final_loss = next(value for metric, _, value, _ in reversed(progress.points) if metric == TRAIN_LOSS)
        if final_loss > DIVERGENCE_MARGIN * progress.initial_loss:
            diverged_step = stage.last_step
    return StageResult(
        status=STATUS_OK if diverged_step is None else STATUS_DIVERGED,
        initial_loss=progress.initial_loss,
        seconds=progress.seconds,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        points=progress.points,
        diverged_step=diverged_step,
    )


@torch.inference_mode()
def _evaluate(model: nn.Module, data: StageData, images: LabelledImages, trial: TrialConfig) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, in [0, 1]."""
    model.eval()
    device = images.labels.device
    loss, correct = torch.zeros((), device=device), torch.zeros((), device=device)
    batch_size = _evaluation_batch_size(trial, device)
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        with _autocast(trial, device):
            logits = model(data.normalised(images.images[batch]))
        labels = images.labels[batch]
        loss += F.cross_entropy(logits.float(), labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
    return float(loss) / len(images), float(correct) / len(images)


def _evaluation_batch_size(trial: TrialConfig, device: torch.device) -> int:
    """On a CPU, attention matrices that outgrow the cache by far are slower than more batches."""
    m = trial.model
    most = LARGEST_ATTENTION // (m.num_heads * m.grid_size**4) if device.type == "cpu" else EVALUATION_BATCH_SIZE
    return max(1, min(EVALUATION_BATCH_SIZE, most))


def _autocast(trial: TrialConfig, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=trial.training.precision == "bfloat16")


def _record(progress: Progress, step: int, measured: dict[str, float]) -> None:
    """Adds finite values; a value that is not finite is divergence, which has its own place in the result."""
    now = time.time_ns() // 1_000_000
    progress.points += [(name, step, value, now) for name, value in measured.items() if math.isfinite(value)]
