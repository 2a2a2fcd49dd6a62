"""Attention in windows: the exact error of one layer, and the two layers that lose nothing."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cvit.geometry import Grid, patch_places
from cvit.theorem.convolutions import kernel_of
from cvit.theorem.counts import heads_needed, window_heads
from cvit.theorem.kernel import error_bound, offsets
from cvit.theorem.layer import PatchAttention
from cvit.theorem.windows import (
    convolution_as_two_window_layers,
    crossing_energy,
    window_attention,
    window_error,
    window_pairs,
)
from tests.support.convolutions import KINDS, convolved, operator, randn, random_conv, random_conv_on


def windows_of(grid: Grid, window: Grid, shift: Grid) -> Tensor:
    """(N, N): which pairs of patches lie in one window."""
    places = (patch_places(grid) + torch.tensor(shift)) // torch.tensor(window)
    return (places[None] == places[:, None]).all(dim=-1)


def table_of(conv: Any, patch: tuple[int, ...], grid: Grid) -> Tensor:
    """(N, N, entries): the convolution rearranged, from its action on unit images."""
    shape = tuple(length * side for length, side in zip(grid, patch, strict=True))
    channels = conv.weight.shape[1]
    matrix = operator(lambda images: convolved(conv, images), channels, *shape)
    order = patch_index(grid, patch)
    rows = matrix.flatten(1, len(shape)).flatten(2)[:, order]  # (D_out, N, pixels, C · all pixels)
    return rows.unflatten(-1, (channels, -1))[..., order].permute(1, 4, 0, 2, 3, 5).flatten(2)


def patch_index(grid: Grid, patch: tuple[int, ...]) -> Tensor:
    """(N, pixels of a patch): the number of each pixel in the image, from the definition."""
    shape = [length * side for length, side in zip(grid, patch, strict=True)]
    number = torch.arange(math.prod(shape)).reshape(shape)
    return torch.stack(
        [
            number[tuple(slice(p * side, (p + 1) * side) for p, side in zip(place, patch, strict=True))].flatten()
            for place in patch_places(grid).tolist()
        ]
    )


# One layer


@st.composite
def windowed(draw: st.DrawFn) -> tuple[Any, tuple[int, ...], Grid, Grid, Grid]:
    """A convolution, a patch, a grid, windows and their shift, on one or two axes."""
    axes = draw(st.integers(1, 2))
    kernel, patch, grid, window, shift = (
        tuple(draw(st.integers(*limits)) for _ in range(axes))
        for limits in ((1, 5), (1, 2), (1, (8, 4)[axes - 1]), (1, 5), (0, 3))
    )
    channels = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    return random_conv_on(kernel, channels, bias=False, seed=draw(st.integers(0, 9))), patch, grid, window, shift


@settings(max_examples=60, derandomize=True, deadline=None)
@given(windowed())
def test_the_error_of_one_layer_is_exact(drawn: Any) -> None:
    """Against the dense operator with its windows' mask: nothing better by any matrices A_h that are zero across
    windows, and the layer with a head for each offset is as good."""
    conv, patch, grid, window, shift = drawn
    weight, _, options = kernel_of(conv)
    shape = tuple(length * side for length, side in zip(grid, patch, strict=True))
    table, mask = table_of(conv, patch, grid), windows_of(grid, window, shift)
    spectrum = torch.linalg.svdvals(table[mask])
    norm, across = float(table.norm()), float(table[~mask].square().sum())
    count = len(offsets(tuple(conv.kernel_size), patch, **options))
    where: Any = (shape, window, shift)
    errors = [window_error(weight, patch, heads, *where, **options) for heads in range(count + 2)]
    for heads, error in enumerate(errors):
        expected = math.sqrt(across + float(spectrum[heads:].square().sum()))
        assert error * norm == pytest.approx(expected, rel=1e-10, abs=1e-10)
    assert crossing_energy(weight, patch, *where, **options) * norm**2 == pytest.approx(across, rel=1e-10, abs=1e-10)
    layer = window_attention(conv, patch, window, shift)
    assert layer.num_heads == count
    reached = table.new_zeros(table.shape)
    reached[mask] = table[mask]
    attention = layer.position_bias(grid).softmax(dim=-1)
    assert not attention[..., :-1][:, ~mask].any()
    channels = conv.weight.shape[1]
    actual = operator(layer, channels, *shape)
    dense = operator(lambda images: convolved(conv, images), channels, *shape)
    assert float((actual - dense).norm()) == pytest.approx(errors[-1] * norm, rel=1e-9, abs=1e-10)
    assert errors[0] == pytest.approx(1.0) and all(less >= more for less, more in pairwise(errors))
    # Windows of the whole grid lose nothing: then it is the bound of attention without windows.
    whole = window_error(weight, patch, 1, shape, grid, **options)
    assert whole == pytest.approx(error_bound(weight, patch, 1, shape, **options), abs=1e-12)


@settings(max_examples=30, derandomize=True, deadline=None)
@given(windowed(), st.integers(1, 4), st.integers(0, 99))
def test_no_layer_in_windows_comes_closer(drawn: Any, heads: int, seed: int) -> None:
    """Random softmaxes with the zero slot, each with the best values that it can have."""
    conv, patch, grid, window, shift = drawn
    weight, _, options = kernel_of(conv)
    mask = windows_of(grid, window, shift)
    logits = 3 * randn(heads, len(mask), len(mask) + 1, seed=seed)
    logits[..., :-1] = logits[..., :-1].masked_fill(~mask, -torch.inf)
    basis = logits.softmax(dim=-1)[..., :-1].flatten(1).T
    table = table_of(conv, patch, grid).flatten(0, 1)
    best = basis @ torch.linalg.lstsq(basis, table, driver="gelsd").solution
    shape = tuple(length * side for length, side in zip(grid, patch, strict=True))
    bound = window_error(weight, patch, heads, shape, window, shift, **options)
    assert float((best - table).norm() / table.norm()) >= bound - 1e-12


@pytest.mark.parametrize("grid", [(8,), (6, 5)])
def test_the_pairs_of_one_window(grid: Grid) -> None:
    for size in range(1, 6):
        for shift in range(size + 1):
            axes = len(grid)
            mask = windows_of(grid, (size,) * axes, (shift,) * axes)
            steps = patch_places(grid)[None] - patch_places(grid)[:, None]
            spanned = offsets((7,) * axes, 1)
            expected = [int(((steps == torch.tensor(offset)).all(dim=-1) & mask).sum()) for offset in spanned]
            assert window_pairs(spanned, grid, size, shift).tolist() == expected
    # In closed form where the windows divide the grid
    for offset, pairs in zip(offsets(3, 1), window_pairs(offsets(3, 1), (12, 12), 4).tolist(), strict=True):
        assert pairs == 9 * (4 - abs(offset[0])) * (4 - abs(offset[1]))


def test_the_energy_that_windows_of_a_swin_transformer_lose() -> None:
    """A 3×3 convolution whose taps have equal energy, on pixels: n(δ) − n_in(δ) alone."""
    taps = torch.eye(9, dtype=torch.float64).view(9, 1, 3, 3)
    for side, window in ((8, 4), (56, 7)):
        lost = sum(
            (side - abs(a)) * (side - abs(b)) - (side // window) ** 2 * (window - abs(a)) * (window - abs(b))
            for a in (-1, 0, 1)
            for b in (-1, 0, 1)
        )
        whole = sum((side - abs(a)) * (side - abs(b)) for a in (-1, 0, 1) for b in (-1, 0, 1))
        assert crossing_energy(taps, 1, side, window) == pytest.approx(lost / whole, rel=1e-12)
        assert window_error(taps, 1, 9, side, window) == pytest.approx(math.sqrt(lost / whole), rel=1e-12)


# Two layers


@pytest.mark.parametrize(
    ("taps", "axes", "heads"), [(3, 1, (7, 3)), (3, 2, (41, 9)), (5, 2, (137, 25)), (3, 3, (223, 27))]
)
def test_heads_of_two_layers(taps: int, axes: int, heads: tuple[int, int]) -> None:
    reach = taps // 2
    closed = (2 * (4 * reach + 1) ** axes - (2 * reach + 1) ** axes, (2 * reach + 1) ** axes)
    assert window_heads((taps,) * axes, 1) == heads == closed
    if axes == 2:
        side = 2 * reach + 1
        assert heads[0] == side**2 + 4 * 2 * reach * side + 2 * (2 * reach) ** 2


@st.composite
def within_half_a_window(draw: st.DrawFn) -> tuple[Any, tuple[int, ...], Grid, Grid, bool]:
    """A convolution with a stride, whose offsets reach at most half a window, patches, windows and any grid."""
    axes = draw(st.integers(1, 2))
    kernel, window, grid = (
        tuple(draw(st.integers(*limits)) for _ in range(axes)) for limits in ((1, 5), (2, 6), (1, (14, 8)[axes - 1]))
    )
    stride = tuple(draw(st.sampled_from([1, 1, 2])) for _ in range(axes))
    patch = tuple(step * draw(st.integers(1, 2)) for step in stride)
    causal = draw(st.booleans())
    padding = tuple((taps - 1) // 2 for taps in kernel)
    options: Any = {"stride": stride, "padding": padding}
    causal = causal or any(taps % 2 == 0 and step == 1 for taps, step in zip(kernel, stride, strict=True))
    conv = KINDS[axes](1, 2, kernel, bias=draw(st.booleans()), dtype=torch.float64, **options)
    _, _, own = kernel_of(conv, causal)
    reaches = [max(map(abs, steps)) for steps in zip(*offsets(kernel, patch, **own), strict=True)]
    window = tuple(max(size, 2 * reach) for size, reach in zip(window, reaches, strict=True))
    return conv, patch, grid, window, causal


@settings(max_examples=60, derandomize=True, deadline=None)
@given(within_half_a_window())
def test_two_layers_in_windows_compute_the_convolution(drawn: Any) -> None:
    conv, patch, grid, window, causal = drawn
    layers = convolution_as_two_window_layers(conv, patch, window, causal=causal)
    first, second = layers
    assert isinstance(first, PatchAttention) and isinstance(second, PatchAttention)
    _, _, options = kernel_of(conv, causal)
    assert (first.num_heads, second.num_heads) == window_heads(tuple(conv.kernel_size), patch, **options)
    images = randn(2, 1, *(length * side for length, side in zip(grid, patch, strict=True)))
    function = (nn.functional.conv1d, nn.functional.conv2d)[len(patch) - 1]
    sides = [
        zeros
        for taps, before in zip(reversed(conv.kernel_size), reversed(options["padding"]), strict=True)
        for zeros in (before, taps - 1 - before)
    ]
    with torch.no_grad():
        expected = function(nn.functional.pad(images, sides), conv.weight, conv.bias, stride=conv.stride)
        assert float((layers(images) - expected).abs().max()) <= 1e-12
        # In each layer no patch attends to one of another window.
        for layer, shift in ((first, (0,) * len(grid)), (second, tuple(size // 2 for size in window))):
            attention = layer.position_bias(grid).softmax(dim=-1)
            assert set(attention.unique().tolist()) <= {0.0, 1.0}
            assert not attention[..., :-1][:, ~windows_of(grid, window, shift)].any()


@pytest.mark.parametrize(
    ("side", "window", "reach"), [(8, 4, 1), (12, 4, 2), (12, 6, 3), (8, 2, 1), (14, 7, 3), (13, 5, 2)]
)
def test_the_cases_that_were_worked_out(side: int, window: int, reach: int) -> None:
    conv = random_conv(1, 1, 2 * reach + 1)
    layers = convolution_as_two_window_layers(conv, 1, window)
    images = randn(1, 1, side, side)
    with torch.no_grad():
        assert float((layers(images) - conv(images)).abs().max()) <= 1e-12


def test_two_layers_on_volumes_and_in_float32() -> None:
    conv = random_conv_on((3, 3, 3), (1, 1))
    layers = convolution_as_two_window_layers(conv, 1, 2)
    volumes = randn(1, 1, 4, 3, 5)
    with torch.no_grad():
        assert float((layers(volumes) - conv(volumes)).abs().max()) <= 1e-12
        layers, conv = layers.float(), conv.float()
        torch.testing.assert_close(layers(volumes.float()), conv(volumes.float()), rtol=0, atol=1e-5)


def test_the_layers_take_over_what_kind_of_parameters_the_convolution_has() -> None:
    conv = nn.Conv2d(2, 3, 3, padding=1, dtype=torch.float32).eval().requires_grad_(False)
    layers = convolution_as_two_window_layers(conv, 2, 4)
    assert not any(module.training for module in layers[0].modules())
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in layers.parameters())
    assert [name for name, _ in layers.named_children()] == ["windows", "shifted"]


def test_what_does_not_fit_into_windows_is_refused() -> None:
    conv = random_conv(1, 1, 5)
    with pytest.raises(
        ValueError, match=r"^offsets of up to 2x2 patches reach further than half a window of \(3, 3\)$"
    ):
        convolution_as_two_window_layers(conv, 1, 3)
    with pytest.raises(ValueError, match=r"^window_size must be at least 1, not 0$"):
        window_attention(conv, 1, 0)
    with pytest.raises(ValueError, match=r"^window_shift must be at least 0, not -1$"):
        window_error(conv.weight, 1, 9, 8, 4, -1)
    with pytest.raises(ValueError, match=r"^\(4,\) has 1 sizes for 2 axes$"):
        crossing_energy(conv.weight, 1, 8, (4,))
    with pytest.raises(ValueError, match=r"^num_heads must be at least 0, not -1$"):
        window_error(conv.weight, 1, -1, 8, 4)
    assert window_error(torch.zeros(1, 1, 3, 3), 1, 0, 8, 4) == crossing_energy(torch.zeros(1, 1, 3, 3), 1, 8, 4) == 0.0
    assert heads_needed(5, 1) == window_attention(conv, 1, 3).num_heads
