"""Gradient descent on attention against the bound, and the error it reports against the dense operators."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from cvit.analysis.statistics.fits import Case
from cvit.fits import ExpressivityConfig, FitStage
from cvit.geometry import num_relative_positions
from cvit.parameters import ConfigError
from cvit.results import Point, load_result
from cvit.storage import Storage
from cvit.theorem.counts import heads_needed
from cvit.training.fit import attention, descend, fit, kernel, least_error, relative_error, target, target_of
from cvit.vocabulary import EXPRESSIVITY_BOUND, EXPRESSIVITY_ERROR

CLOSE = 1e-4
"""What counts as having reached the convolution; descent gets below 1e-6."""


def last(points: Sequence[Point], metric: str) -> float:
    return [value for name, _, value, _ in points if name == metric][-1]


def reached_and_bound(**config: Any) -> tuple[float, float]:
    points, _ = descend(ExpressivityConfig(**config))
    return last(points, EXPRESSIVITY_ERROR), last(points, EXPRESSIVITY_BOUND)


def convolution_of(config: ExpressivityConfig) -> Tensor:
    """(N, N, C·P^d, C·(P/s)^d): the dense matrix of a configuration's convolution, from unit series, images or volumes,
    by query patch, key patch, input, output."""
    size = (config.fit_channels, *[config.fit_image_size] * config.dimensions)
    units = torch.eye(math.prod(size), dtype=torch.float64).unflatten(1, size)
    reach = config.dilation * (config.kernel_size - 1)
    before = reach if config.causal else reach // 2
    padded = F.pad(units, [before, reach - before] * config.dimensions)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[config.dimensions - 1]
    outputs = convolve(padded, kernel(config), stride=config.stride, dilation=config.dilation)

    def in_patches(images: Tensor, side: int) -> Tensor:
        for axis in range(config.dimensions):
            images = images.unfold(2 + axis, side, side)
        patches = images.flatten(2 + config.dimensions).movedim(1, -2)
        return patches.flatten(1, config.dimensions).flatten(2)  # (B, N, C·side^d)

    inputs = in_patches(units, config.patch_size)  # a permutation: unit image → its patch and place
    return torch.einsum("bki,bqo->qkio", inputs, in_patches(outputs, config.patch_size // config.stride))


def convolution_on_patches(weight: Tensor, patch_size: int, image_size: int) -> Tensor:
    """(N, N, P²C, P²D): the convolution's dense matrix from unit images, by query patch, key patch, input, output."""
    size = (weight.shape[1], image_size, image_size)
    units = torch.eye(math.prod(size), dtype=weight.dtype).unflatten(1, size)
    outputs = F.conv2d(F.pad(units, pad_same(weight)), weight)

    def in_patches(images: Tensor) -> Tensor:
        return F.unfold(images, patch_size, stride=patch_size).transpose(1, 2)  # (B, N, C·P²)

    inputs = in_patches(units)  # a permutation: unit image → its patch and place
    return torch.einsum("bki,bqo->qkio", inputs, in_patches(outputs))


def pad_same(weight: Tensor) -> list[int]:
    before = (weight.shape[-1] - 1) // 2
    return [before, weight.shape[-1] - 1 - before] * 2


@pytest.mark.parametrize(("kernel_size", "patch_size"), [(3, 1), (2, 1), (3, 2), (5, 2), (5, 1)])
def test_the_error_is_that_of_the_best_layer_as_dense_operators(kernel_size: int, patch_size: int) -> None:
    """Least squares over W_h on the operators themselves, without shifts, maps or any reduction."""
    config = ExpressivityConfig(kernel_size=kernel_size, patch_size=patch_size, fit_image_size=4, fit_channels=2)
    goal = target(kernel(config), patch_size, image_size=4)
    biases = torch.randn(3, num_relative_positions(goal.grid) + 1, dtype=torch.float64, generator=torch.manual_seed(0))
    convolution = convolution_on_patches(kernel(config), patch_size, image_size=4)
    columns = attention(biases, goal.grid)
    operator = convolution.flatten(2).flatten(0, 1)
    best = columns @ (torch.linalg.pinv(columns) @ operator)
    expected = float((best - operator).norm() / operator.norm())
    assert relative_error(biases, goal) == pytest.approx(expected, rel=1e-9)


