"""Gradient descent on several layers of attention: its error against real layers, the bound, and the exact frontier."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cvit.analysis.statistics.fits import ZERO_ERROR
from cvit.deep_fits import MOST_TERMS, DeepFitStage, DepthConfig
from cvit.geometry import num_relative_positions, relative_position
from cvit.parameters import ConfigError
from cvit.results import Point, load_result
from cvit.storage import Storage
from cvit.tasks import task_named
from cvit.theorem.counts import axes_of, heads_by_layer
from cvit.theorem.depth import digits_along, tensor_train
from cvit.theorem.kernel import error_bound
from cvit.training.deep_fit import descend, kernel, products, relative_error
from cvit.training.fit import attention, fit, target
from cvit.vocabulary import EXPRESSIVITY_BOUND, EXPRESSIVITY_ERROR
from tests.support.convolutions import randn

SHARP = 60.0
"""A logit so far above the others that a softmax of it is one, to rounding."""


def last(points: list[Point], metric: str) -> float:
    return [value for name, _, value, _ in points if name == metric][-1]


def causal_operator(weight: Tensor, length: int) -> Tensor:
    """(N, C, N, D): the causal convolution of unit series, which torch computes."""
    channels = weight.shape[1]
    units = torch.eye(length * channels, dtype=weight.dtype).view(-1, length, channels).transpose(1, 2)
    outputs = F.conv1d(F.pad(units, (weight.shape[2] - 1, 0)), weight)
    return outputs.transpose(1, 2).reshape(length, channels, length, -1)


@pytest.mark.parametrize(("depth", "num_heads"), [(1, 2), (2, 1), (2, 2), (3, 1)])
def test_the_error_is_that_of_real_layers_with_skip_connections(depth: int, num_heads: int) -> None:
    """The layers are applied one after another to unit series. Their maps come from least squares on the operator
    itself, cut into layers by a tensor train: they have the error that the fit reports, and no other maps have less."""
    length, config = 5, DepthConfig(kernel_size=4, depth=depth, num_heads=num_heads, fit_image_size=5, fit_channels=2)
    goal = target(kernel(config), 1, length, **config.options)
    biases = randn(depth, num_heads, num_relative_positions((length,)) + 1, seed=depth)
    wanted = causal_operator(kernel(config), length)

    each = [[*attention(layer, (length,)).T.view(-1, length, length), torch.eye(length).double()] for layer in biases]
    columns = torch.stack([math_product(choice) for choice in choices(each)]).flatten(1).T
    rows = wanted.permute(2, 0, 1, 3).flatten(2).flatten(0, 1)  # (query, key) × (in, out)
    maps = torch.linalg.lstsq(columns, rows, driver="gelsd").solution
    cores = tensor_train(maps.view(*[num_heads + 1] * depth, 2, 2).movedim(-2, 0))
    tokens = torch.eye(length * 2, dtype=torch.float64).view(-1, length, 2)
    for matrices, core in zip(each, cores, strict=True):
        # A layer: each head mixes the tokens, then maps them; the last one is the skip connection.
        tokens = torch.stack([a @ tokens @ w for a, w in zip(matrices, core, strict=True)]).sum(0)
    error = float((tokens.view_as(wanted) - wanted).norm() / wanted.norm())
    assert relative_error(biases, goal) == pytest.approx(error, rel=1e-9)
    assert error < 1 and error >= error_bound(kernel(config), 1, config.terms, length, **config.options)


def choices(each: list[list[Tensor]]) -> list[list[Tensor]]:
    """One matrix of each layer, the first layer's slowest."""
    return [[]] if not each else [[one, *others] for one in each[0] for others in choices(each[1:])]


def math_product(matrices: list[Tensor]) -> Tensor:
    """Aᴸ ⋯ A¹, for the layers in order."""
    result = torch.eye(len(matrices[0]), dtype=torch.float64)
    for matrix in matrices:
        result = matrix @ result
    return result


def test_products_have_norm_one_and_the_skip_connections_last() -> None:
    columns = products(randn(2, 2, 2 * 4), (4,))
    assert columns.shape == (16, 9)
    assert torch.allclose(columns.norm(dim=0), torch.ones(9).double())
    assert torch.allclose(columns[:, -1].view(4, 4), torch.eye(4).double() / 2)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.integers(2, 27), st.integers(1, 4), st.integers(1, 3))
