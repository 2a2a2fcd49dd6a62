"""Trains a pack of stages, each from its checkpoint, or from its start, to its result.

The outcome of a stage depends on the stage alone, up to float32 rounding: not on the other members of its pack, and not
on interruptions. A single stage is a pack of one.
"""

import gc
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cvit.data.datasets import Dataset
from cvit.init.registry import blank_model, initial_model
from cvit.init.transfer import logit_error
from cvit.provenance import provenance
from cvit.results import MOMENTS, WEIGHTS, Report, Reports, StageResult, last_value, load_result
from cvit.stages import TrainingStage
from cvit.storage import Storage
from cvit.training import checkpoint as ckpt
from cvit.training.batches import PackData, pack_data
from cvit.training.checkpoint import StageProgress
from cvit.training.groups import MOMENT_NAMES, carried_moments
from cvit.training.pack import Measured, TrainingPack
from cvit.training.schedule import rate_at
from cvit.training.starts import first_starts, side_by_side
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
"""The least time between checkpoints. They are written only at evaluations, where no sums are pending."""
CHECKPOINT_TIME_SHARE = 0.05
"""The largest share of the time for writing checkpoints; a slow storage gets fewer of them."""
EXPECTED_BYTES_PER_S = 100e6
"""The rate that the first checkpoint of a pack is expected to be written at. That of 30 models of ViT size took 40 s
beside an H200: begun after the least time, it would have taken most of the pack's first minute."""
DIVERGENCE_MARGIN = 1.1
"""A training has diverged if its loss ends above this multiple of the first step's; less may be noise of one batch."""
EARLY_STEPS = 100
"""The number of first steps of a stage whose gradient norms are recorded one by one."""
TRANSFER_IMAGES = 256
"""The number of validation images for measuring the transfer's logit error."""


class ParentStageMissing(Exception):
    """The trained weights that a stage starts from are missing or altered; the next run trains them again."""


@dataclass(eq=False)
class _Member:
    """A stage in a pack. `state` holds its weights and moments while it is not on the device."""

    place: int
    stage: TrainingStage
    progress: StageProgress
    state: Mapping[str, Tensor]
    reported: int = 0
    diverged_step: int | None = None

    @property
    def is_at_end(self) -> bool:
        return self.diverged_step is not None or self.progress.step == self.stage.steps

    def news(self, result: StageResult | None = None) -> tuple[str, Report]:
        """A report of the points that have not been reported yet."""
        points = self.progress.points[self.reported :]
        self.reported = len(self.progress.points)
        return self.stage.key, Report(points, self.progress.step, result)


def train_pack(
    stages: Sequence[TrainingStage],
    dataset: Dataset,
    storage: Storage,
    device: torch.device,
    checkpoint_at_every_evaluation: bool = False,
) -> Iterator[Reports]:
    """Trains stages together; yields reports after every checkpoint and at every end. The last one has the result.

    A stage that is done reports its result at once. An interrupted stage continues from its last whole checkpoint,
    ahead of the others, which catch up with it. If the device runs out of memory, the unfinished stages continue from
    their checkpoints in packs of half the size.

    Args:
        stages: stages of one `shape`.
        checkpoint_at_every_evaluation: for a caller that needs a report of every evaluation, whatever it costs.

    Raises:
        ParentStageMissing: the weights of a parent, or the moments that a stage carries over, are missing or altered.
        torch.OutOfMemoryError: the device has no room for a single member.
    """
    waiting = []
    for stage in stages:
        result = load_result(storage, stage.key)
        if result is not None and all(ckpt.load_part(storage, stage.key, part) is not None for part in _parts(stage)):
            yield [(stage.key, Report(result.points, stage.steps, result))]
        else:
            waiting.append(stage)
    size = len(waiting)
    while waiting:
        together = waiting[:size]
        data = pack_data(dataset, together, device)
        try:
            for reports in _train_together(together, data, storage, device, checkpoint_at_every_evaluation):
                done = {key for key, report in reports if report.result is not None}
                waiting = [stage for stage in waiting if stage.key not in done]
                yield reports
        except torch.OutOfMemoryError:
            if len(together) == 1:
                raise
            size = (len(together) + 1) // 2
        if device.type == "cuda":
            gc.collect()  # the exception kept tensors on the device alive
            torch.cuda.empty_cache()