KINDS: list[dict[str, int | bool]] = [
    {"dimensions": 1, "patch_size": 2},
    {"dimensions": 1, "patch_size": 2, "causal": True},
    {"dimensions": 1, "patch_size": 2, "dilation": 4, "fit_image_size": 12},
    {"dimensions": 1, "patch_size": 2, "dilation": 3, "fit_image_size": 12},
    {"dimensions": 1, "patch_size": 4, "kernel_size": 4, "stride": 2, "fit_image_size": 16},
    {"stride": 2, "patch_size": 2},
    {"causal": True, "patch_size": 2},
    {"dilation": 2, "patch_size": 1},
    {"dimensions": 3, "patch_size": 2, "causal": True, "fit_image_size": 4},
    {"window_size": 2},
    {"window_size": 3, "patch_size": 2, "causal": True},
]
"""Convolutions that are not the paper's, or attention in windows."""


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_error_and_the_bound_are_those_of_dense_operators(kind: dict[str, int | bool]) -> None:
    """The error by least squares over W_h on torch's own convolution; the bound by the singular values of its
    rearrangement, where attention cannot reach what crosses windows."""
    config = ExpressivityConfig.from_flat({"fit_image_size": 8, "fit_channels": 1, "num_heads": 2, **kind})
    operator = convolution_of(config).flatten(2).flatten(0, 1)
    goal = target_of(config)
    biases = torch.randn(2, num_relative_positions(goal.grid) + 1, dtype=torch.float64, generator=torch.manual_seed(0))
    columns = attention(biases, goal.grid, config.window_size)
    best = columns @ (torch.linalg.pinv(columns) @ operator)
    assert relative_error(biases, goal) == pytest.approx(float((best - operator).norm() / operator.norm()), rel=1e-9)
    inside = (attention(torch.zeros_like(biases), goal.grid, config.window_size)[:, :1] > 0).double()
    crossing, values = operator * (1 - inside), torch.linalg.svdvals(operator * inside)
    least = math.hypot(float(crossing.norm()), float(values[2:].norm())) / float(operator.norm())
    assert least_error(config) == pytest.approx(least, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_descent_needs_the_heads_that_the_theorem_counts_for_every_kind(kind: dict[str, int | bool]) -> None:
    """With as many the error is the bound's, which is zero but for windows; with one fewer it is above."""
    flat = {"fit_steps": 150, **kind}
    case = Case(**{"kernel_size": 3, "patch_size": 1, **{name: kind[name] for name in kind if name in Case._fields}})
    reached, bound = reached_and_bound(num_heads=case.heads, **flat)
    assert bound - 1e-12 <= reached <= bound + CLOSE
    assert (bound > 0.1) if case.window_size else bound == 0.0
    fewer, least = reached_and_bound(num_heads=case.heads - 1, **flat)
    assert bound + 100 * CLOSE < least <= fewer + 1e-12


def test_attention_in_windows_stays_inside_them() -> None:
    """Windows of 2 on a series of 5: {0, 1}, {2, 3}, {4}."""
    found = attention(torch.zeros(1, 10, dtype=torch.float64), (5,), window_size=2).unflatten(0, (5, 5))[..., 0]
    pair = torch.full((2, 2), 1 / 3, dtype=torch.float64)  # itself, the other, and the zero slot
    assert torch.allclose(found, torch.block_diag(pair, pair, torch.full((1, 1), 0.5, dtype=torch.float64)))


def test_attention_matrices_are_the_softmax_of_relative_biases_with_a_zero_slot() -> None:
    """On a 2×2 grid: offsets −1..1 each way, row by row, then the zero slot."""
    biases = torch.arange(10, dtype=torch.float64)[None]
    found = attention(biases, grid=(2, 2))[:, 0].reshape(4, 4)
    # Patch 0 is at the top left: itself is offset (0, 0), index 4; right 5; below 7; below right 8; zero slot 9.
    weights = torch.tensor([4.0, 5.0, 7.0, 8.0, 9.0], dtype=torch.float64).exp()
    assert torch.allclose(found[0], (weights / weights.sum())[:4], atol=1e-12)
    assert (found.sum(dim=1) < 1).all()


@pytest.mark.parametrize(("kernel_size", "patch_size"), [(3, 1), (3, 2), (3, 4), (5, 2), (2, 2)])
def test_descent_reaches_the_convolution_at_the_theorem_s_count(kernel_size: int, patch_size: int) -> None:
    heads = heads_needed(kernel_size, patch_size)
    reached, bound = reached_and_bound(kernel_size=kernel_size, patch_size=patch_size, num_heads=heads)
    assert bound == 0.0
    assert reached <= CLOSE


def test_so_it_does_with_25_heads() -> None:
    reached, bound = reached_and_bound(kernel_size=5, patch_size=1, num_heads=25)
    assert bound == 0.0
    assert reached <= CLOSE


@pytest.mark.parametrize("num_heads", [1, 4, 8])
@pytest.mark.parametrize(("kernel_size", "patch_size"), [(3, 1), (3, 2), (3, 4), (5, 2)])
def test_with_fewer_heads_descent_stays_on_or_above_the_bound(
    kernel_size: int, patch_size: int, num_heads: int
) -> None:
    for seed in range(2):
        reached, bound = reached_and_bound(
            kernel_size=kernel_size, patch_size=patch_size, num_heads=num_heads, fit_steps=150, seed=seed
        )
        assert 100 * CLOSE < bound <= reached + 1e-12
        assert reached < 1.2 * bound, "descent is far from the best there is"


def test_more_heads_than_needed_do_no_harm() -> None:
    reached, bound = reached_and_bound(kernel_size=3, patch_size=2, num_heads=12)
    assert bound == 0.0
    assert reached <= CLOSE


def test_a_learning_rate_beyond_reason_gives_an_error_and_not_a_crash() -> None:
    points, _ = descend(ExpressivityConfig(num_heads=2, fit_steps=20, fit_learning_rate=1e6))
    assert 0 < last(points, EXPRESSIVITY_ERROR) <= 1


def test_restarts_fit_the_same_convolution_from_other_starts() -> None:
    configs = [ExpressivityConfig(seed=seed, fit_steps=5) for seed in range(2)]
    assert torch.equal(kernel(configs[0]), kernel(configs[1]))
    (first, biases), (second, others) = (descend(config) for config in configs)
    assert first[0][2] != second[0][2]
    assert not torch.equal(biases, others)


def test_a_fit_is_stored_once_and_its_biases_have_the_error_that_it_reports(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    stage = FitStage(ExpressivityConfig(num_heads=4, patch_size=2, fit_steps=30))
    (report,) = fit(stage, storage)
    assert report.result is not None and report.result == load_result(storage, stage.key)
    steps = [step for name, step, _, _ in report.points if name == EXPRESSIVITY_ERROR]
    assert steps == list(range(0, 31, 3))
    folder = tmp_path / "stages" / stage.key
    saved = safetensors.torch.load((folder / "weights.safetensors").read_bytes())["relative_bias"]
    goal = target(kernel(stage.trial), 2, stage.trial.fit_image_size)
    assert relative_error(saved, goal) == last(report.points, EXPRESSIVITY_ERROR)
    (again,) = fit(stage, storage)
    assert again.points == report.points, "times included: nothing was computed again"
    (folder / "result.json").write_text("torn")
    (anew,) = fit(stage, storage)
    assert [point[:3] for point in anew.points] == [point[:3] for point in report.points]


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"kernel_size": 0}, "kernel_size 0 must be at least 1"),
        ({"patch_size": 3}, "patch_size 3 must divide the image size 8: one of 1, 2, 4, 8"),
        ({"num_heads": 0}, "num_heads 0 must be at least 1"),
        ({"fit_steps": 0}, "fit_steps 0 must be at least 1"),
        ({"fit_channels": 0}, "fit_channels 0 must be at least 1"),
        ({"fit_image_size": 0}, "fit_image_size 0 must be at least 1"),
        ({"fit_learning_rate": math.nan}, "fit_learning_rate nan must be positive"),
        ({"dimensions": 4}, "dimensions 4 must be between 1 and 3"),
        ({"stride": 0}, "stride 0 must be at least 1"),
        ({"stride": 2}, "stride 2 must divide the patch size 1"),
        ({"dilation": 0}, "dilation 0 must be at least 1"),
        ({"dilation": 8}, "dilation 8 joins patches 8 apart, which an image of 8 pixels does not have: it takes a "),
        ({"window_size": 0}, "window_size 0 must be at least 1, or auto"),
        ({"dimensions": 3, "fit_image_size": 16}, "fit_image_size 16 gives 4096 patches of 1 pixels in 3 dimensions"),
        ({"seed": -1}, "seed -1 must be at least 0"),
        ({"embed_dim": 8}, "unknown parameter 'embed_dim'; valid are kernel_size,"),
    ],
)
def test_an_impossible_fit_is_refused_in_one_line(flat: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ExpressivityConfig.from_flat(flat)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
