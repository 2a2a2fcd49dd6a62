"""Gradient descent on attention against the bound, and the error it reports against the dense operators."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from cvit.config import ConfigError
from cvit.fits import ExpressivityConfig, FitStage
from cvit.geometry import num_relative_positions
from cvit.results import Point, load_result
from cvit.storage import Storage
from cvit.theorem.counts import heads_needed
from cvit.training.fit import attention, descend, fit, kernel, relative_error, target
from cvit.vocabulary import EXPRESSIVITY_BOUND, EXPRESSIVITY_ERROR

CLOSE = 1e-4
"""What counts as having reached the convolution; descent gets below 1e-6."""


def last(points: Sequence[Point], metric: str) -> float:
    return [value for name, _, value, _ in points if name == metric][-1]


def reached_and_bound(**config: int) -> tuple[float, float]:
    points, _ = descend(ExpressivityConfig(**config))
    return last(points, EXPRESSIVITY_ERROR), last(points, EXPRESSIVITY_BOUND)


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
        ({"seed": -1}, "seed -1 must be at least 0"),
        ({"embed_dim": 8}, "unknown parameter 'embed_dim'; valid are kernel_size,"),
    ],
)
def test_an_impossible_fit_is_refused_in_one_line(flat: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ExpressivityConfig.from_flat(flat)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