def _train_together(
    stages: Sequence[TrainingStage], data: PackData, storage: Storage, device: torch.device, eager_checkpoints: bool
) -> Iterator[Reports]:
    remaining = _restored_or_started(stages, data, storage, device)
    here = provenance(device)
    for member in remaining:
        before = member.progress.trained_with
        member.progress.trained_with = [*(session for session in before if session != here), here]
    group: list[_Member] = []
    pack: TrainingPack | None = None
    saved_at, saving_s = time.monotonic(), _expected_saving_s(remaining)
    while remaining:
        # The members furthest behind continue; a group that catches up with others merges with them.
        behind = [m for m in remaining if m.progress.step == min(other.progress.step for other in remaining)]
        if pack is None or behind != group:
            if pack is not None:
                for member, state in zip(group, pack.states(), strict=True):
                    member.state = state
            group = behind
            pack = _put_on_device(group, data, device)
        _train_interval(pack, group, data)
        is_due = eager_checkpoints or time.monotonic() - saved_at >= max(
            CHECKPOINT_INTERVAL_S, saving_s / CHECKPOINT_TIME_SHARE
        )
        reports = []
        if any(member.is_at_end for member in group):
            reports += _finish(pack, group, data, storage)
            remaining = [member for member in remaining if not member.is_at_end]
        unfinished = [not member.is_at_end for member in group]
        if is_due and any(unfinished):
            saving_started = time.monotonic()
            for member, state in zip(group, pack.states(), strict=True):
                if not member.is_at_end:
                    ckpt.save_checkpoint(storage, member.stage.key, state, member.progress)
                    reports.append(member.news())
            saved_at = time.monotonic()
            saving_s = saved_at - saving_started
        if reports:
            yield reports


def _restored_or_started(
    stages: Sequence[TrainingStage], data: PackData, storage: Storage, device: torch.device
) -> list[_Member]:
    """Every stage at its last whole checkpoint, or at its start."""
    saved = side_by_side(lambda stage: ckpt.load_checkpoint(storage, stage.key), stages, device)
    fresh = [stage for stage, tensors in zip(stages, saved, strict=True) if tensors is None]
    starts = first_starts([stage for stage in fresh if stage.parent is None], device)

    def member(place: int) -> _Member:
        stage, restored = stages[place], saved[place]
        if restored is not None:
            return _Member(place, stage, restored[1], restored[0])
        if stage.parent is not None:
            return _started_from_parent(place, stage, data, storage)
        weights, measured = starts[stage]
        started = _Member(place, stage, StageProgress(), weights)
        _record(started.progress, stage.first_step, measured)
        return started

    return side_by_side(member, range(len(stages)), device)


def _started_from_parent(place: int, stage: TrainingStage, data: PackData, storage: Storage) -> _Member:
    assert stage.parent is not None
    parent_result = load_result(storage, stage.parent.key)
    weights = ckpt.load_weights(storage, stage.parent.key)
    if parent_result is None or weights is None:
        raise ParentStageMissing(f"stage {stage.parent.key}, from which {stage.key} starts, is missing or altered")
    parent = blank_model(stage.parent)
    parent.load_state_dict(weights)
    model, measured = initial_model(stage, parent)
    state = model.state_dict()
    if stage.carries_moments:
        moments = ckpt.load_part(storage, stage.parent.key, MOMENTS)
        if moments is None:
            raise ParentStageMissing(f"the moments of stage {stage.parent.key} are missing or altered")
        state |= carried_moments(stage, state, moments)
    member = _Member(place, stage, StageProgress(initial_loss=parent_result.initial_loss), state)
    images = data.of([place]).normalised(data.validation.images[None, :TRANSFER_IMAGES])[0]
    measured[TRANSFER_LOGIT_ERROR] = _error_of_transfer(parent, model, images)
    _record(member.progress, stage.first_step, measured)
    return member


def _expected_saving_s(members: Sequence[_Member]) -> float:
    """The seconds that the first checkpoint of all members is expected to take, which saves weights and moments."""
    of_weights = sum(tensor.nbytes for name, tensor in members[0].state.items() if "/" not in name)
    return (1 + len(MOMENT_NAMES)) * of_weights * len(members) / EXPECTED_BYTES_PER_S


def _error_of_transfer(parent: nn.Module, model: nn.Module, images: Tensor) -> float:
    models = [module.to(images.device).eval() for module in (parent, model)]
    error = logit_error(models[0], models[1], images)
    model.cpu()
    return error


def _put_on_device(group: Sequence[_Member], data: PackData, device: torch.device) -> TrainingPack:
    members = [member.place for member in group]
    pack = TrainingPack([m.stage for m in group], data.of(members), [m.state for m in group], device)
    fresh = [member.progress.step == 0 and member.stage.parent is not None for member in group]
    if any(fresh):
        for member, is_fresh, (_, accuracy) in zip(group, fresh, pack.evaluate(data.validation), strict=True):
            if is_fresh:
                _record(member.progress, member.stage.first_step, {TRANSFER_VAL_ACCURACY: accuracy})
    return pack


