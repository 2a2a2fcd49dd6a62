"""Convolutions by several layers of attention: fewer heads in all, at a price in width.

L layers with skip connections are a sum of Π (H_l + 1) Kronecker products (`cvit.theorem.counts.maps_of`). The maps of
a convolution are many where its offsets are written in digits, δ = Σ_l d_l, with one layer for each digit:

    M_{d_1 … d_L} = W¹_{d_1} W²_{d_2} … W^L_{d_L}

where layer l has a head for each digit d_l ≠ 0, which attends to the patch d_l away, and the skip connection for
d_l = 0. Such a product is a *tensor train*: its bonds are the widths of the tokens between the layers.

Source: Oseledets, "Tensor-train decomposition", 2011, for ranks and truncation; that layers of attention are the cores,
and what follows for heads, widths and borders, is ours.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Unpack

import torch
from torch import Tensor, nn

from cvit.geometry import Offset
from cvit.models.embedding import from_patches, to_patches
from cvit.theorem.convolutions import Causal, Convolution, kernel_of
from cvit.theorem.counts import Axis, Options, Size, axes_of, heads_by_layer, per_axis
from cvit.theorem.kernel import grid_of, offsets, patch_maps, shift_norms, spectrum
from cvit.theorem.layer import attention_at


class DeepAttention(nn.Module):
    """Layers of attention on one grid of tokens, with a linear skip connection around each.

    Attributes:
        attention: the layers, on tokens as pixels: `PatchAttention` with patches of one token.
        skip: for each layer the linear map of the tokens that is added, or None.
        bias: (out_channels), or None.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        layers: Sequence[tuple[nn.Module, nn.Linear | None]],
        patch: tuple[int, ...],
        out_patch: tuple[int, ...],
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.patch, self.out_patch = patch, out_patch
        self.attention = nn.ModuleList(attention for attention, _ in layers)
        self.skip = nn.ModuleList(nn.Identity() if skip is None else skip for _, skip in layers)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))

    @property
    def heads(self) -> tuple[int, ...]:
        """The number of heads of each layer."""
        return tuple(int(layer.num_heads) for layer in self.attention)  # pyright: ignore[reportArgumentType]

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of the tokens between the layers."""
        return tuple(int(layer.out_channels) for layer in self.attention)[:-1]  # pyright: ignore[reportArgumentType]

    def forward(self, input: Tensor) -> Tensor:
        """(B, in_channels, *shape) → (B, out_channels, *shape), or the shape that patches of `out_patch` give."""
        grid = grid_of(tuple(input.shape[-len(self.patch) :]), self.patch)
        tokens = to_patches(input, self.patch)
        for attention, skip in zip(self.attention, self.skip, strict=True):
            mixed = attention(tokens.transpose(-1, -2).unflatten(-1, grid)).flatten(-len(grid)).transpose(-1, -2)
            tokens = mixed + skip(tokens) if isinstance(skip, nn.Linear) else mixed
        output = from_patches(tokens, grid, self.out_patch)
        return output if self.bias is None else output + self.bias.view(-1, *(1,) * len(grid))


def digits_along(axis: Axis, layers: int) -> list[tuple[int, ...]]:
    """The digits of L layers, whose sums are the offsets of a convolution along an axis.

    Offsets of one sign, as of a causal kernel, are 0, g, …, (m − 1)·g or fewer of these; the digits are
    {0, …, b_l − 1}·g·Π_{k<l} b_k with Π b_l ≥ m. Offsets of both signs take one layer: with more, a token on the way
    may lie outside the image where the first and the last do not, and the borders would be wrong.

    Raises:
        ValueError: no layer, or several for offsets of both signs.
    """
    reached = axis.offsets
    if layers == 1:
        return [tuple(sorted({0, *reached}))]
    if min(reached) < 0 < max(reached):
        raise ValueError(f"offsets of both signs, {min(reached)} to {max(reached)}, take one layer, not {layers}")
    step = math.gcd(*reached) or 1
    sign = -1 if min(reached) < 0 else 1
    digits, place = [], sign * step
    for heads in heads_by_layer(max(map(abs, reached)) // step + 1, layers):
        digits.append(tuple(place * digit for digit in range(heads + 1)))
        place *= heads + 1
    return digits


def convolution_as_deep_attention(
    conv: Convolution,
    patch_size: Size,
    layers: Size = 1,
    *,
    widths: int | Sequence[int] | None = None,
    image_size: Size | None = None,
    skip: bool = True,
    causal: Causal = False,
) -> DeepAttention:
    """A convolution by layers of attention, each along one axis: exact if the tokens between them are wide enough.

    With one layer for each axis this is *axial* attention: 2 + 2 heads with skip connections (3 + 3 without) instead of
    9 for a 3×3 kernel. Along an axis whose offsets have one sign, as of a causal kernel, there may be several layers:
    27 causal offsets take three layers of 2 heads, and 9×9 causal ones four.

    The widths that are needed are `depth_ranks`; with less, the layers are those of a truncated tensor train, whose
    error lies between the `depth_bounds`, and is as small as can be with two layers.

    Proof: the product of the layers is Σ_d S_{d_1} ⋯ S_{d_L} ⊗ (W¹_{d_1} ⋯ W^L_{d_L}), and S_{d_1} ⋯ S_{d_L} = S_{Σd},
    borders included, if the digits along an axis have one sign or there is one only: then each token on the way lies
    between the first and the last. The rest is the tensor train of the maps. Source: see the module.

    Args:
        conv: as in `cvit.theorem.convolution_as_attention`.
        patch_size: in pixels along each axis; an int is the same along all.
        layers: for each axis; an int is the same for all.
        widths: of the tokens between the layers; an int is the same everywhere, None as many as needed.
        image_size: with smaller widths, the size of images for which the error is to be small, for axes with one layer;
            None: large images.
        skip: without skip connections a layer has one head more, for the offset 0.
        causal: as in `cvit.theorem.convolution_as_attention`.

    Raises:
        ValueError: as there, or several layers along an axis with offsets of both signs, or widths that are not one
            fewer than layers or below 1.
    """
    weight, bias, options = kernel_of(conv, causal)
    patch = per_axis(patch_size, weight.ndim - 2)
    axes = axes_of(tuple(weight.shape[2:]), patch, **options)
    digits = _digits(axes, layers)
    weights = _pair_weights(digits, axes, patch, image_size)
    taps = _weighted(_taps(weight.detach(), patch, digits, **options), weights)
    train = [
        core * torch.where(pairs > 0, 1 / pairs, 0.0).to(core)[:, None, None]
        for core, pairs in zip(tensor_train(taps, _bonds(widths, len(digits))), weights, strict=True)
    ]
    built = []
    for core, along in zip(train, digits, strict=True):
        heads = [number for number, digit in enumerate(along) if any(digit) or not skip or len(along) == 1]
        ones = (1,) * len(patch)
        attention = attention_at([along[number] for number in heads], core[heads], ones, ones)
        built.append((attention, None if len(heads) == len(along) else _linear(core[along.index((0,) * len(patch))])))
    out_patch = tuple(axis.out_patch for axis in axes)
    module = DeepAttention(built, patch, out_patch, None if bias is None else bias.detach().clone())
    module.to(weight).requires_grad_(weight.requires_grad).train(conv.training)
    return module


def depth_ranks(weight: Tensor, patch_size: Size, layers: Size = 1, **options: Unpack[Options]) -> tuple[int, ...]:
    """The widths that the tokens need between the layers of `convolution_as_deep_attention`, to be exact: the ranks of
    the unfoldings of the maps, rows (in, d_1, …, d_l) and columns (d_{l+1}, …, d_L, out).

    For two axes that is at most (2r + 1)·D, with D numbers in a token; a general K×K kernel with C channels in and out
    needs (P + K − 1)·P·C, which is (2r + 1)·D on pixels and less on patches.

    Proof: the product of the first l cores and that of the others factor the unfolding over the bond between them; and
    the tensor train that has these ranks exists. Source: Oseledets 2011, theorem 2.1.
    """
    patch = per_axis(patch_size, weight.ndim - 2)
    digits = _digits(axes_of(tuple(weight.shape[2:]), patch, **options), layers)
    unfoldings = _unfoldings(_taps(weight.detach(), patch, digits, **options))
    return tuple(int(spectrum(matrix, matrix.shape[1]).count_nonzero()) for matrix in unfoldings)


def depth_bounds(
    weight: Tensor,
    patch_size: Size,
    widths: int | Sequence[int],
    layers: Size = 1,
    *,
    image_size: Size | None = None,
    **options: Unpack[Options],
) -> tuple[float, float]:
    """The error of layers of given widths is at least max_l √(Σ_{k > D_l} σ_k²), and √(Σ_l Σ_{k > D_l} σ_k²) is enough,
    relative to the norm of the convolution; σ are the singular values of the unfoldings of `depth_ranks`.

    The second is at most √(L − 1) times the first. For two layers they are equal: this is `axial_error`.

    The error is that of the taps, which is that of the operator on large images. With an image size the unfoldings have
    the weights √((n − |a|)(n − |b|)), and it is that of the operator on these images; then the first number bounds the
    error of any heads along these axes, not only of shifts. It needs one layer for each axis.

    Proof: layers of width D_l make an unfolding of rank D_l, and Eckart and Young. The second is the error of the
    truncation from left to right (TT-SVD), whose parts are orthogonal. Source: Oseledets 2011, theorem 2.2.

    Raises:
        ValueError: as `convolution_as_deep_attention`, or several layers along an axis and an image size.
    """
    patch = per_axis(patch_size, weight.ndim - 2)
    axes = axes_of(tuple(weight.shape[2:]), patch, **options)
    digits = _digits(axes, layers)
    taps = _taps(weight.detach(), patch, digits, **options)
    taps = _weighted(taps, _pair_weights(digits, axes, patch, image_size))
    norm = float(taps.norm())
    bonds = _bonds(widths, len(digits)) or ()
    tails = [
        float(torch.linalg.svdvals(matrix)[width:].norm())
        for matrix, width in zip(_unfoldings(taps), bonds, strict=True)
    ]
    return (max(tails, default=0.0) / norm, math.hypot(*tails) / norm) if norm else (0.0, 0.0)


def axial_error(weight: Tensor, patch_size: Size, width: int, image_size: Size, **options: Unpack[Options]) -> float:
    """The least error of attention along the first axis and then along the second, with any heads and tokens of the
    given width in between, relative to the convolution's norm:

        √(Σ_{k > width} σ_k²),  σ of the matrix √((n − |a|)(n − |b|)) M_ab with rows (a, in) and columns (b, out)

    It is zero from `depth_ranks` on, at most (2r + 1)·D, with 2(2r + 1) heads instead of (2r + 1)².
    `convolution_as_deep_attention` with the same width and image size has this error.

    Proof: layer 1 is an operator on (the first axis, in → width), whatever its heads, layer 2 one on (the second axis,
    width → out), so that their product, rearranged with rows (pairs along the first axis, in), is any matrix of rank at
    most `width`. The convolution is Σ S_a ⊗ S_b ⊗ M_ab with orthogonal S_a of norm √(n − |a|): Eckart and Young.
    Source: ours.

    Raises:
        ValueError: the convolution has other than two axes, or as `depth_bounds`.
    """
    if weight.ndim != 4:
        raise ValueError(f"axial attention has two axes, not {weight.ndim - 2}")
    return depth_bounds(weight, patch_size, width, image_size=image_size, **options)[0]


def tensor_train(tensor: Tensor, widths: Sequence[int] | None = None) -> list[Tensor]:
    """The cores (b_l, D_{l−1}, D_l), float64, of a tensor train near a tensor (D_in, b_1, …, b_L, D_out), truncated to
    the widths from left to right; it is the tensor itself if they reach the ranks of the unfoldings, or are None."""
    rest, cores = tensor.double(), []
    for layer in range(tensor.ndim - 3):
        matrix = rest.flatten(2).flatten(0, 1)
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        rank = max(1, int(spectrum(matrix, matrix.shape[1]).count_nonzero()))
        width = rank if widths is None else min(rank, widths[layer])
        cores.append(left[:, :width].unflatten(0, rest.shape[:2]).transpose(0, 1))
        rest = (values[:width, None] * right[:width]).unflatten(1, rest.shape[2:])
    return [*cores, rest.transpose(0, 1)]


def _digits(axes: Sequence[Axis], layers: Size) -> list[list[Offset]]:
    """The offsets to which each layer attends, those along the first axis first."""
    digits: list[list[Offset]] = []
    for number, (axis, count) in enumerate(zip(axes, per_axis(layers, len(axes)), strict=True)):
        if count < 1:
            raise ValueError(f"layers must be at least 1, not {count}")
        digits += [
            [tuple(step if a == number else 0 for a in range(len(axes))) for step in along]
            for along in digits_along(axis, count)
        ]
    return digits


def _taps(
    weight: Tensor, patch: tuple[int, ...], digits: Sequence[Sequence[Offset]], **options: Unpack[Options]
) -> Tensor:
    """(D_in, b_1, …, b_L, D_out), float64: the maps by their digits, zero where the sum of the digits is no offset."""
    spanned = offsets(tuple(weight.shape[2:]), patch, **options)
    maps = dict(zip(spanned, patch_maps(weight.double(), patch, **options), strict=True))
    nothing = torch.zeros_like(maps[spanned[0]])
    sums = [tuple(map(sum, zip(*combination, strict=True))) for combination in product(*digits)]
    return torch.stack([maps.get(offset, nothing) for offset in sums]).unflatten(0, [*map(len, digits)]).movedim(-2, 0)


def _unfoldings(tensor: Tensor) -> Iterator[Tensor]:
    """The matrices with rows (in, d_1, …, d_l) and columns (d_{l+1}, …, d_L, out), for each bond l."""
    for bond in range(1, tensor.ndim - 2):
        yield tensor.flatten(bond + 1).flatten(0, bond)


def _pair_weights(
    digits: Sequence[Sequence[Offset]], axes: Sequence[Axis], patch: tuple[int, ...], image_size: Size | None
) -> list[Tensor]:
    """√(n − |d|)₊ for each digit of each layer, along its axis; 1 without an image size."""
    if image_size is None:
        return [torch.ones(len(along), dtype=torch.float64) for along in digits]
    if len(digits) != len(axes):
        raise ValueError("an image size needs one layer for each axis")
    grid = grid_of(image_size, patch)
    alone = [tuple(n if a == axis else 1 for a in range(len(grid))) for axis, n in enumerate(grid)]
    return [shift_norms(along, lengths) for along, lengths in zip(digits, alone, strict=True)]


def _weighted(taps: Tensor, weights: Sequence[Tensor]) -> Tensor:
    for layer, along in enumerate(weights, start=1):
        taps = taps * along.to(taps).view(-1, *(1,) * (taps.ndim - 1 - layer))
    return taps


def _bonds(widths: int | Sequence[int] | None, layers: int) -> Sequence[int] | None:
    """The width of each bond; None if none is given."""
    if widths is None:
        return None
    bonds = [widths] * (layers - 1) if isinstance(widths, int) else [*widths]
    if len(bonds) != layers - 1:
        raise ValueError(f"{len(bonds)} widths for {layers - 1} bonds of {layers} layers")
    if min(bonds, default=1) < 1:
        raise ValueError(f"widths must be at least 1, not {min(bonds)}")
    return bonds


def _linear(map_: Tensor) -> nn.Linear:
    """x ↦ Mᵀ x."""
    with torch.device("meta"):
        linear = nn.Linear(*map_.shape, bias=False)
    linear.load_state_dict({"weight": map_.T.contiguous()}, assign=True)
    return linear
