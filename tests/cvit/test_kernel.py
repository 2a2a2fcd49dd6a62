from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cvit.geometry import Offset
from cvit.theorem.convolutions import dense_kernel
from cvit.theorem.counts import general_kernel_heads, heads_needed
from cvit.theorem.kernel import error_bound, kernel_heads, offsets, patch_maps, shift_norms, singular_values
from cvit.theorem.layer import PatchAttention, convolution_as_attention
from tests.support.convolutions import convolved, operator, randn, random_conv, relative_error


def rearranged(matrix: Tensor, patch_size: int) -> Tensor:
    """One row for each pair of patches, one column for each pair of their entries: A ⊗ B becomes vec(A) vec(B)ᵀ.

    The order inside a patch is another than the layer's: singular values do not depend on it.
    """
    out_channels, height, width, in_channels = matrix.shape[:4]
    rows, columns, side = height // patch_size, width // patch_size, patch_size
    blocks = matrix.reshape(out_channels, rows, side, columns, side, in_channels, rows, side, columns, side)
    blocks = blocks.permute(1, 3, 6, 8, 0, 2, 4, 5, 7, 9)  # (i, j), then what is inside
    return blocks.reshape((rows * columns) ** 2, -1)


# The maps and the shifts


def test_the_maps_are_the_blocks_of_the_operator() -> None:
    """Block (i, j) of the dense convolution is M_δᵀ, δ = j − i, in the order of pixel_unshuffle; zero where too far."""
    conv = random_conv(2, 3, 3, bias=False)
    rows, columns, side = 3, 4, 2
    matrix = operator(conv, 2, rows * side, columns * side)
    images = F.pixel_unshuffle(matrix.permute(3, 4, 5, 0, 1, 2).flatten(0, 2), side).flatten(2)  # (unit, P²D_out, N)
    inputs = F.pixel_unshuffle(images.permute(1, 2, 0).unflatten(2, (2, rows * side, columns * side)), side)
    blocks = inputs.flatten(3).permute(1, 3, 2, 0)  # (i, j, P²C, P²D_out)
    maps = dict(zip(offsets(3, side), patch_maps(conv.weight.detach(), side), strict=True))
    for i in range(rows * columns):
        for j in range(rows * columns):
            offset = (j // columns - i // columns, j % columns - i % columns)
            expected = maps.get(offset, torch.zeros(8, 12, dtype=torch.float64))
            assert torch.equal(blocks[i, j], expected)


def test_the_maps_keep_dtype_and_device() -> None:
    weight = torch.arange(2 * 3 * 25).reshape(2, 3, 5, 5)
    maps = patch_maps(weight, 1)
    assert maps.dtype == weight.dtype
    assert torch.equal(maps, weight.permute(2, 3, 1, 0).flatten(0, 1))  # on pixels, one tap for each offset
    assert patch_maps(weight.to("meta"), 2).shape == (9, 12, 8)


def test_the_norms_count_the_pairs_of_patches() -> None:
    rows, columns = 3, 2
    pairs = [(y2 - y1, x2 - x1) for y1 in range(3) for x1 in range(2) for y2 in range(3) for x2 in range(2)]
    expected = [pairs.count((dy, dx)) for dy, dx in offsets(7, 1)]
    assert sum(expected) == (rows * columns) ** 2 and 0 in expected
    torch.testing.assert_close(
        shift_norms(offsets(7, 1), (rows, columns)).square(), torch.tensor(expected, dtype=torch.float64)
    )


# The bound


@pytest.mark.parametrize(
    ("channels", "kernel_size", "patch_size", "image_size"),
    [
        ((3, 3), 3, 1, 4),
        ((1, 2), 3, 1, 5),
        ((1, 1), 3, 2, 6),
        ((2, 1), 3, 2, 4),
        ((1, 2), 3, 4, 8),
        ((2, 3), 2, 1, 4),
        ((2, 1), 4, 2, 6),
        ((4, 3), 5, 1, 3),  # 25 offsets span 5×5 patches, and all of them occur
        ((5, 6), 5, 1, 2),  # 9 of the 25 offsets occur
        ((5, 5), 5, 1, 1),  # one
        ((2, 2), 7, 2, 4),  # 9 of 25
        ((1, 1), 5, 2, 8),
    ],
)
def test_the_singular_values_are_those_of_the_rearranged_operator(
    channels: tuple[int, int], kernel_size: int, patch_size: int, image_size: int
) -> None:
    """Against the dense operator, which knows nothing of offsets."""
    conv = random_conv(*channels, kernel_size, bias=False)
    matrix = operator(lambda images: convolved(conv, images), channels[0], image_size, image_size)
    table = rearranged(matrix, patch_size)
    expected = torch.linalg.svdvals(table)
    values = singular_values(conv.weight, patch_size, image_size)
    assert values.shape == (heads_needed(kernel_size, patch_size),) and values.dtype == torch.float64
    length = max(len(values), len(expected))
    both = [F.pad(column, (0, length - len(column))) for column in (values, expected)]
    torch.testing.assert_close(*both, rtol=1e-10, atol=1e-10)
    rank = int(torch.linalg.matrix_rank(table))
    assert kernel_heads(conv.weight, patch_size, image_size) == rank
    norm = float(matrix.norm())
    for num_heads in range(len(values) + 2):
        distance = float(expected[num_heads:].norm()) / norm
        assert error_bound(conv.weight, patch_size, num_heads, image_size) == pytest.approx(distance, abs=1e-12)


def test_the_bound_falls_to_zero_exactly_where_the_heads_suffice() -> None:
    for channels, kernel_size, patch_size, image_size in (
        ((4, 4), 3, 1, 6),
        ((3, 2), 3, 1, 6),
        ((1, 1), 3, 2, 6),
        ((2, 2), 2, 2, 8),
        ((5, 5), 5, 1, 2),
    ):
        weight = randn(channels[1], channels[0], kernel_size, kernel_size)
        needed = kernel_heads(weight, patch_size, image_size)
        bounds = [error_bound(weight, patch_size, heads, image_size) for heads in range(needed + 3)]
        assert bounds[0] == pytest.approx(1.0, rel=1e-14)
        assert all(fewer > more for fewer, more in pairwise(bounds[: needed + 1]))
        assert bounds[needed - 1] > 1e-3 and bounds[needed:] == [0.0, 0.0, 0.0]
        scaled = [error_bound(-3.0 * weight, patch_size, heads, image_size) for heads in range(needed + 3)]
        assert scaled == pytest.approx(bounds, rel=1e-10)


def test_a_kernel_of_zeros_needs_no_head() -> None:
    weight = torch.zeros(2, 3, 3, 3)
    assert kernel_heads(weight, 2) == 0
    assert [error_bound(weight, 2, heads, 8) for heads in (0, 1, 9)] == [0.0, 0.0, 0.0]


def random_attention(generator: torch.Generator, heads: int, patches: int) -> Tensor:
    """(heads, N, N): softmaxes with a zero slot, from blunt to sharp ones, at random logits."""
    sharpness = 6 * torch.rand(heads, 1, 1, generator=generator, dtype=torch.float64)
    logits = sharpness * torch.randn(heads, patches, patches + 1, generator=generator, dtype=torch.float64)
    return logits.softmax(dim=-1)[..., :-1]


@pytest.mark.parametrize(("patch_size", "image_size"), [(1, 4), (2, 6)])
@pytest.mark.parametrize("heads", [1, 3, 8])
def test_no_attention_comes_closer_than_the_bound(patch_size: int, image_size: int, heads: int) -> None:
    """Random attention, and attention more and more like that of the theorem, each with the best W_h it can have."""
    conv = random_conv(3, 3, 3, bias=False)
    side = image_size // patch_size
    table = rearranged(operator(conv, 3, image_size, image_size), patch_size)
    bound = error_bound(conv.weight, patch_size, heads, image_size)
    generator = torch.Generator().manual_seed(heads)
    shifts = torch.stack([shift(offset, side) for offset in offsets(3, patch_size)])
    errors = []
    for mixture in (1.0, 1.0, 1.0, 0.3, 0.1, 0.01, 0.0):
        attention = mixture * random_attention(generator, heads, side**2) + (1 - mixture) * shifts[:heads]
        assert (attention >= 0).all() and (attention.sum(dim=-1) <= 1 + 1e-12).all()
        errors.append(least_squares_error(attention, table))
        random = randn(heads, table.shape[1], seed=len(errors))
        assert (table - attention.flatten(1).T @ random).norm() >= bound * table.norm()
    assert min(errors) >= bound
    assert max(errors) <= 1


@pytest.mark.parametrize("image_size", [3, 6])
def test_the_bound_is_reached_where_it_is_known_by_hand(image_size: int) -> None:
    """Tap (y, x) alone joins one pair of channels, so that the M_δ are orthogonal: best keep the strongest offsets."""
    size = torch.tensor([4.0, 2, 9, 1, 7, 3, 8, 5, 6], dtype=torch.float64)
    weight = torch.diag(size).view(3, 3, 3, 3)
    side = [image_size - abs(step) for step in (-1, 0, 1)]
    energy = size.square() * torch.tensor([float(rows * columns) for rows in side for columns in side])
    conv = nn.Conv2d(3, 3, 3, padding=1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(weight)
    table = rearranged(operator(conv, 3, image_size, image_size), 1)
    order = energy.argsort(descending=True)
    shifts = torch.stack([shift(offset, image_size) for offset in offsets(3, 1)])[order]
    for heads in range(1, 10):
        bound = error_bound(weight, 1, heads, image_size)
        assert bound == pytest.approx(float(energy[order[heads:]].sum() / energy.sum()) ** 0.5, rel=1e-12)
        assert least_squares_error(shifts[:heads], table) == pytest.approx(bound, rel=1e-10, abs=1e-12)


def least_squares_error(attention: Tensor, table: Tensor) -> float:
    """Relative distance of the rearranged convolution from Σ_h vec(A_h) vec(W_h)ᵀ with the best W_h for these A_h."""
    basis = attention.flatten(1).T
    best = torch.linalg.lstsq(basis, table).solution
    return float((table - basis @ best).norm() / table.norm())


def shift(offset: Offset, side: int) -> Tensor:
    """(N, N): S_δ = shift of the rows ⊗ shift of the columns."""
    dy, dx = (torch.diag(torch.ones(side - abs(step), dtype=torch.float64), step) for step in offset)
    return torch.kron(dy, dx)


def test_no_random_layer_comes_closer_than_the_bound() -> None:
    """The layer itself, not a matrix that stands for it."""
    conv = random_conv(2, 3, 3, bias=False)
    matrix = operator(conv, 2, 6, 6)
    for seed, heads in enumerate((1, 4, 6, 9)):
        layer = PatchAttention(2, 3, (2, 2), heads, head_dim=8, half_widths=(1, 1), bias=False).double()
        with torch.no_grad():
            for i, parameter in enumerate(layer.parameters()):
                parameter.copy_(0.2 * randn(*parameter.shape, seed=10 * seed + i))
        error = (operator(layer, 2, 6, 6) - matrix).norm() / matrix.norm()
        assert error >= error_bound(conv.weight, 2, heads, 6)
    # And where it is allowed as many heads as the theorem has, it reaches the bound, which is zero.
    layer = convolution_as_attention(conv, 2)
    assert error_bound(conv.weight, 2, layer.num_heads, 6) == 0.0
    torch.testing.assert_close(operator(layer, 2, 6, 6), matrix, rtol=0, atol=1e-12)


# Special kernels

IDENTITY = [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
RIGHT = [[0, 0, 0], [0, 0, 1], [0, 0, 0]]
DIAGONAL = [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
SOBEL = [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]
BLUR_ROW = [[0, 0, 0], [1, 2, 1], [0, 0, 0]]
DIFFERENCE_ROW = [[0, 0, 0], [-1, 0, 1], [0, 0, 0]]
LAPLACE = [[0, 1, 0], [1, -4, 1], [0, 1, 0]]
BOX = [[1, 1, 1], [1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize(
    ("kernel", "on_pixels", "on_patches_of_2"),
    # With one channel on pixels, every M_δ is a number: they are multiples of each other, and one head does.
    #
    # On patches of 2×2 a separable kernel has M_δ = Y_dy ⊗ X_dx with 2×2 factors (Y from the column, X from the row of
    # the kernel), so that the rank is rank{Y} · rank{X}. Three taps (a, b, c) along one axis make, in the order
    # [source pixel][target pixel], X_-1 = [[0, 0], [a, 0]], X_0 = [[b, a], [c, b]] and X_1 = [[0, c], [0, 0]].
    [
        # (0, 1, 0): X_0 = 1 and no neighbours, rank 1.
        (IDENTITY, 1, 1),
        # (0, 0, 1) reads one pixel to the right: from the same patch or from the next one, X_0 and X_1, rank 2.
        (RIGHT, 1, 2),
        (DIAGONAL, 1, 4),
        # (1, 2, 1): X_0 has a diagonal, X_±1 has none, rank 3.
        (BLUR_ROW, 1, 3),
        # (-1, 0, 1): X_0 = -(X_-1 + X_1), rank 2.
        (DIFFERENCE_ROW, 1, 2),
        # (1, 2, 1) along the columns, (-1, 0, 1) along the rows: 3 · 2.
        (SOBEL, 1, 6),
        # (1, 1, 1) along both: 3 · 3.
        (BOX, 1, 9),
        # No corners. M_0 = -4 · 1 ⊗ 1 + …, and its four neighbours 1 ⊗ X_±1 and X_±1 ⊗ 1 are independent: 5.
        (LAPLACE, 1, 5),
    ],
)
def test_heads_of_known_filters(kernel: list[list[int]], on_pixels: int, on_patches_of_2: int) -> None:
    weight = torch.tensor(kernel, dtype=torch.float32)[None, None]
    assert kernel_heads(weight, 1) == on_pixels
    assert kernel_heads(weight, 2) == on_patches_of_2
    # On an image of 3×3 patches every offset occurs, and the counts are the same.
    assert kernel_heads(weight, 1, 3) == on_pixels
    assert kernel_heads(weight, 2, 6) == on_patches_of_2
    # On one patch no neighbour occurs.
    assert kernel_heads(weight, 2, 2) == 1


@pytest.mark.parametrize(
    ("shape", "patch_size", "heads"),
    [
        # As many M_δ as offsets, and P⁴ · D_out · C numbers in each: a general kernel has independent ones.
        ((3, 3, 3, 3), 1, 9),
        ((1, 1, 3, 3), 2, 9),
        ((1, 1, 3, 3), 4, 9),
        ((5, 5, 5, 5), 1, 25),
        ((1, 1, 5, 5), 2, 9),
        ((7, 7, 7, 7), 1, 49),
        ((3, 3, 7, 7), 2, 25),
        # On pixels M_δ has D_out · C entries: with fewer of them than taps, they are all that can be independent.
        ((2, 3, 3, 3), 1, 6),
        ((4, 2, 3, 3), 1, 8),
        ((1, 7, 5, 5), 1, 7),
        # 1×1: no neighbour.
        ((3, 2, 1, 1), 1, 1),
        ((3, 2, 1, 1), 2, 1),
        # Even: "same" adds nothing before the first pixel of a 2×2 kernel, so it sees itself and three neighbours.
        ((2, 2, 2, 2), 1, 4),
        ((1, 2, 2, 2), 1, 2),
        ((1, 1, 2, 2), 2, 4),
        # 4×4 on pixels: taps -1, 0, 1, 2 of the five offsets -2 … 2, so 16 of 25. On patches of 2 all of 3 × 3.
        ((4, 4, 4, 4), 1, 16),
        ((1, 1, 4, 4), 2, 9),
    ],
)
def test_heads_of_a_general_kernel(shape: tuple[int, int, int, int], patch_size: int, heads: int) -> None:
    weight = randn(*shape)
    assert kernel_heads(weight, patch_size) == heads <= heads_needed(shape[-1], patch_size)
    assert general_kernel_heads(shape[-1], patch_size, shape[1], shape[0]) == heads
    assert kernel_heads(weight.float(), patch_size) == heads


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 6))
@settings(deadline=None, max_examples=60)
def test_the_count_of_a_general_kernel_is_the_rank_of_a_random_one(
    kernel_size: int, patch_size: int, in_channels: int, out_channels: int, grid_size: int
) -> None:
    weight = randn(out_channels, in_channels, kernel_size, kernel_size)
    count = general_kernel_heads(kernel_size, patch_size, in_channels, out_channels, grid_size)
    assert kernel_heads(weight, patch_size, patch_size * grid_size) == count


@pytest.mark.parametrize("name", ["kernel_size", "patch_size", "in_channels", "out_channels", "grid_size"])
def test_a_general_kernel_of_no_size(name: str) -> None:
    sizes = {"kernel_size": 3, "patch_size": 2, "in_channels": 1, "out_channels": 1, "grid_size": 4} | {name: 0}
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, not 0$"):
        general_kernel_heads(**sizes)


def test_heads_of_a_depthwise_kernel() -> None:
    """On pixels its M_δ are diagonal, so that only as many as there are channels are independent."""
    for channels, heads in ((1, 1), (4, 4), (12, 9)):
        conv = random_conv(channels, channels, 3, groups=channels)
        assert kernel_heads(dense_kernel(conv), 1) == heads
        assert kernel_heads(dense_kernel(conv), 2) == 9


def test_dependent_taps_need_fewer_heads() -> None:
    """Every tap a mixture of three 4×4 matrices: three heads, however the mixtures are rounded."""
    weight = torch.einsum("krs,koc->ocrs", randn(3, 3, 3), randn(3, 4, 4, seed=1))
    assert kernel_heads(weight, 1) == 3
    assert kernel_heads(weight, 1, 8) == 3
    assert error_bound(weight, 1, 2, 8) > 1e-3
    assert error_bound(weight, 1, 3, 8) == 0.0


def test_a_weak_tap_counts_until_it_is_rounding() -> None:
    weight = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    weight[0, 0, 1, 1] = 1.0
    for strength, heads in ((1e-3, 2), (1e-12, 2), (1e-20, 1)):
        weight[1, 0, 1, 2] = strength
        assert kernel_heads(weight, 1) == heads
        assert singular_values(weight, 1).tolist() == pytest.approx([1.0, strength * (heads - 1), *[0.0] * 7], rel=1e-9)
    weight[1, 0, 1, 2] = 1e-6  # on 4×4 pixels the two offsets occur 16 and 12 times
    assert error_bound(weight, 1, 1, 4) == pytest.approx(1e-6 * (12 / 16) ** 0.5, rel=1e-6)


def test_heads_on_small_images() -> None:
    """A 5×5 kernel on pixels has 25 offsets; on 2×2 pixels the nine nearest occur, on one pixel the centre."""
    weight = randn(5, 5, 5, 5)
    assert [kernel_heads(weight, 1, size) for size in (1, 2, 3, 4)] == [1, 9, 25, 25]


def test_one_head_really_computes_a_box_blur() -> None:
    """The count of one is no artefact of the rank: equal logits on nine neighbours, far lower than the zero slot's, so
    that the weights do not depend on how many of the neighbours lie inside the image."""
    images = randn(2, 1, 5, 6)
    blur = F.conv2d(images, torch.ones(1, 1, 3, 3, dtype=torch.float64), padding=1)
    assert relative_error(one_channel([BOX], [1.0], depth=20.0), images, blur) < 1e-7
    assert relative_error(one_channel([BOX], [1.0], depth=5.0), images, blur) > 1e-3


def test_a_softmax_needs_a_second_head_for_an_edge_filter() -> None:
    """One head would need weights of both signs: the bound counts one, a softmax takes its two signs in two heads."""
    images = randn(2, 1, 5, 6)
    weight = torch.tensor(SOBEL, dtype=torch.float64)[None, None]
    edges = F.conv2d(images, weight, padding=1)
    positive, negative = weight[0, 0].clamp(min=0), (-weight[0, 0]).clamp(min=0)
    layer = one_channel([positive.tolist(), negative.tolist()], [1.0, -1.0], depth=20.0)
    assert relative_error(layer, images, edges) < 1e-7
    assert error_bound(weight, 1, 1, 6) == 0.0


def one_channel(taps: Sequence[Sequence[Sequence[float]]], signs: Sequence[float], depth: float) -> PatchAttention:
    """One head for each table of weights ≥ 0 on the 3×3 neighbourhood, e^-depth times as large beside the zero slot."""
    layer = PatchAttention(1, 1, (1, 1), len(taps), head_dim=1, half_widths=(1, 1), bias=False).double()
    with torch.no_grad():
        layer.relative_bias[:, :9] = torch.tensor(taps, dtype=torch.float64).flatten(1).log() - depth
        layer.relative_bias[:, 9] = -torch.inf
        layer.relative_bias[:, 10] = 0.0
        layer.value.weight.fill_(1.0)
        layer.output.weight.copy_(torch.tensor(signs, dtype=torch.float64)[None] * np.exp(depth))
    return layer


def test_large_kernels_are_counted_without_large_matrices() -> None:
    """As many as in the last layers of a ResNet: vec(M_δ) would have 67 million entries."""
    weight = randn(512, 512, 3, 3)
    assert kernel_heads(weight, 4, 16) == 9
    assert 0 < error_bound(weight, 4, 8, 16) < error_bound(weight, 4, 1, 16) < 1


# Bad input


@pytest.mark.parametrize("shape", [(3, 3), (2, 3)])
def test_kernels_without_an_axis(shape: tuple[int, ...]) -> None:
    message = rf"^a kernel must have the shape \(D_out, C, K_1, ..., K_d\), not \({', '.join(map(str, shape))}\)$"
    weight = torch.zeros(shape)
    for call in (patch_maps, singular_values, kernel_heads):
        with pytest.raises(ValueError, match=message):
            call(weight, 1)
    with pytest.raises(ValueError, match=message):
        error_bound(weight, 1, 1, 4)


def test_bad_numbers() -> None:
    weight = torch.ones(1, 1, 3, 3)
    for call in (patch_maps, singular_values, kernel_heads):
        with pytest.raises(ValueError, match=r"^patch_size must be at least 1, not 0$"):
            call(weight, 0)
    for call in (singular_values, kernel_heads):
        with pytest.raises(ValueError, match=r"^patch size 2 does not divide the image size 7$"):
            call(weight, 2, 7)
    with pytest.raises(ValueError, match=r"^patch size 3 does not divide the image size 8$"):
        error_bound(weight, 3, 1, 8)
    with pytest.raises(ValueError, match=r"^num_heads must be at least 0, not -1$"):
        error_bound(weight, 2, -1, 8)