def _train_interval(pack: TrainingPack, group: Sequence[_Member], data: PackData) -> None:
    """Trains up to the next evaluation, evaluates, records, and notes which members have diverged."""
    started = time.monotonic()
    measured = pack.train(group[0].progress.step)
    validated = pack.evaluate(data.validation)
    seconds = (time.monotonic() - started) / len(group)
    for number, member in enumerate(group):
        member.progress.seconds += seconds
        _record_interval(member, measured, number, *validated[number])


def _record_interval(member: _Member, measured: Measured, number: int, val_loss: float, val_accuracy: float) -> None:
    """Records a member's interval. A member has diverged at the first step whose loss or gradient is not finite."""
    stage, progress = member.stage, member.progress
    # Contiguous, so that a mean is summed in the same order whatever the size of the pack.
    losses, norms = measured.losses[:, number].contiguous(), measured.norms[:, number].contiguous()
    first, last = progress.step, progress.step + len(losses)
    if progress.initial_loss is None:
        progress.initial_loss = float(losses[0])
    finite = torch.isfinite(losses) & torch.isfinite(norms)
    num_finite = len(finite) if finite.all() else int((~finite).int().argmax())
    early = norms[: max(0, min(num_finite, EARLY_STEPS - first))].tolist()
    for step, norm in enumerate(early, stage.first_step + first):
        _record(progress, step, {EARLY_GRAD_NORM: norm})
    progress.stability.update(
        losses[:num_finite].tolist(), norms[:num_finite].tolist(), first, stage.steps, progress.initial_loss
    )
    if num_finite < len(finite):
        member.diverged_step = stage.first_step + first + num_finite
        progress.step = first + num_finite + 1
        return
    progress.step = last
    images_seen = len(losses) * stage.trial.training.batch_size
    interval = {
        TRAIN_LOSS: float(losses.mean()),
        TRAIN_ACCURACY: float(measured.correct[number]) / images_seen,
        LEARNING_RATE: rate_at(stage, last - 1),
        GRAD_NORM: float(norms.mean()),
        # Images of the whole pack: the rate at which the device trains this model.
        IMAGES_PER_SECOND: measured.losses.shape[1] * images_seen / measured.seconds,
        VAL_LOSS: val_loss,
        VAL_ACCURACY: val_accuracy,
    }
    _record(progress, stage.first_step + last, interval)


def _finish(pack: TrainingPack, group: Sequence[_Member], data: PackData, storage: Storage) -> Reports:
    """Saves the results of the members that have reached their end."""
    tested = pack.evaluate(data.test) if any(m.is_at_end and m.diverged_step is None for m in group) else None
    reports = []
    moments = pack.moments() if group[0].stage.phase == CONVOLUTION else [None] * len(group)
    for number, (member, weights) in enumerate(zip(group, pack.weights(), strict=True)):
        if member.is_at_end:
            result = _result(member, tested[number][1] if tested is not None else math.nan)
            ckpt.save_result(storage, member.stage.key, weights, result, moments[number])
            reports.append(member.news(result))
    return reports


def _parts(stage: TrainingStage) -> tuple[str, ...]:
    """The parts of a stage that must be there for it to be done. A convolution phase that an earlier version trained
    has no moments; it is trained again only if it is asked for, for a stage that carries them over."""
    return (WEIGHTS, MOMENTS) if stage.phase == CONVOLUTION else (WEIGHTS,)


def _result(member: _Member, test_accuracy: float) -> StageResult:
    """The result of a member. A loss that ends above the trial's first one, by a margin, counts as diverged at the last
    step."""
    stage, progress, diverged_step = member.stage, member.progress, member.diverged_step
    assert progress.initial_loss is not None
    end = stage.last_step if diverged_step is None else diverged_step
    _record(progress, end, progress.stability.measured(stage.first_step))
    if diverged_step is None:
        name = CONVOLUTION_TEST_ACCURACY if stage.phase == CONVOLUTION else TEST_ACCURACY
        _record(progress, stage.last_step, {name: test_accuracy})
        final_loss = last_value(progress.points, TRAIN_LOSS)
        assert final_loss is not None
        if final_loss > DIVERGENCE_MARGIN * progress.initial_loss:
            diverged_step = stage.last_step
    return StageResult(
        status=STATUS_OK if diverged_step is None else STATUS_DIVERGED,
        initial_loss=progress.initial_loss,
        seconds=progress.seconds,
        device=progress.trained_with[-1].device or "",
        points=progress.points,
        diverged_step=diverged_step,
        trained_with=tuple(progress.trained_with),
    )


def _record(progress: StageProgress, step: int, measured: Mapping[str, float]) -> None:
    """Adds finite values. A value that is not finite means divergence, which the result holds separately."""
    now = time.time_ns() // 1_000_000
    progress.points += [(name, step, value, now) for name, value in measured.items() if math.isfinite(value)]
