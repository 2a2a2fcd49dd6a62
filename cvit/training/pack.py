"""Optimiser steps of a pack: several trainings of equal shapes, fused into one on their device.

The draws and learning rates of a range of steps go to the device at once, as tables with a row per step. A step reads
its row, trains every member, writes its measurements into other tables and moves on to the next row, without waiting
for anything. On a GPU one step (one of each reading, see `cvit.training.readings`) is captured as a CUDA graph and then
replayed, because otherwise the hundreds of kernels of a small model would be launched more slowly than they run. If the
pack trains for long, it is compiled too (`cvit.training.compiling`).

A member whose loss or gradient is not finite stops moving. No operation mixes members, so the others are not affected.
"""

import math
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvit.data.augment import apply_augmentation, draws_per_image
from cvit.init.registry import blank_model
from cvit.models.pack import FusedModels
from cvit.stages import TrainingStage
from cvit.training import compiling
from cvit.training.batches import CHANGES, LabelledImages, PackData, draw_batches
from cvit.training.groups import MOMENT_NAMES, groups_of
from cvit.training.mixing import partners
from cvit.training.optimizer import AdamW
from cvit.training.readings import Reading, readings_of
from cvit.training.regularisation import Draws, Regularisation
from cvit.training.schedule import rate_at

EVALUATION_BATCH_SIZE = 500
LARGEST_ATTENTION = 2**25
"""The most entries of the attention matrices of one layer in an evaluation batch on a CPU: 128 MiB."""
TABLE_STEPS = 128
"""The number of steps whose draws are on the device at a time."""
_STEPS_BEFORE_CAPTURE = 3
"""The number of steps before a CUDA graph is captured, to warm up libraries and allocator."""
_LEAST_REPLAYS = 30
"""The least number of replays that is worth a capture, which takes about as long as a few steps."""

START = "start"
"""The weights that decay pulls towards, saved under `start/<name>` where that is not zero."""

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Measured:
    """Measurements over consecutive steps, on the CPU: training losses and gradient norms before clipping, both
    (S, M), the images classified correctly, (M,), and the time in seconds."""

    losses: Tensor
    norms: Tensor
    correct: Tensor
    seconds: float