def test_sharp_heads_at_the_digits_are_exact_at_the_frontier(taps: int, layers: int, patch: int) -> None:
    """The frontier is met with equality, borders included: the digits that the theorem gives, as biases."""
    config = DepthConfig(kernel_size=taps, patch_size=patch, depth=1, num_heads=1, fit_image_size=27 * patch)
    heads = heads_by_layer(config.maps, layers)
    if not max(heads) or math.prod(count + 1 for count in heads) > 2 * MOST_TERMS:
        return
    goal = target(kernel(config), patch, 27 * patch, **config.options)
    biases = torch.zeros(layers, max(heads), num_relative_positions(goal.grid) + 1, dtype=torch.float64)
    (axis,) = axes_of(config.kernel_shape, patch, **config.options)
    for layer, digits in enumerate(digits_along(axis, layers)):
        for head, digit in enumerate([digit for digit in digits if digit]):
            biases[layer, head, relative_position((digit,), goal.grid)] = SHARP
            biases[layer, head, -1] = SHARP / 2  # outside the image a head attends to the zero slot
    assert relative_error(biases, goal) < 1e-9


@settings(max_examples=8, derandomize=True, deadline=None)
@given(st.integers(2, 9), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_no_layers_lie_below_the_bound(taps: int, layers: int, heads: int, seed: int) -> None:
    config = DepthConfig(
        kernel_size=taps, depth=layers, num_heads=heads, fit_image_size=9, fit_channels=3, fit_steps=5, seed=seed
    )
    points, _ = descend(config)
    assert last(points, EXPRESSIVITY_ERROR) >= last(points, EXPRESSIVITY_BOUND) - 1e-9
    # Nine taps have as many maps: fewer products than taps are not enough.
    assert (last(points, EXPRESSIVITY_BOUND) == 0) == (config.terms >= taps)


def reaches_zero(config: DepthConfig) -> bool:
    """True if one of five restarts comes to the convolution."""
    restarts = (descend(replace(config, seed=seed))[0] for seed in range(5))
    return any(last(points, EXPRESSIVITY_ERROR) < ZERO_ERROR for points in restarts)


@pytest.mark.parametrize(("depth", "num_heads"), [(1, 8), (2, 2), (3, 2), (4, 1)])
def test_descent_meets_the_frontier_of_nine_maps(depth: int, num_heads: int) -> None:
    """With the least heads a layer the error is zero, and with one fewer it stays above the bound."""
    config = DepthConfig(depth=depth, num_heads=num_heads, fit_image_size=10, fit_steps=300)
    assert reaches_zero(config)
    if num_heads > 1:
        points, _ = descend(replace(config, num_heads=num_heads - 1, fit_steps=50))
        assert 0.1 < last(points, EXPRESSIVITY_BOUND) <= last(points, EXPRESSIVITY_ERROR)


def test_three_layers_compute_an_image_s_convolution() -> None:
    """3×3 on images, 2 heads in each of three layers: 27 products for nine maps, borders included."""
    config = DepthConfig(
        kernel_size=3, dimensions=2, padding="same", depth=3, num_heads=2, fit_image_size=4, fit_steps=300
    )
    assert config.maps == 9 and reaches_zero(config)


def test_a_fit_is_stored_once_under_a_key_that_never_changes(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    stage = DeepFitStage(DepthConfig(kernel_size=4, fit_image_size=6, fit_steps=5))
    assert DeepFitStage(DepthConfig()).key == "b597a76a7d23c87602559616"
    (report,) = fit(stage, storage, descend)
    assert report.result is not None and report.result == load_result(storage, stage.key)
    (again,) = fit(stage, storage, descend)
    assert again.points == report.points, "times included: nothing was computed again"
    task = task_named("depth")
    (((key, by_task),),) = task.train([stage], None, storage, torch.device("cpu"), False)
    assert (key, by_task.points) == (stage.key, report.points)
    assert task.step_flops(stage) > 0 and task.expected_seconds(stage, None, "cpu") > 0


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"depth": 0}, "depth 0 must be at least 1"),
        ({"num_heads": 0}, "num_heads 0 must be at least 1"),
        ({"dimensions": 4}, "dimensions 4 must be between 1 and 3"),
        ({"padding": "half"}, "padding 'half' is not valid: one of same, causal"),
        ({"patch_size": 3}, "patch_size 3 must divide the image size 32: one of 1, 2, 4, 8, 16, 32"),
        (
            {"dimensions": 2},
            "fit_image_size 32 gives 1024 tokens of 1 pixels along each of 2 axes: at most 256 are fitted, with a "
            "fit_image_size of 16 or less",
        ),
        (
            {"depth": 3, "num_heads": 5},
            "depth 3 takes a num_heads of at most 4: there may be up to 128 products of heads, (num_heads + 1)^depth",
        ),
        ({"depth": 8, "num_heads": 1}, "depth 8 must be at most 7"),
        ({"seed": -1}, "seed -1 must be at least 0"),
        ({"mlp_ratio": 2}, "unknown parameter 'mlp_ratio'; valid are kernel_size,"),
    ],
)
def test_an_impossible_fit_is_refused_in_one_line(flat: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DepthConfig.from_flat(flat)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
