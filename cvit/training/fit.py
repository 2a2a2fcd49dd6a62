"""Gradient descent that fits an attention layer to a given convolution, to compare its error with theorem 2's bound.

With attention matrices A_h that do not depend on the content, a layer computes Σ_h A_h ⊗ W_h, and the convolution is
Σ_δ S_δ ⊗ M_δ. The relative position biases are learned, as in `cvit.models.attention`: A_h is the softmax of one bias
per offset and one for the zero slot. For given attention, the best value–output maps W_h solve a linear least-squares
problem; it is solved exactly in every step (variable projection; Golub and Pereyra, 1973), so heads may have any width.
The distance is the Frobenius norm of the difference of the operators: the root of the expected squared error on white
noise.

Attention in windows is zero outside them; the bound then has the energy that crosses them too. A layer that takes
tokens to smaller ones, as a stride does, has value and output maps of that shape; its attention is the same.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cvit.fits import ExpressivityConfig, SingleStage
from cvit.geometry import (
    Grid,
    num_relative_positions,
    occurs,
    patch_places,
    relative_position,
    relative_position_index,
)
from cvit.provenance import provenance
from cvit.randomness import generator
from cvit.results import Point, Report, StageResult, load_result
from cvit.storage import Storage
from cvit.theorem.counts import Options, Size, per_axis
from cvit.theorem.kernel import error_bound, grid_of, offsets, patch_maps
from cvit.theorem.windows import window_error
from cvit.training import checkpoint as ckpt
from cvit.training.schedule import learning_rate
from cvit.vocabulary import EXPRESSIVITY_BOUND, EXPRESSIVITY_ERROR, STATUS_OK

MEASUREMENTS = 10
"""The number of errors measured during a fit, beside the one at its start."""
_TIMED_STEPS = 20
_SLOW_STEP_S = 1.0
"""From here on, one step is timed and no more, start and end included."""
_RIDGE = 1e-13
"""Relative ridge of the least squares inside the loss, because two heads may become equal."""
_LEAST_SQUARED_ERROR = 1e-14
"""The least squared error that the loss distinguishes: below it is rounding."""


@dataclass(frozen=True)
class Target:
    """A convolution on patches as Σ_δ S_δ ⊗ M_δ, reduced to the parts that distances from it depend on.

    Attributes:
        shifts: (N², R) float64, the shift matrices S_δ as columns, for the offsets that occur on the grid.
        basis: (R, R) float64, basis · basisᵀ is the Gram matrix of the M_δ, scaled to a convolution of norm 1.
        grid: patches along each axis, N in all.
        window_size: the side of the windows to which attention is confined, in patches; None: no windows.
        reachable: the share of the convolution's energy between patches that may attend to each other.
    """

    shifts: Tensor
    basis: Tensor
    grid: Grid
    window_size: int | None = None
    reachable: float = 1.0


def kernel(config: ExpressivityConfig) -> Tensor:
    """The convolution's kernel (fit_channels, fit_channels, K, K), standard normal, float64; the same for all seeds."""
    shape = (config.fit_channels, config.fit_channels, *config.kernel_shape)
    return torch.randn(shape, generator=generator(0, "expressivity/kernel"), dtype=torch.float64)


def target(weight: Tensor, patch_size: Size, image_size: Size, **options: Unpack[Options]) -> Target:
    """The convolution with a kernel (D_out, C, K_1, ..., K_d) and options on the patches of an image."""
    kernel_size = tuple(weight.shape[2:])
    patch = per_axis(patch_size, len(kernel_size))
    grid = grid_of(image_size, patch)
    position = relative_position_index(grid).flatten()
    spanned = zip(offsets(kernel_size, patch, **options), patch_maps(weight.double(), patch, **options), strict=True)
    terms = [(relative_position(offset, grid), matrix) for offset, matrix in spanned if occurs(offset, grid)]
    shifts = torch.stack([(position == place).double() for place, _ in terms], dim=1)
    maps = torch.stack([matrix.flatten() for _, matrix in terms])
    basis = torch.linalg.qr(maps.T, mode="r").R.T
    return Target(shifts, basis / (shifts @ basis).norm(), grid)


def attention(logits: Tensor, grid: Grid, window_size: int | None = None) -> Tensor:
    """The attention matrices as columns (N², H), without the zero slot.

    Args:
        logits: (H, R + 1) biases: a column for each of the grid's R relative positions, then one for the zero slot.
        window_size: the side of windows, in patches, outside which attention is zero; None: no windows.
    """
    index = F.pad(relative_position_index(grid), (0, 1), value=num_relative_positions(grid))
    scores = logits[:, index]
    if window_size is not None:
        is_outside = F.pad(~_is_in_window(grid, window_size), (0, 1), value=False)
        scores = scores.masked_fill(is_outside, -math.inf)
    return scores.softmax(dim=-1)[..., :-1].flatten(1).T


def _is_in_window(grid: Grid, window_size: int) -> Tensor:
    """(N, N): True where two patches lie in one window."""
    windows = patch_places(grid) // window_size
    return (windows[:, None] == windows[None, :]).all(dim=-1)


def in_windows(goal: Target, window_size: int) -> Target:
    """A convolution to which attention in windows is fitted."""
    inside = goal.shifts * _is_in_window(goal.grid, window_size).flatten()[:, None]
    return dataclasses.replace(goal, window_size=window_size, reachable=float((inside @ goal.basis).square().sum()))