class TrainingPack:
    """Members at the same step of stages of equal shape, on a device."""

    def __init__(
        self, stages: Sequence[TrainingStage], data: PackData, states: Sequence[Tensors], device: torch.device
    ) -> None:
        """
        Args:
            stages: the stages of the members, of one `shape`.
            data: the data of the members, in the same order.
            states: for each member, weights by parameter name and, if there are any yet, the optimiser's moments under
                `exp_avg/<name>` and `exp_avg_sq/<name>`, and the weights that decay pulls towards under `start/<name>`,
                else the weights themselves.
        """
        self.stages, self._data, self._device = tuple(stages), data, device
        self._models = FusedModels(blank_model(stages[0]), len(stages), device)
        self._readings = readings_of(stages[0], self._models)
        names = [name for name, _ in self._models.model.named_parameters()]
        groups = [groups_of(stage, names) for stage in stages]
        self._optimizer = AdamW(self._models, [stage.trial.training for stage in stages], groups)
        for member, state in enumerate(states):
            self._models.put(member, self._models.matrix, state)
            for moment, matrix in self._optimizer.moments.items():
                if saved := _saved_under(moment, state):
                    self._models.put(member, matrix, saved)
        self._start = self._starts(states)
        if self._start is not None:
            self._optimizer.decay_towards(self._start)
        smoothing = [stage.trial.training.label_smoothing for stage in stages]
        self._label_smoothing = torch.tensor(smoothing, device=device)[:, None]
        self._is_augmented = any(stage.trial.data.augmentation != "none" for stage in stages)
        self._regularisation = Regularisation(stages, data.train.images, TABLE_STEPS, device)
        members, batch_size = len(stages), stages[0].trial.training.batch_size

        def table(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(TABLE_STEPS, members, *shape, dtype=dtype, device=device)

        self._places = table(batch_size, dtype=torch.int64)
        self._changes = table(batch_size, draws_per_image(data.train.shape), dtype=CHANGES)
        self._factors = table(self._optimizer.num_groups, 3)
        self._losses, self._norms = table(), table()
        self._row = torch.zeros(1, dtype=torch.int64, device=device)
        self._correct = torch.zeros(members, dtype=torch.int64, device=device)
        self._is_moving = torch.ones(members, 1, dtype=torch.bool, device=device)
        self._drawn: tuple[range, tuple[Tensor, Tensor], Draws] | None = None
        self._graphs: dict[Reading, torch.cuda.CUDAGraph] = {}
        self._update, self._is_compiled, self._step_seconds = self._optimizer.step, False, 0.0

    def train(self, first: int) -> Measured:
        """Takes the steps from `first`, counted within the stage, to the next evaluation; waits for the device only at
        the end."""
        started = time.monotonic()
        losses, norms = [], []
        self._correct.zero_()
        self._models.model.train()
        steps, end = self._stretch(first), self.stages[0].next_evaluation(first)
        if self._device.type == "cuda":
            self._compile_if_it_pays(first)
        while steps and steps.stop <= end:
            self._fill_tables(steps)
            self._take(steps)
            losses.append(self._losses[: len(steps)].clone())
            norms.append(self._norms[: len(steps)].clone())
            steps = self._stretch(steps.stop)
            self._draw(steps)  # while the device is busy
        measured = torch.cat(losses).cpu(), torch.cat(norms).cpu(), self._correct.cpu()
        seconds = time.monotonic() - started
        self._step_seconds = seconds / len(measured[0])
        return Measured(*measured, seconds)

    @torch.inference_mode()
    def evaluate(self, images: LabelledImages) -> list[tuple[float, float]]:
        """Mean cross-entropy and accuracy in [0, 1] of every member."""
        self._models.model.eval()
        loss = torch.zeros(len(self.stages), device=self._device)
        correct = torch.zeros_like(loss)
        batch_size = self._evaluation_batch_size()
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            logits = self._logits(self._models.model, self._data.normalised(images.images[None, batch]))
            labels = images.labels[None, batch].expand(len(self.stages), -1)
            losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            loss += losses.view(labels.shape).sum(dim=1)
            correct += (logits.argmax(-1) == labels).sum(dim=1)
        totals = torch.stack([loss, correct]).cpu() / len(images)
        return [(float(loss), float(accuracy)) for loss, accuracy in totals.T]

    def states(self) -> list[dict[str, Tensor]]:
        """Every member's weights, moments and, if decay pulls towards it, start on the CPU, in the form of the
        constructor's `states`."""
        states = [weights | moments for weights, moments in zip(self.weights(), self.moments(), strict=True)]
        if self._start is not None:
            for stage, state, start in zip(self.stages, states, self._models.taken(self._start), strict=True):
                if stage.decays_towards_start:
                    state |= _under(START, start)
        return states

    def moments(self) -> list[dict[str, Tensor]]:
        """Every member's moments on the CPU, in the form of the constructor's `states`."""
        mean, square = (self._models.taken(self._optimizer.moments[moment]) for moment in MOMENT_NAMES)
        both = zip(mean, square, strict=True)
        return [_under(MOMENT_NAMES[0], of_mean) | _under(MOMENT_NAMES[1], of_square) for of_mean, of_square in both]

    def weights(self) -> list[dict[str, Tensor]]:
        """Every member's weights by parameter name, on the CPU."""
        return self._models.taken(self._models.matrix)

    def _starts(self, states: Sequence[Tensors]) -> Tensor | None:
        """The weights that decay pulls each member towards, (M, P): zero unless it asks for its start. None if no
        member does."""
        if not any(stage.decays_towards_start for stage in self.stages):
            return None
        starts = torch.zeros_like(self._models.matrix)
        for member, (stage, state) in enumerate(zip(self.stages, states, strict=True)):
            if stage.decays_towards_start:
                self._models.put(member, starts, _saved_under(START, state) or state)
        return starts

    def _stretch(self, first: int) -> range:
        """The steps from `first` on that fit the tables, up to the next evaluation."""
        stage = self.stages[0]
        return range(first, min(first + TABLE_STEPS, stage.next_evaluation(first)) if first < stage.steps else first)

    def _fill_tables(self, steps: range) -> None:
        if self._drawn is None or self._drawn[0] != steps:
            self._draw(steps)
        assert self._drawn is not None
        factors = [
            self._optimizer.coefficients([rate_at(stage, step) for stage in self.stages], step) for step in steps
        ]
        tables = (self._places, self._changes, self._factors)
        for table, rows in zip(tables, (*self._drawn[1], torch.tensor(factors)), strict=True):
            table[: len(steps)].copy_(rows)
        self._regularisation.fill(self._drawn[2])
        self._row.zero_()

    def _draw(self, steps: range) -> None:
        """Draws ahead of time; steps are counted within the stage."""
        if steps:
            first = self.stages[0].first_step
            of_trial = range(first + steps.start, first + steps.stop)
            self._drawn = steps, draw_batches(self._data, self.stages, of_trial), self._regularisation.draw(of_trial)

    def _take(self, steps: range) -> None:
        """Takes the steps, by CUDA graphs if enough of the stage's steps remain; they are counted within the stage."""
        stage, turns = self.stages[0], len(self._readings)
        readings = [self._readings[(stage.first_step + step) % turns] for step in steps]
        if self._device.type == "cuda" and len(self._graphs) < turns and self._is_worth_a_capture(steps.start):
            eager, readings = readings[:_STEPS_BEFORE_CAPTURE], readings[_STEPS_BEFORE_CAPTURE:]
            self._capture(eager)
        for reading in readings:
            if reading in self._graphs:
                self._graphs[reading].replay()
            else:
                self._step(reading)

    def _is_worth_a_capture(self, first: int) -> bool:
        return self.stages[0].steps - first >= _STEPS_BEFORE_CAPTURE + len(self._readings) * _LEAST_REPLAYS

    def _capture(self, eager: Sequence[Reading]) -> None:
        """Takes a few steps without a graph, on a stream of their own as capturing requires, then captures a step of
        each of their readings, which does not execute it.

        The graphs share their memory: they run one after the other, and nothing inside it outlives a step.
        """
        stream = _capture_stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for reading in eager:
                self._first_step(reading)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        for reading in dict.fromkeys(eager):
            if reading not in self._graphs:
                graph = torch.cuda.CUDAGraph()
                pool = next((other.pool() for other in self._graphs.values()), None)
                with torch.cuda.graph(graph, pool=pool, stream=stream):
                    self._step(reading)
                self._graphs[reading] = graph

    def _compile_if_it_pays(self, first: int) -> None:
        seconds_left = (self.stages[0].steps - first) * self._step_seconds
        if self._is_compiled or not self._is_worth_a_capture(first):
            return
        if compiling.pays(self._kind, seconds_left):
            self._update, self._is_compiled = compiling.compile_steps(self._readings, self._optimizer), True
            self._graphs.clear()

    def _first_step(self, reading: Reading) -> None:
        """Takes a step that may be the first one to run what is to be compiled. If that fails, nothing of the step has
        been taken, and it is taken as it is."""
        try:
            self._step(reading)
        except torch.OutOfMemoryError:
            raise
        # Whatever a compiler raises; an error of the step itself is raised again.
        except Exception as error:
            if not self._is_compiled:
                raise
            compiling.undo(self._readings, error)
            self._update, self._is_compiled = self._optimizer.step, False
            self._step(reading)
        if self._is_compiled:
            compiling.succeeded(self._kind)

    @property
    def _kind(self) -> Hashable:
        """A value that is equal for packs whose steps are compiled alike."""
        return self.stages[0].cost_kind, len(self.stages)

    def _step(self, reading: Reading) -> None:
        images, labels = self._batch()
        inputs = self._regularisation.changed(self._data.normalised(images), self._row)
        logits = self._logits(reading.model, inputs, self._regularisation.branch_scales(self._row))
        losses = _cross_entropy(logits, labels, self._label_smoothing)
        weights = self._regularisation.label_weights(self._row)
        if weights is not None:
            others, own = partners(labels), weights[:, 0]
            losses = own * losses + (1 - own) * _cross_entropy(logits, others, self._label_smoothing)
            labels = torch.where(weights >= 0.5, labels, others)  # those that the accuracy counts
        is_partial = reading.columns is not None
        gradients = torch.autograd.grad(losses.sum(), self._models.parameters, materialize_grads=is_partial)
        gradient = self._models.flatten(gradients)
        losses, norms = losses.detach(), torch.linalg.vector_norm(gradient, dim=1)
        self._is_moving &= (torch.isfinite(losses) & torch.isfinite(norms))[:, None]
        factors = self._factors.index_select(0, self._row)[0]
        is_moving = self._is_moving if reading.columns is None else self._is_moving & reading.columns
        self._update(self._models.matrix, gradient, norms[:, None], factors, is_moving)
        self._losses.index_copy_(0, self._row, losses[None])
        self._norms.index_copy_(0, self._row, norms[None])
        self._correct += (logits.detach().argmax(-1) == labels).sum(dim=1)
        self._row += 1

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Augmented images (M, B, C, *shape), not normalised yet, and labels (M, B) of the step."""
        train = self._data.train
        places = self._places.index_select(0, self._row)[0]
        images = train.images.index_select(0, places.flatten())
        if self._is_augmented:
            images = apply_augmentation(images, self._changes.index_select(0, self._row).flatten(0, 2))
        images = self._regularisation.augmented(images, self._row)
        return images.unflatten(0, places.shape), train.labels[places]

    def _logits(self, model: nn.Module, images: Tensor, branch_scales: Tensor | None = None) -> Tensor:
        """Logits (M, B, num_classes), float32. The cache of casts is off because a captured graph must contain them."""
        scales = {} if branch_scales is None else {"branch_scales": branch_scales}
        is_half = self.stages[0].trial.training.precision == "bfloat16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=is_half, cache_enabled=False):
            return model(images, **scales).float()

    def _evaluation_batch_size(self) -> int:
        """The size of an evaluation batch. On a CPU it is limited, because attention matrices that are far larger than
        the cache are slower than more batches."""
        m = self.stages[0].trial.model
        attention = len(self.stages) * m.num_heads * math.prod(m.grid) ** 2
        most = LARGEST_ATTENTION // attention if self._device.type == "cpu" else EVALUATION_BATCH_SIZE
        return max(1, min(EVALUATION_BATCH_SIZE, most))


@lru_cache(maxsize=1)
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which a process captures every graph: cuBLAS keeps a workspace of 67 MB for each stream."""
    return torch.cuda.Stream(device)


def _saved_under(folder: str, state: Tensors) -> dict[str, Tensor]:
    """The tensors of a state under `<folder>/<name>`, by name."""
    prefix = f"{folder}/"
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _under(folder: str, tensors: Tensors) -> dict[str, Tensor]:
    """The inverse of `_saved_under`."""
    return {f"{folder}/{name}": tensor for name, tensor in tensors.items()}


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: Tensor) -> Tensor:
    """Mean cross-entropy of each member, (M,), with its own label smoothing (M, 1).

    Args:
        logits: (M, B, num_classes).
        labels: (M, B).
    """
    log_probabilities = logits.log_softmax(dim=-1)
    hard = -log_probabilities.gather(-1, labels[..., None])[..., 0]
    return (hard - smoothing * (hard + log_probabilities.mean(dim=-1))).mean(dim=1)
