"""The theorem on one, two and three axes, against torch's convolutions as dense operators; and its public face."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import cvit.theorem
from cvit.geometry import Grid, patch_places
from cvit.models.embedding import to_patches
from cvit.theorem.counts import general_kernel_heads, half_width, heads_needed
from cvit.theorem.kernel import error_bound, kernel_heads, offsets, patch_maps, shift_norms, singular_values
from cvit.theorem.layer import convolution_as_attention
from cvit.training.fit import attention, relative_error, target
from tests.support.convolutions import convolved, dense_sides, operator, own_count, randn, random_conv_on

# (kernel, patch, grid)
CASES: list[tuple[tuple[int, ...], tuple[int, ...], Grid]] = [
    ((3,), (1,), (5,)),
    ((3,), (4,), (3,)),
    ((6,), (2,), (4,)),
    ((3, 5), (2, 1), (3, 6)),
    ((1, 4), (3, 2), (2, 3)),
    ((2, 3), (1, 3), (4, 2)),
    ((3, 3, 3), (1, 1, 1), (3, 2, 3)),
    ((3, 2, 5), (2, 2, 2), (2, 2, 3)),
]


def blocks_of(matrix: Tensor, patch: tuple[int, ...]) -> Tensor:
    """(N, N, pixels · C, pixels · D_out): what each patch attended to gives to each attending one."""
    axes = len(patch)
    outputs = to_patches(matrix.movedim(tuple(range(-axes - 1, 0)), tuple(range(axes + 1))), patch)
    inputs = outputs.movedim((-2, -1), (0, 1))  # (N, pixels · D_out, C, *shape)
    return to_patches(inputs, patch).permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("kernel_size", "patch_size", "heads"),
    [
        ((3,), (1,), 3), ((3,), (16,), 3), ((5,), (1,), 5), ((7,), 2, 5), ((1,), 4, 1),
        ((3, 5), 1, 15), ((3, 5), (1, 2), 9), ((1, 3), 4, 3), (3, (1, 2), 9), (7, (3, 1), 21),
        ((3, 3, 3), 4, 27), ((1, 3, 3), 4, 9), ((3, 5, 5), (1, 1, 2), 45), (3, (8, 8, 8), 27),
    ],
)  # fmt: skip
def test_heads_by_axis(kernel_size: int | tuple[int, ...], patch_size: int | tuple[int, ...], heads: int) -> None:
    assert heads_needed(kernel_size, patch_size) == heads
    assert len(set(offsets(kernel_size, patch_size))) == heads


def test_sizes_of_other_numbers_of_axes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^\(2, 2\) has 2 sizes for 3 axes$"):
        heads_needed((3, 3, 3), (2, 2))
    weight = torch.ones(1, 1, 3, 3)
    with pytest.raises(ValueError, match=r"^\(2,\) has 1 sizes for 2 axes$"):
        patch_maps(weight, (2,))
    with pytest.raises(ValueError, match=r"^\(4, 4, 4\) has 3 sizes for 2 axes$"):
        error_bound(weight, 2, 1, (4, 4, 4))
    with pytest.raises(ValueError, match=r"^patch size 3 does not divide the image size 8$"):
        kernel_heads(weight, (2, 3), (4, 8))
    with pytest.raises(ValueError, match=r"^kernel_size must be at least 1, not 0$"):
        heads_needed((3, 0), 1)


@pytest.mark.parametrize(("kernel", "patch", "grid"), CASES)
def test_the_maps_are_the_blocks_of_the_convolution(
    kernel: tuple[int, ...], patch: tuple[int, ...], grid: Grid
) -> None:
    conv = random_conv_on(kernel, (2, 3), bias=False)
    shape = [length * side for length, side in zip(grid, patch, strict=True)]
    blocks = blocks_of(operator(lambda images: convolved(conv, images), 2, *shape), patch)
    weight = conv.weight.detach()
    maps = dict(zip(offsets(kernel, patch), patch_maps(weight, patch), strict=True))
    assert len(maps) == math.prod(2 * half_width(taps, side) + 1 for taps, side in zip(kernel, patch, strict=True))
    places = patch_places(grid)
    for i, here in enumerate(places):
        for j, there in enumerate(places):
            expected = maps.get(tuple((there - here).tolist()), torch.zeros(()).double())
            assert float((blocks[i, j] - expected).abs().max()) <= 1e-12


@pytest.mark.parametrize(("kernel", "patch", "grid"), CASES)
def test_the_singular_values_are_those_of_the_rearranged_convolution(
    kernel: tuple[int, ...], patch: tuple[int, ...], grid: Grid
) -> None:
    conv = random_conv_on(kernel, (2, 1), bias=False)
    shape = tuple(length * side for length, side in zip(grid, patch, strict=True))
    matrix = operator(lambda images: convolved(conv, images), 2, *shape)
    table = blocks_of(matrix, patch).flatten(2).flatten(0, 1)
    expected = torch.linalg.svdvals(table)
    values = singular_values(conv.weight, patch, shape)
    count = min(len(values), len(expected))
    torch.testing.assert_close(values[:count], expected[:count], rtol=1e-10, atol=1e-10)
    assert not values[count:].any()
    rank = int(torch.linalg.matrix_rank(table))
    assert kernel_heads(conv.weight, patch, shape) == rank
    for heads in range(rank + 2):
        distance = float(expected[heads:].norm() / expected.norm())
        assert error_bound(conv.weight, patch, heads, shape) == pytest.approx(distance, abs=1e-12)


def test_the_norms_count_the_pairs_of_patches_on_any_grid() -> None:
    for grid in ((5,), (3, 2), (2, 3, 4)):
        places = [tuple(place) for place in patch_places(grid).tolist()]
        steps = [tuple(b - a for a, b in zip(i, j, strict=True)) for i in places for j in places]
        spanned = offsets((5,) * len(grid), 1)
        expected = torch.tensor([steps.count(offset) for offset in spanned], dtype=torch.float64)
        torch.testing.assert_close(shift_norms(spanned, grid).square(), expected)


@given(st.integers(1, 7), st.integers(1, 4), st.integers(1, 2), st.integers(1, 3), st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_the_count_of_a_general_kernel_on_one_axis_is_the_rank_of_a_random_one(
    kernel_size: int, patch_size: int, in_channels: int, out_channels: int, grid_size: int
) -> None:
    weight = randn(out_channels, in_channels, kernel_size)
    count = general_kernel_heads(kernel_size, patch_size, in_channels, out_channels, grid_size, axes=1)
    assert kernel_heads(weight, patch_size, patch_size * grid_size) == count


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3))
@settings(deadline=None, max_examples=25)
def test_the_count_of_a_general_kernel_on_three_axes_is_the_rank_of_a_random_one(
    kernel_size: int, patch_size: int, channels: int, grid_size: int
) -> None:
    weight = randn(channels, 1, *(kernel_size,) * 3)
    count = general_kernel_heads(kernel_size, patch_size, 1, channels, grid_size, axes=3)
    assert kernel_heads(weight, patch_size, patch_size * grid_size) == count


# The layer


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[tuple[int, ...], dict[str, int], tuple[int, ...], Grid]:
    """A kernel with dilation and groups, a patch and a grid, on one to three axes."""
    axes = draw(st.integers(1, 3))
    largest = (7, 5, 3)[axes - 1]
    kernel = tuple(draw(st.integers(1, largest)) for _ in range(axes))
    options = {"dilation": draw(st.integers(1, 2)) if max(kernel) <= 3 else 1, "groups": draw(st.integers(1, 2))}
    patch, grid = (tuple(draw(st.integers(1, 3)) for _ in range(axes)) for _ in range(2))
    return kernel, options, patch, grid


@settings(max_examples=80, derandomize=True, deadline=None)
@given(convolutions(), st.booleans())
def test_attention_computes_the_convolution_on_any_number_of_axes(
    drawn: tuple[tuple[int, ...], dict[str, int], tuple[int, ...], Grid], content: bool
) -> None:
    kernel, options, patch, grid = drawn
    conv = random_conv_on(kernel, (4, 2), **options)
    layer = convolution_as_attention(conv, patch, content=content)
    assert layer.num_heads == own_count(conv, patch) <= heads_needed(dense_sides(conv), patch)
    images = randn(2, 4, *(length * side for length, side in zip(grid, patch, strict=True)), seed=7)
    with torch.no_grad():
        expected = convolved(conv, images)
        assert layer(images).shape == expected.shape
        assert float((layer(images) - expected).norm() / expected.norm()) <= 1e-12
        torch.testing.assert_close(layer(images[0]), layer(images)[0], rtol=0, atol=1e-12)


def test_images_that_the_patch_does_not_divide() -> None:
    layer = convolution_as_attention(random_conv_on((3, 3, 3), (1, 1)), (1, 2, 3))
    with pytest.raises(ValueError, match=r"^patch size 3 does not divide an image of 2x4x5 pixels$"):
        layer(randn(1, 1, 2, 4, 5))


# The fit


@pytest.mark.parametrize(("kernel", "patch", "grid"), CASES)
def test_the_error_of_a_fit_is_that_of_the_best_layer_as_dense_operators(
    kernel: tuple[int, ...], patch: tuple[int, ...], grid: Grid
) -> None:
    conv = random_conv_on(kernel, (2, 2), bias=False)
    shape = tuple(length * side for length, side in zip(grid, patch, strict=True))
    matrix = operator(lambda images: convolved(conv, images), 2, *shape)
    table = blocks_of(matrix, patch).flatten(2).flatten(0, 1)
    goal = target(conv.weight.detach(), patch, shape)
    biases = randn(3, math.prod(2 * length - 1 for length in grid) + 1)
    columns = attention(biases, grid)
    best = columns @ (torch.linalg.pinv(columns) @ table)
    assert relative_error(biases, goal) == pytest.approx(float((best - table).norm() / table.norm()), rel=1e-9)


# The public face


def test_the_names_of_the_theorem_come_from_its_package() -> None:
    """Whatever was imported before: no submodule hides a name."""
    from cvit.theorem import conversion, counts, depth, kernel, layer, windows

    assert {"convert", "convolution_as_attention", "error_bound", "heads_needed"} <= {*cvit.theorem.__all__}
    for name in cvit.theorem.__all__:
        (module,) = (
            module
            for module in (conversion, counts, depth, kernel, layer, windows)
            if getattr(getattr(module, name, None), "__module__", None) == module.__name__
        )
        assert getattr(cvit.theorem, name) is getattr(module, name) and callable(getattr(cvit.theorem, name))
        assert (getattr(module, name).__doc__ or "").strip()
    with pytest.raises(AttributeError, match="has no attribute 'heads'"):
        _ = cvit.theorem.heads  # pyright: ignore[reportAttributeAccessIssue]


def test_counting_heads_imports_no_torch() -> None:
    code = "import sys; from cvit.theorem import heads_needed; print(heads_needed(3, 16), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["9", "False"]