def target_of(config: ExpressivityConfig) -> Target:
    """The convolution of a configuration."""
    goal = target(kernel(config), config.patch_size, config.fit_image_size, **config.options)
    return goal if config.window_size is None else in_windows(goal, config.window_size)


def relative_error(logits: Tensor, goal: Target) -> float:
    """The error of the best layer with this attention, relative to the convolution's norm, by orthogonal projection."""
    columns = attention(logits, goal.grid, goal.window_size)
    return float((goal.shifts - projection(columns, goal)).matmul(goal.basis).norm())


def projection(columns: Tensor, goal: Target) -> Tensor:
    """The shifts of a convolution, projected on the span of columns (N², n)."""
    return columns @ torch.linalg.lstsq(columns, goal.shifts, driver="gelsd").solution


def log_squared_error(columns: Tensor, goal: Target) -> Tensor:
    """The logarithm of the squared relative error of the best maps for columns (N², n), whose gradient does not vanish
    while the attention sharpens. What crosses windows is left out, as no attention changes it."""
    gram = columns.T @ columns
    ridge = _RIDGE * gram.diagonal().mean().clamp_min(1e-30) * torch.eye(len(gram), dtype=gram.dtype)
    overlap = columns.T @ (goal.shifts @ goal.basis)
    explained = (overlap * torch.linalg.solve(gram + ridge, overlap)).sum()
    return (goal.reachable - explained).clamp_min(_LEAST_SQUARED_ERROR).log()


def _loss(logits: Tensor, goal: Target) -> Tensor:
    return log_squared_error(attention(logits, goal.grid, goal.window_size), goal)


def least_error(config: ExpressivityConfig) -> float:
    """The theorem's bound: no layer with so many heads, and in such windows, comes closer to the convolution."""
    sizes = (kernel(config), config.patch_size, config.num_heads, config.fit_image_size)
    if config.window_size is None:
        return error_bound(*sizes, **config.options)
    return window_error(*sizes, config.window_size, **config.options)


def descend(config: ExpressivityConfig) -> tuple[list[Point], Tensor]:
    """Gradient descent (Adam, cosine schedule) on the attention of one layer.

    Returns:
        The measured errors and the bound; and the biases (num_heads, R + 1), for the grid's R relative positions and
        the zero slot.
    """
    goal = target_of(config)
    shape = (config.num_heads, num_relative_positions(goal.grid) + 1)
    draws = generator(config.seed, "expressivity/attention")
    logits = torch.randn(shape, generator=draws, dtype=torch.float64).requires_grad_()
    points = follow_gradient(logits, _loss, relative_error, goal, steps=config.fit_steps, rate=config.fit_learning_rate)
    points.append(point(EXPRESSIVITY_BOUND, config.fit_steps, least_error(config)))
    return points, logits.detach()


def follow_gradient(
    logits: Tensor,
    loss: Callable[[Tensor, Target], Tensor],
    error: Callable[[Tensor, Target], float],
    goal: Target,
    *,
    steps: int,
    rate: float,
) -> list[Point]:
    """Changes logits in place by gradient descent on a loss (Adam, cosine schedule); returns the measured errors."""
    optimizer = torch.optim.Adam([logits], lr=rate)
    points = [point(EXPRESSIVITY_ERROR, 0, error(logits.detach(), goal))]
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, rate, warmup_fraction=0.0)
        optimizer.zero_grad()
        loss(logits, goal).backward()
        optimizer.step()
        done = step + 1
        if done % max(1, steps // MEASUREMENTS) == 0 or done == steps:
            points.append(point(EXPRESSIVITY_ERROR, done, error(logits.detach(), goal)))
    assert all(math.isfinite(value) for _, _, value, _ in points)
    return points


Descent = Callable[[Any], tuple[list[Point], Tensor]]
"""The configuration of a fit → its measurements, and the biases that it ends with."""


def fit(stage: SingleStage[Any], storage: Storage, descent: Descent = descend) -> Iterator[Report]:
    """Fits attention from one random start and yields the result, or yields the result that the storage already has.

    A fit takes seconds, so it has no checkpoints: after an interruption it starts anew and ends the same.
    """
    result = load_result(storage, stage.key)
    if result is None:
        started = time.monotonic()
        points, logits = descent(stage.trial)
        seconds, here = time.monotonic() - started, provenance(torch.device("cpu"))
        result = StageResult(STATUS_OK, points[0][2], seconds, "cpu", points, trained_with=(here,))
        ckpt.save_result(storage, stage.key, {"relative_bias": logits}, result)
    yield Report(result.points, stage.steps, result)


def step_flops(stage: SingleStage[Any], descent: Descent = descend) -> float:
    """Floating-point operations of the matrix products of one step."""
    with FlopCounterMode(display=False) as counter:
        descent(dataclasses.replace(stage.trial, fit_steps=1))
    return float(counter.get_total_flops())


def step_seconds(stage: SingleStage[Any], descent: Descent = descend) -> float:
    """Seconds of one step, measured on a few steps, without the start and the end of a fit."""

    def seconds(steps: int) -> float:
        started = time.perf_counter()
        descent(dataclasses.replace(stage.trial, fit_steps=steps))
        return time.perf_counter() - started

    alone = seconds(1)
    if alone > _SLOW_STEP_S:
        return alone
    return max(0.0, seconds(1 + _TIMED_STEPS) - alone) / _TIMED_STEPS


def point(metric: str, step: int, value: float) -> Point:
    """A measurement at this time."""
    return metric, step, value, time.time_ns() // 1_000_000
