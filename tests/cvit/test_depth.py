"""Convolutions by several layers of attention: counts, tensor trains, axial attention."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cvit.geometry import Grid
from cvit.theorem.convolutions import Convolution, kernel_of
from cvit.theorem.counts import axes_of, heads_by_layer, heads_needed, least_hidden_width, maps_of
from cvit.theorem.depth import (
    axial_error,
    convolution_as_deep_attention,
    depth_bounds,
    depth_ranks,
    digits_along,
    tensor_train,
)
from cvit.theorem.kernel import error_bound, kernel_heads
from tests.support.convolutions import FUNCTIONS, KINDS, operator, randn, random_conv


def convolved(conv: Convolution, images: Tensor, causal: tuple[bool, ...]) -> Tensor:
    """The convolution, with zeros before as its options say and as many behind as n/s outputs need."""
    weight, bias, options = kernel_of(conv, causal)
    sides = []
    for taps, apart, before in zip(weight.shape[2:], options["dilation"], options["padding"], strict=True):
        sides = [before, apart * (taps - 1) - before, *sides]
    steps: Any = {"stride": options["stride"], "dilation": options["dilation"]}
    return FUNCTIONS[weight.ndim - 2](F.pad(images, sides), weight, bias, **steps)


# Counts


@pytest.mark.parametrize(
    ("maps", "layers", "with_skip", "without"),
    [
        (1, 1, (0,), (1,)), (9, 1, (8,), (9,)), (9, 2, (2, 2), (3, 3)), (81, 4, (2, 2, 2, 2), (3, 3, 3, 3)),
        (27, 3, (2, 2, 2), (3, 3, 3)), (10, 2, (3, 2), (4, 3)), (3, 2, (1, 1), (2, 2)),
        (5, 4, (1, 1, 1, 0), (2, 2, 2, 1)),
    ],
)  # fmt: skip
def test_heads_of_layers_by_hand(maps: int, layers: int, with_skip: tuple[int, ...], without: tuple[int, ...]) -> None:
    assert heads_by_layer(maps, layers) == with_skip
    assert heads_by_layer(maps, layers, skip=False) == without
    assert maps_of(with_skip) == maps_of(without, skip=False) >= maps


@given(st.integers(1, 400), st.integers(1, 5), st.booleans())
def test_no_fewer_heads_have_as_many_maps(maps: int, layers: int, skip: bool) -> None:
    heads = heads_by_layer(maps, layers, skip=skip)
    assert len(heads) == layers and maps_of(heads, skip=skip) >= maps and max(heads) - min(heads) <= 1
    # With one head less, shared as evenly as can be, there are fewer maps.
    fewer = sum(heads) - 1
    if fewer >= 0:
        even = [fewer // layers + (layer < fewer % layers) for layer in range(layers)]
        assert maps_of(even, skip=skip) < maps


def random_layer(heads: int, skip: bool, patches: int, widths: tuple[int, int], seed: int) -> Tensor:
    """(patches · width, patches · width): a layer of attention that does not depend on the content."""
    attention = [*(3 * randn(heads, patches, patches + 1, seed=seed)).softmax(dim=-1)[..., :-1]]
    attention += [torch.eye(patches, dtype=torch.float64)] * skip
    values = randn(len(attention), widths[1], widths[0], seed=seed + 1)
    matrix = torch.zeros(patches * widths[1], patches * widths[0], dtype=torch.float64)
    return sum((torch.kron(a, w) for a, w in zip(attention, values, strict=True)), start=matrix)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=3), st.booleans(), st.integers(0, 99))
def test_layers_are_a_sum_of_so_many_kronecker_products(heads: list[int], skip: bool, seed: int) -> None:
    """No more, and general layers have as many: 6×6 pairs of patches and of channels leave room for 27."""
    patches, widths = 6, [6, *[12] * (len(heads) - 1), 6]
    matrix = torch.eye(patches * 6, dtype=torch.float64)
    for number, count in enumerate(heads):
        matrix = random_layer(count, skip, patches, (widths[number], widths[number + 1]), seed + 9 * number) @ matrix
    table = matrix.view(patches, 6, patches, 6).transpose(1, 2).flatten(2).flatten(0, 1)
    rank = int(torch.linalg.matrix_rank(table, rtol=1e-11))
    assert rank == min(maps_of(heads, skip=skip), 36)
    # So they are no closer to a convolution than the bound of so many heads in one layer.
    conv = nn.Conv1d(6, 6, 9, padding=4, bias=False, dtype=torch.float64)
    goal = operator(conv, 6, patches).permute(1, 3, 0, 2).flatten(2).flatten(0, 1)
    bound = error_bound(conv.weight, 1, maps_of(heads, skip=skip), patches)
    best = table * ((table * goal).sum() / table.square().sum().clamp(min=1e-300))
    assert float((best - goal).norm() / goal.norm()) >= bound - 1e-12


def test_the_width_between_two_convolutions() -> None:
    for channels in (1, 2, 5, 16):
        width = least_hidden_width(channels)
        assert 18 * channels * width - width**2 >= 25 * channels**2
        assert 18 * channels * (width - 1) - (width - 1) ** 2 < 25 * channels**2
    assert least_hidden_width(1) == 2
    # One channel between two 3×3 kernels: their compositions have 17 dimensions, not 25; with two, 25.
    for width, dimensions in ((1, 17), (2, 25)):
        first, second = randn(width, 1, 3, 3), randn(1, width, 3, 3, seed=1)

        def composed(first: Tensor, second: Tensor) -> Tensor:
            return F.conv2d(F.pad(first.transpose(0, 1), (2, 2, 2, 2)), second.flip(2, 3)).flatten()

        jacobian: Any = torch.autograd.functional.jacobian(composed, (first, second))
        rank = int(torch.linalg.matrix_rank(torch.cat([part.flatten(1) for part in jacobian], dim=1)))
        assert rank == dimensions
    with pytest.raises(ValueError, match=r"^two layers of 3 taps compose no general kernel of 25 taps$"):
        least_hidden_width(4, 25, 3)


# The construction


@st.composite
def deep(draw: st.DrawFn) -> tuple[Convolution, tuple[int, ...], tuple[int, ...], tuple[bool, ...], Grid]:
    """A convolution, a patch, layers for each axis, several only for offsets of one sign, causal axes, and a grid."""
    axes = draw(st.integers(1, 3))
    kernel, steps, apart, grid = (
        tuple(draw(st.integers(1, most)) for _ in range(axes))
        for most in ((9, 4, 3)[axes - 1], (2, 2, 1)[axes - 1], (3, 2, 1)[axes - 1], (9, 5, 3)[axes - 1])
    )
    patch = tuple(step * draw(st.integers(1, (3, 2, 2)[axes - 1])) for step in steps)
    reaches = [d * (k - 1) for k, d in zip(kernel, apart, strict=True)]
    padding = [
        next((p for p in range(n + 1) if n + 1 - s <= 2 * p <= n), None) for n, s in zip(reaches, steps, strict=True)
    ]
    causal = tuple(own is None or draw(st.booleans()) for own in padding)
    options: Any = {"stride": steps, "dilation": apart, "padding": tuple(own or 0 for own in padding)}
    channels = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    conv = KINDS[axes](*channels, kernel, bias=draw(st.booleans()), dtype=torch.float64, **options)
    _, _, own = kernel_of(conv, causal)
    layers = tuple(
        1 if min(axis.offsets) < 0 < max(axis.offsets) else draw(st.integers(1, 3))
        for axis in axes_of(kernel, patch, **own)
    )
    return conv, patch, layers, causal, grid


@settings(max_examples=40, derandomize=True, deadline=None)
@given(deep(), st.booleans())
def test_layers_compute_the_convolution(drawn: Any, skip: bool) -> None:
    conv, patch, layers, causal, grid = drawn
    module = convolution_as_deep_attention(conv, patch, layers, skip=skip, causal=causal)
    weight, _, options = kernel_of(conv, causal)
    assert len(module.heads) == sum(layers)
    assert maps_of(module.heads, skip=skip) >= kernel_heads(weight, patch, **options)
    assert all(
        width <= rank for width, rank in zip(module.widths, depth_ranks(weight, patch, layers, **options), strict=True)
    )
    images = randn(2, conv.in_channels, *(length * side for length, side in zip(grid, patch, strict=True)))
    with torch.no_grad():
        expected = convolved(conv, images, causal)
        assert module(images).shape == expected.shape
        assert float((module(images) - expected).abs().max()) <= 1e-12
        torch.testing.assert_close(module(images[0]), module(images)[0], rtol=0, atol=1e-12)


def test_eight_heads_in_four_layers_instead_of_81() -> None:
    conv = nn.Conv2d(2, 2, 9, dtype=torch.float64)
    module = convolution_as_deep_attention(conv, 1, 2, causal=True)
    assert heads_needed(9, 1, padding="causal") == 81
    assert module.heads == (2, 2, 2, 2) and maps_of(module.heads) == 81
    images = randn(1, 2, 11, 10)
    with torch.no_grad():
        assert float((module(images) - convolved(conv, images, (True, True))).abs().max()) <= 1e-12
    # Offsets of both signs would leave the image on the way.
    same = random_conv(2, 2, 9)
    with pytest.raises(ValueError, match=r"^offsets of both signs, -4 to 4, take one layer, not 2$"):
        convolution_as_deep_attention(same, 1, 2)


def test_the_digits() -> None:
    (axis,) = axes_of((27,), 1, padding="causal")
    assert digits_along(axis, 3) == [(0, -1, -2), (0, -3, -6), (0, -9, -18)]
    (axis,) = axes_of((3,), 1)
    assert digits_along(axis, 1) == [(-1, 0, 1)]
    (axis,) = axes_of((4,), 2, dilation=6, padding="causal")
    assert digits_along(axis, 2) == [(0, -3), (0, -6)]


# Widths


def taps_error(conv: Convolution, module: nn.Module, patch: int, patches: int) -> float:
    """The relative error of a causal series' taps, from the response to unit series in the first patch."""
    unit = torch.eye(conv.in_channels * patch, dtype=torch.float64).unflatten(1, (conv.in_channels, patch))
    unit = F.pad(unit, (0, patch * (patches - 1)))
    with torch.no_grad():
        expected = convolved(conv, unit, (True,))
        return float((module(unit) - expected).norm() / expected.norm())


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    st.integers(2, 27), st.integers(1, 2), st.integers(1, 3), st.integers(1, 2), st.integers(1, 7), st.integers(0, 99)
)
def test_the_error_lies_between_its_bounds(
    taps: int, patch: int, layers: int, channels: int, width: int, seed: int
) -> None:
    conv = nn.Conv1d(channels, channels, taps, bias=False, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(randn(channels, channels, taps, seed=seed))
    lower, upper = depth_bounds(conv.weight, patch, width, layers, padding="causal")
    module = convolution_as_deep_attention(conv, patch, layers, widths=width, causal=True)
    error = taps_error(conv, module, patch, 30 // patch)
    assert lower - 1e-12 <= error <= upper + 1e-12
    assert upper <= math.sqrt(max(1, layers - 1)) * lower + 1e-12
    if layers <= 2:
        assert error == pytest.approx(lower, abs=1e-12)
    enough = all(width >= rank for rank in depth_ranks(conv.weight, patch, layers, padding="causal"))
    assert enough == (error <= 1e-12) == (lower <= 1e-12)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.integers(1, 6), st.integers(0, 99))
def test_no_layers_of_a_width_come_closer(width: int, seed: int) -> None:
    """27 causal taps of two channels, by any cores of three layers: random ones, and truncated ones that were moved."""
    tensor = randn(2, 3, 3, 3, 2, seed=seed)
    cores = tensor_train(tensor, (width, width))
    for noise in (0.0, 0.05, 1.0):
        moved = [core + noise * randn(*core.shape, seed=seed + 1 + n) for n, core in enumerate(cores)]
        made = torch.einsum("aip,bpq,cqo->iabco", *moved)
        scale = (made * tensor).sum() / made.square().sum()
        unfolded = (tensor.flatten(2).flatten(0, 1), tensor.flatten(3).flatten(0, 2))
        lower = max(float(torch.linalg.svdvals(matrix)[width:].norm()) for matrix in unfolded)
        assert float((scale * made - tensor).norm()) >= lower - 1e-12
    assert len(cores) == 3 and all(torch.isfinite(core).all() for core in cores)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize(("taps", "patch", "side"), [((3, 3), 1, 4), ((5, 3), 1, 3), ((3, 3), 2, 4)])
def test_axial_attention_has_the_least_error(
    shape: tuple[int, int], taps: tuple[int, int], patch: int, side: int
) -> None:
    """The error on images with borders, of the layers, and against the operator rearranged: rows are pairs along the
    first axis and inputs, columns pairs along the second and outputs."""
    conv = random_conv(*shape, taps, bias=False)
    matrix = operator(conv, shape[0], side, side)
    n = side // patch
    parts = matrix.reshape(shape[1], n, patch, n, patch, shape[0], n, patch, n, patch)
    table = parts.permute(1, 6, 5, 7, 9, 3, 8, 0, 2, 4).flatten(5).flatten(0, 4)
    values = torch.linalg.svdvals(table)
    ranks = depth_ranks(conv.weight, patch)
    generator = torch.Generator().manual_seed(0)
    for width in range(1, ranks[0] + 2):
        bound = axial_error(conv.weight, patch, width, side)
        assert bound == pytest.approx(float(values[width:].norm() / values.norm()), abs=1e-12)
        module = convolution_as_deep_attention(conv, patch, widths=width, image_size=side)
        reached = operator(module, shape[0], side, side)
        assert float((reached - matrix).norm() / matrix.norm()) == pytest.approx(bound, abs=1e-12)
        # Any first layer, with the best second one it can have
        first = torch.randn(len(table), width, generator=generator, dtype=torch.float64)
        best = first @ torch.linalg.lstsq(first, table, driver="gelsd").solution
        assert float((best - table).norm() / table.norm()) >= bound
    assert axial_error(conv.weight, patch, ranks[0], side) <= 1e-12
    heads = tuple(heads_needed((size,), patch) - 1 for size in taps)
    assert convolution_as_deep_attention(conv, patch).heads == heads


def test_axial_attention_needs_a_width_of_as_many_as_the_offsets_times_the_channels() -> None:
    weight = randn(3, 3, 3, 3)
    assert depth_ranks(weight, 1) == (9,)
    # Patches of P pixels need less than (2r + 1) times their numbers, as a kernel sees P + K − 1 pixels along an axis.
    for taps, patch, channels in ((3, 2, 1), (3, 2, 2), (5, 2, 1), (3, 3, 1), (3, 1, 2)):
        width = (patch + taps - 1) * patch * channels
        assert depth_ranks(randn(channels, channels, taps, taps), patch) == (width,)
        assert width <= heads_needed((taps,), patch) * patch**2 * channels
    assert convolution_as_deep_attention(random_conv(3, 3, 3), 1, skip=False).heads == (3, 3)
    # A separable kernel needs a token no wider than its own
    separable = torch.einsum("y,x,oc->ocyx", randn(3), randn(3, seed=1), randn(2, 2, seed=2))
    assert depth_ranks(separable, 1) == (2,)
    volumes = convolution_as_deep_attention(nn.Conv3d(1, 1, 3, padding=1, dtype=torch.float64), 1)
    assert volumes.heads == (2, 2, 2) and maps_of(volumes.heads) == 27


def test_what_does_not_fit_is_refused() -> None:
    conv = random_conv(1, 1, 3)
    weight = conv.weight
    cases = [
        (lambda: convolution_as_deep_attention(conv, 1, widths=(3, 3)), "2 widths for 1 bonds of 2 layers"),
        (lambda: convolution_as_deep_attention(conv, 1, widths=0), "widths must be at least 1, not 0"),
        (lambda: convolution_as_deep_attention(conv, 1, (1, 0)), "layers must be at least 1, not 0"),
        (lambda: axial_error(weight[0], 1, 3, 8), "axial attention has two axes, not 1"),
        (lambda: heads_by_layer(0, 2), "maps must be at least 1, not 0"),
        (lambda: heads_by_layer(9, 0), "layers must be at least 1, not 0"),
        (lambda: least_hidden_width(0), "channels must be at least 1, not 0"),
        (
            lambda: depth_bounds(weight, 1, 3, 2, image_size=8, padding="causal"),
            "an image size needs one layer for each axis",
        ),
        (lambda: convolution_as_deep_attention(conv, 2)(torch.zeros(1, 1, 4, 5)), "patch size 2 does not divide"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            call()
        assert str(caught.value).startswith(message)


def test_the_layers_take_over_what_kind_of_parameters_the_convolution_has() -> None:
    conv = nn.Conv2d(2, 3, 3, padding=1).eval().requires_grad_(False)
    module = convolution_as_deep_attention(conv, 2)
    assert not any(part.training for part in module.modules())
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in module.parameters())
    images = randn(2, 2, 6, 8).float()
    torch.testing.assert_close(module(images), conv(images), rtol=0, atol=1e-5)
    trained = convolution_as_deep_attention(nn.Conv2d(2, 3, 3, padding=1), 2)
    trained(images).square().sum().backward()
    assert all(p.grad is not None for p in trained.parameters())
