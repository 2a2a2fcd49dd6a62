"""The theorem for strides, dilations and causal kernels, against torch's convolutions as dense operators."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cvit.geometry import Grid, patch_places
from cvit.models.embedding import to_patches
from cvit.theorem.convolutions import Convolution, reason_not_convertible
from cvit.theorem.counts import axes_of, general_kernel_heads, heads_needed
from cvit.theorem.kernel import error_bound, kernel_heads, offsets, patch_maps, singular_values
from cvit.theorem.layer import convolution_as_attention
from tests.support.convolutions import FUNCTIONS, KINDS, operator, randn

# Counts


@pytest.mark.parametrize(
    ("kernel", "patch", "options", "heads"),
    [
        # Same padding: 3 heads in 1-D, 9 in 2-D, 27 in 3-D
        ((3,), 16, {}, 3), (3, 16, {}, 9), ((3, 3, 3), 16, {}, 27),
        # Causal: one patch back as long as K − 1 ≤ P
        ((3,), 2, {"padding": "causal"}, 2), ((3,), 1, {"padding": "causal"}, 3), ((9,), 4, {"padding": "causal"}, 3),
        (3, 4, {"padding": "causal"}, 4), ((3, 3, 3), 2, {"padding": "causal"}, 8), ((1,), 4, {"padding": "causal"}, 1),
        ((3, 3, 3), 4, {"padding": (2, 1, 1)}, 18),  # a video, causal in time only
        # Dilation: K an axis where P divides it, at most 2K otherwise
        ((3,), 4, {"dilation": 16, "padding": "causal"}, 3), ((3,), 4, {"dilation": 8}, 3), (3, 4, {"dilation": 4}, 9),
        ((2,), 4, {"dilation": 8, "padding": "causal"}, 2), ((3,), 2, {"dilation": 3, "padding": "causal"}, 4),
        ((3,), 4, {"dilation": 6, "padding": "causal"}, 4), ((3,), 8, {"dilation": 20}, 5),
        # Strides
        (3, 2, {"stride": 2, "padding": 1}, 4), (3, 4, {"stride": 2, "padding": 1}, 4), (3, 16, {"stride": 2}, 4),
        (1, 2, {"stride": 2, "padding": 0}, 1), (7, 4, {"stride": 2, "padding": 3}, 9),
        (7, 2, {"stride": 2, "padding": 3}, 16), (5, 4, {"stride": 2, "padding": 2}, 9),
        (4, 8, {"stride": 4, "padding": 0}, 1), (2, 4, {"stride": 2, "padding": 0}, 1),
        ((3, 5), (2, 4), {"stride": (1, 2), "padding": (1, 2)}, 9),
    ],
)  # fmt: skip
def test_heads_worked_out_by_hand(kernel: Any, patch: int, options: dict[str, Any], heads: int) -> None:
    assert heads_needed(kernel, patch, **options) == heads == len(offsets(kernel, patch, **options))


sizes = st.integers(1, 12)


@given(sizes, sizes, st.integers(1, 4), st.integers(0, 11))
def test_the_counts_in_closed_form(taps: int, outputs: int, stride: int, padding: int) -> None:
    """⌈·⌉ as in the statements, where the code looks at every pixel and tap."""
    side = outputs * stride
    assert heads_needed((taps,), side, padding="causal") == 1 + math.ceil((taps - 1) / side)
    if padding <= taps - 1:
        expected = 1 + math.ceil(padding / side) + math.ceil(max(0, taps - stride - padding) / side)
        assert heads_needed((taps,), side, stride=stride, padding=padding) == expected


@given(sizes, sizes, st.integers(1, 40))
def test_the_counts_of_dilated_kernels(taps: int, side: int, dilation: int) -> None:
    for padding in ("causal", dilation * (taps - 1) // 2):
        heads = heads_needed((taps,), side, dilation=dilation, padding=padding)
        assert heads <= min(2 * taps, heads_needed((dilation * (taps - 1) + 1,), side, padding=padding))
        if dilation % side == 0 and (padding == "causal" or padding % side == 0):
            assert heads == taps


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^patch size 3 is no multiple of the stride 2$"):
        heads_needed(3, 3, stride=2)
    with pytest.raises(ValueError, match=r"^dilation must be at least 1, not 0$"):
        heads_needed(3, 4, dilation=(1, 0))
    with pytest.raises(ValueError, match=r"^padding must be at least 0, not -1$"):
        heads_needed(3, 4, padding=-1)
    with pytest.raises(ValueError, match=r"^padding must be 'same', 'causal' or numbers, not 'valid'$"):
        heads_needed(3, 4, padding="valid")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"^\(2,\) has 1 sizes for 2 axes$"):
        heads_needed((3, 3), 4, stride=(2,))
    conv = nn.Conv2d(2, 2, 3, padding=1, stride=2)
    with pytest.raises(ValueError, match=r"^patch size 3 is no multiple of the stride 2$"):
        convolution_as_attention(conv, 3)
    with pytest.raises(ValueError, match=r"^causal has 1 values for 2 axes$"):
        convolution_as_attention(conv, 2, causal=(True,))


# The maps and the bound, against the operator


@st.composite
def kernels(draw: st.DrawFn, largest: int = 4) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], Grid]:
    """A kernel, a patch, options and a grid, on one to three axes."""
    axes = draw(st.integers(1, 3))
    most = (largest, 3, 2)[axes - 1]

    def drawn(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    kernel, stride, grid = drawn(1, most + 1), drawn(1, 2), drawn(1, (5, 3, 2)[axes - 1])
    dilation = drawn(1, (5, 3, 2)[axes - 1])
    patch = tuple(step * times for step, times in zip(stride, drawn(1, (3, 2, 1)[axes - 1]), strict=True))
    reach = [step * (taps - 1) for step, taps in zip(dilation, kernel, strict=True)]
    # So many zeros in all that n inputs give n/s outputs, and at most D(K − 1) of them before.
    before = tuple(draw(st.integers(0, most)) for most in reach)
    return kernel, patch, {"stride": stride, "dilation": dilation, "padding": before}, grid


def convolved(weight: Tensor, images: Tensor, options: dict[str, Any], groups: int = 1) -> Tensor:
    """The convolution with `before` zeros and as many after as n/s outputs need."""
    shape = images.shape[2:]
    sides = []
    for axis in reversed(range(len(shape))):
        reach = options["dilation"][axis] * (weight.shape[2 + axis] - 1)
        sides += [options["padding"][axis], reach - options["padding"][axis]]
    function = FUNCTIONS[len(shape)]
    step, apart = options["stride"], options["dilation"]
    return function(F.pad(images, sides), weight, stride=step, dilation=apart, groups=groups)


def rearranged(weight: Tensor, patch: tuple[int, ...], options: dict[str, Any], shape: list[int]) -> Tensor:
    """(N, N, pixels · C, outputs · D_out): what each patch attended to gives to each attending one."""
    axes, channels = len(patch), weight.shape[1]
    matrix = operator(lambda images: convolved(weight, images, options), channels, *shape)
    out_patch = tuple(side // step for side, step in zip(patch, options["stride"], strict=True))
    outputs = to_patches(matrix.movedim(tuple(range(-axes - 1, 0)), tuple(range(axes + 1))), out_patch)
    return to_patches(outputs.movedim((-2, -1), (0, 1)), patch).permute(0, 2, 3, 1)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(kernels())
def test_the_maps_and_the_bound_are_those_of_the_convolution(drawn: Any) -> None:
    kernel, patch, options, grid = drawn
    weight = randn(1, 2, *kernel)
    shape = tuple(length * side for length, side in zip(grid, patch, strict=True))
    blocks = rearranged(weight, patch, options, list(shape))
    spanned = offsets(kernel, patch, **options)
    assert len(spanned) == heads_needed(kernel, patch, **options)
    maps = dict(zip(spanned, patch_maps(weight, patch, **options), strict=True))
    assert all(map_.any() for map_ in maps.values())  # no offset too many
    places = [tuple(place) for place in patch_places(grid).tolist()]
    for (i, here), (j, there) in product(enumerate(places), repeat=2):
        step = tuple(b - a for a, b in zip(here, there, strict=True))
        expected = maps.get(step, torch.zeros_like(blocks[i, j]))
        assert float((blocks[i, j] - expected).abs().max()) <= 1e-12
    table = blocks.flatten(2).flatten(0, 1)
    expected = torch.linalg.svdvals(table)
    values = singular_values(weight, patch, shape, **options)
    count = min(len(values), len(expected))
    torch.testing.assert_close(values[:count], expected[:count], rtol=1e-10, atol=1e-10)
    rank = kernel_heads(weight, patch, shape, **options)
    assert rank == int(torch.linalg.matrix_rank(table))
    for heads in range(rank + 1):
        distance = float(expected[heads:].norm() / expected.norm()) if expected.any() else 0.0
        assert error_bound(weight, patch, heads, shape, **options) == pytest.approx(distance, abs=1e-9)


@settings(max_examples=80, derandomize=True, deadline=None)
@given(st.integers(1, 5), st.integers(1, 2), st.integers(1, 3), st.integers(1, 6), st.integers(1, 3), st.integers(1, 2))
def test_the_count_of_a_general_kernel_is_the_rank_of_a_random_one(
    taps: int, stride: int, outputs: int, dilation: int, channels: int, axes: int
) -> None:
    patch, taps = stride * outputs, min(taps, 6 - axes)
    weight = randn(channels, 1, *(taps,) * axes)
    for grid_size, padding in product((None, 2), ("same", "causal", dilation * (taps - 1) // 3)):
        options: Any = {"stride": stride, "dilation": dilation, "padding": padding}
        count = general_kernel_heads(taps, patch, 1, channels, grid_size, axes, **options)
        rank = kernel_heads(weight, patch, None if grid_size is None else patch * grid_size, **options)
        assert rank == count or (axes > 1 < dilation and rank <= count)


def test_the_count_of_a_dilated_kernel_along_two_axes_is_an_upper_bound() -> None:
    weight = randn(1, 2, 2, 2)
    assert (kernel_heads(weight, 2, dilation=2), general_kernel_heads(2, 2, 2, 1, dilation=2)) == (7, 8)


# The construction


@settings(max_examples=120, derandomize=True, deadline=None)
@given(kernels(), st.integers(1, 2), st.booleans(), st.booleans())
def test_attention_computes_the_convolution(drawn: Any, groups: int, causal: bool, bias: bool) -> None:
    """A module has its own symmetric padding where n/s outputs come of it, and is causal where it is said to be."""
    kernel, patch, options, grid = drawn
    padding = [
        next((p for p in range(d * (k - 1) + 1) if d * (k - 1) + 1 - s <= 2 * p <= d * (k - 1)), None)
        for k, d, s in zip(kernel, options["dilation"], options["stride"], strict=True)
    ]
    looks_back = tuple(causal or own is None for own in padding)
    own = tuple(p or 0 for p in padding)
    steps: Any = {"stride": options["stride"], "dilation": options["dilation"]}
    conv = KINDS[len(kernel)](4, 2, kernel, padding=own, groups=groups, bias=bias, dtype=torch.float64, **steps)
    assert reason_not_convertible(conv, causal=looks_back) is None
    layer = convolution_as_attention(conv, patch, causal=looks_back)
    before = tuple(
        d * (k - 1) if past else p for k, d, p, past in zip(kernel, options["dilation"], own, looks_back, strict=True)
    )
    assert layer.num_heads == heads_needed(kernel, patch, **steps, padding=before)
    images = randn(2, 4, *(length * side for length, side in zip(grid, patch, strict=True)), seed=7)
    with torch.no_grad():
        expected = convolved(conv.weight, images, {**steps, "padding": before}, groups)
        if conv.bias is not None:
            expected = expected + conv.bias.view(-1, *(1,) * len(kernel))
        if not any(looks_back):
            torch.testing.assert_close(conv(images), expected, rtol=0, atol=1e-12)  # n/s outputs, and these
        assert layer(images).shape == expected.shape
        assert float((layer(images) - expected).abs().max()) <= 1e-12


@pytest.mark.parametrize(
    ("kernel", "patch", "stride", "padding", "side", "heads"),
    [
        (3, 4, 2, 1, 16, 4), (3, 2, 2, 1, 16, 4), (3, 4, 1, 1, 16, 9), (1, 4, 2, 0, 16, 1),
        (7, 8, 2, 3, 32, 9), (5, 4, 2, 2, 16, 9), (4, 8, 4, 0, 32, 1), (2, 4, 2, 0, 16, 1),
    ],
)  # fmt: skip
def test_eight_strided_convolutions(kernel: int, patch: int, stride: int, padding: int, side: int, heads: int) -> None:
    conv = nn.Conv2d(2, 3, kernel, stride=stride, padding=padding, dtype=torch.float64)
    layer = convolution_as_attention(conv, patch)
    images = randn(2, 2, side, side)
    assert layer.num_heads == heads
    with torch.no_grad():
        assert float((layer(images) - conv(images)).abs().max()) <= 1e-13


def test_a_strided_network_is_attention_on_one_grid_of_tokens() -> None:
    """Six layers with strides 1, 1, 2, 1, 2, 1 and ReLU between them: 44 heads on 4×4 tokens, of 8×8 pixels at first
    and of 2×2 at the end."""
    strides = (1, 1, 2, 1, 2, 1)
    widths = (3, 8, 8, 16, 16, 32, 32)
    patch, heads = 8, 0
    images = expected = randn(2, 3, 32, 32)
    with torch.no_grad():
        for stride, channels, out_channels in zip(strides, widths, widths[1:], strict=False):
            conv = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, dtype=torch.float64)
            layer = convolution_as_attention(conv, patch)
            assert images.shape[-1] // patch == 4
            images, expected = F.relu(layer(images)), F.relu(conv(expected))
            patch, heads = patch // stride, heads + layer.num_heads
        assert (heads, patch) == (44, 2)
        assert float((images - expected).abs().max()) <= 1e-14


def test_a_causal_layer_does_not_see_what_follows() -> None:
    conv = nn.Conv1d(2, 3, 3, dilation=4, dtype=torch.float64)
    layer = convolution_as_attention(conv, 4, causal=True)
    assert layer.num_heads == 3
    series = randn(1, 2, 40)
    later = series.clone()
    later[..., 20:] = 1e6
    with torch.no_grad():
        assert torch.equal(layer(series)[..., :20], layer(later)[..., :20])
        torch.testing.assert_close(layer(series), conv(F.pad(series, (8, 0))), rtol=0, atol=1e-12)


def test_what_has_no_output_per_step_is_refused() -> None:
    cases: list[tuple[Convolution, str | None]] = [
        (nn.Conv1d(1, 1, 3, padding=1, stride=2), None),
        (nn.Conv1d(1, 1, 4, padding=1, stride=2), None),
        (nn.Conv1d(1, 1, 2, stride=2), None),
        (nn.Conv1d(1, 1, 3, stride=2), "padding (0,) is not 'same' for stride (2,)"),
        (nn.Conv1d(1, 1, 3, padding=2, stride=2), "padding (2,) is not 'same' for stride (2,)"),
        (nn.Conv1d(1, 1, 4, padding=1), "padding (1,) is not 'same'"),
    ]
    for conv, reason in cases:
        assert reason_not_convertible(conv) == reason
        # And torch itself gives n/s outputs exactly where there is no reason.
        lengths = {n * conv.stride[0]: n for n in range(4, 8)}
        gives = all(conv(torch.zeros(1, 1, pixels)).shape[-1] == n for pixels, n in lengths.items())
        assert gives == (reason is None)
        assert reason_not_convertible(conv, causal=True) is None


def test_an_axis_says_which_tap_joins_two_pixels() -> None:
    (axis,) = axes_of((3,), 4, stride=2, dilation=3, padding=3)
    assert axis.out_patch == 2
    for offset, source, target in product(axis.offsets, range(4), range(2)):
        places = {2 * target + 3 * tap - 3: tap for tap in range(3)}
        assert axis.tap(offset, source, target) == places.get(source + 4 * offset)
