"""The number of heads that the theorem counts for a convolution: how its kernel lies on patches, axis by axis."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Literal, TypedDict, Unpack

Size = int | tuple[int, ...]
"""A size along each axis; an int stands for the same size along all axes."""

Padding = Literal["same", "causal"]
"""A padding by its name, as in `Options`."""


class Options(TypedDict, total=False):
    """The options of a convolution, as in torch: an int for all axes, or one for each.

    `padding` is the number of zeros before the first pixel; as many follow after the last one as n/s outputs need.
    "same", the default, is half of what the kernel reaches, D(K − 1)/2; "causal" is all of it, so that no output sees a
    pixel behind its own. One causal axis among others is written in numbers: (2, 1, 1) for the 3 frames of a video.
    """

    stride: Size
    dilation: Size
    padding: Size | Padding


@dataclass(frozen=True)
class Axis:
    """A convolution along one axis, y_o = Σ_k w_k x_{s·o + D·k − before}, seen from patches of P pixels.

    Where s divides P, the outputs of a patch of P pixels are P/s: patches of the output lie on the same grid. Pixel v
    of patch i is o = i·P/s + v, and pixel u of patch i + δ is (i + δ)·P + u. So tap k joins the two where

        D·k = u + P·δ − s·v + before.

    Attributes:
        before: the paddings that the offsets serve. There are two where "same" leaves open on which side an odd pixel
            is added; the maps have the first, which is torch's.
    """

    taps: int
    patch: int
    stride: int
    dilation: int
    before: tuple[int, ...]

    @property
    def out_patch(self) -> int:
        """P/s, the outputs of a patch."""
        return self.patch // self.stride

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """The offsets δ = ⌊(s·v + D·k − before) / P⌋ at which a tap joins two patches, ascending.

        A dense kernel has all from −⌈before/P⌉ to ⌈(K − s − before)/P⌉; one whose dilation P divides has K, however
        far apart its taps are.
        """
        reached = product(range(0, self.patch, self.stride), range(self.taps), self.before)
        return tuple(sorted({(pixel + self.dilation * tap - before) // self.patch for pixel, tap, before in reached}))

    def tap(self, offset: int, source: int, target: int) -> int | None:
        """The tap that joins pixel u of the patch attended to with pixel v of the attending one; None if none does."""
        place = source + self.patch * offset - self.stride * target + self.before[0]
        tap, rest = divmod(place, self.dilation)
        return tap if rest == 0 and 0 <= tap < self.taps else None


def per_axis(size: Size, axes: int) -> tuple[int, ...]:
    """The size along each of the axes.

    Raises:
        ValueError: the number of sizes is not the number of axes.
    """
    sizes = (size,) * axes if isinstance(size, int) else tuple(size)
    if len(sizes) != axes:
        raise ValueError(f"{sizes} has {len(sizes)} sizes for {axes} axes")
    return sizes


def axes_of(kernel_size: Size, patch_size: Size, **options: Unpack[Options]) -> tuple[Axis, ...]:
    """A convolution along each axis: as many axes as a tuple among the sizes has, two if all are ints.

    Raises:
        ValueError: a size is below 1 (a padding below 0), the stride does not divide the patch, or the sizes have
            different numbers of axes.
    """
    padding = options.get("padding", "same")
    sizes: dict[str, Size] = {
        "kernel_size": kernel_size,
        "patch_size": patch_size,
        "stride": options.get("stride", 1),
        "dilation": options.get("dilation", 1),
    }
    known = [*sizes.values(), *(() if isinstance(padding, str) else (padding,))]
    axes = next((len(size) for size in known if not isinstance(size, int)), 2)
    by_axis = {name: per_axis(size, axes) for name, size in sizes.items()}
    for name, values in by_axis.items():
        if min(values) < 1:
            raise ValueError(f"{name} must be at least 1, not {min(values)}")
    for side, step in zip(by_axis["patch_size"], by_axis["stride"], strict=True):
        if side % step:
            raise ValueError(f"patch size {side} is no multiple of the stride {step}")
    reaches = [step * (taps - 1) for taps, step in zip(by_axis["kernel_size"], by_axis["dilation"], strict=True)]
    if padding == "same":
        paddings = [tuple(sorted({reach // 2, reach - reach // 2})) for reach in reaches]
    elif padding == "causal":
        paddings = [(reach,) for reach in reaches]
    elif isinstance(padding, str):
        raise ValueError(f"padding must be 'same', 'causal' or numbers, not {padding!r}")
    else:
        paddings = [(before,) for before in per_axis(padding, axes)]
        if min(paddings) < (0,):
            raise ValueError(f"padding must be at least 0, not {min(paddings)[0]}")
    return tuple(Axis(*sizes) for sizes in zip(*by_axis.values(), paddings, strict=True))


def half_width(kernel_size: int, patch_size: int) -> int:
    """r = ⌈(K − 1) / 2P⌉: the number of patches, along one axis and to one side, that a kernel of K taps reaches.

    Raises:
        ValueError: a size is below 1.
    """
    for name, value in (("kernel_size", kernel_size), ("patch_size", patch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    return -((1 - kernel_size) // (2 * patch_size))


def heads_needed(kernel_size: Size, patch_size: Size, **options: Unpack[Options]) -> int:
    """The number of heads with which attention over patches computes any convolution: a head for each offset between
    patches that a tap joins, the product over the axes.

    - A convolution with "same" padding: Π (2⌈(K − 1)/2P⌉ + 1), the paper's theorem 1.
    - A *causal* one: Π (⌈(K − 1)/P⌉ + 1).
    - With *stride* s | P: Π (1 + ⌈pad/P⌉ + ⌈max(0, K − s − pad)/P⌉), tokens of P pixels to tokens of P/s on one grid.
    - With *dilation* D: Π K where P divides D, whatever D is; at most Π 2K otherwise, and never more than the dense
      kernel of D(K − 1) + 1 taps.

    Two ints are sizes on images, with two axes: `heads_needed(3, 16)` is 9. A tuple has a size per axis:
    `heads_needed((3,), 16)`, for series, is 3, `heads_needed((3, 3, 3), 16)`, for volumes, is 27, and
    `heads_needed(3, 16, stride=2)` is 4.

    Proof: `cvit.theorem.kernel` writes the convolution as Σ_δ S_δ ⊗ M_δ over the offsets that occur; head δ attends to
    the patch at offset δ and applies M_δ. Pixels u and v of two patches and tap k occur together where
    D·k = u + P·δ − s·v + before (`Axis`), so δ is the floor of (s·v + D·k − before)/P. If P divides D, tap k moves all
    pixels by the same whole number of patches. Source: paper, theorem 1; strides, dilations and causal kernels ours.

    Raises:
        ValueError: as `axes_of`.
    """
    return math.prod(len(axis.offsets) for axis in axes_of(kernel_size, patch_size, **options))


def window_heads(kernel_size: Size, patch_size: Size, **options: Unpack[Options]) -> tuple[int, int]:
    """The heads of the two layers, in windows and then in shifted windows, that compute any convolution whose offsets
    reach no further than half a window: `cvit.theorem.windows.convolution_as_two_window_layers`.

    For a kernel of half-width r along each of d axes: 2(4r + 1)ᵈ − (2r + 1)ᵈ and (2r + 1)ᵈ, on images with r = 1
    41 and 9. Proof: layer 2 has a head for each choice of the axes that cross a border and of the offsets along them;
    layer 1 has two for each offset of the kernel and each such choice, and one where no axis crosses.

    Raises:
        ValueError: as `axes_of`.
    """
    axes = axes_of(kernel_size, patch_size, **options)
    across = [len({*axis.offsets} - {0}) for axis in axes]
    all_of = [len(axis.offsets) for axis in axes]
    choices = math.prod(inside + crossing for inside, crossing in zip(all_of, across, strict=True))
    return 2 * choices - math.prod(all_of), math.prod(crossing + 1 for crossing in across)


def maps_of(heads: Sequence[int], *, skip: bool = True) -> int:
    """Π (H_l + 1), without skip connections Π H_l: the number of independent maps that layers with H_l heads can have
    between them.

    Proof: a layer is Σ_h A_h ⊗ W_h, with a skip connection (which may have a matrix of its own, for each token) one
    term more, I ⊗ W. Multiplied out, L layers are so many Kronecker products; a convolution with R independent maps is
    no sum of fewer than R. So Π (H_l + 1) ≥ R is necessary, and the error of layers with fewer is at least
    `cvit.theorem.error_bound` with this number of terms. `cvit.theorem.depth` has layers that reach it. Source: ours.
    """
    return math.prod(count + skip for count in heads)


def heads_by_layer(maps: int, layers: int, *, skip: bool = True) -> tuple[int, ...]:
    """The heads of each of L layers, as few in all as `maps_of` allows for so many independent maps: nine need 9 heads
    in one layer, 8 with the skip connection, and 2 + 2 in two layers; 81 need 2 + 2 + 2 + 2 in four.

    Among numbers with one sum, those that differ least have the largest product: so they are b or b − 1, with
    b = ⌈R^(1/L)⌉ the least that would do in all layers.

    Raises:
        ValueError: there is no map or no layer.
    """
    for name, value in (("maps", maps), ("layers", layers)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    base = 1
    while base**layers < maps:
        base += 1
    smaller = max(count for count in range(layers + 1) if (base - 1) ** count * base ** (layers - count) >= maps)
    terms = [base] * (layers - smaller) + [base - 1] * smaller
    return tuple(term - skip for term in terms)


def least_hidden_width(channels: int, taps: int = 25, layer_taps: int = 9) -> int:
    """The least m for which 2·t·C·m − m² ≥ T·C²: channels that two convolutions of t taps need between them to compose
    general kernels of T taps from C channels to C. Two of 3×3 compose a 5×5 only if 18Cm − m² ≥ 25C².

    It is necessary, not sufficient: the left side is the number of weights less the m² by which a change of basis
    between the layers changes nothing. Source: ours.

    Raises:
        ValueError: no width does, because two such layers have too few taps, or a number is below 1.
    """
    for name, value in (("channels", channels), ("taps", taps), ("layer_taps", layer_taps)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    for width in range(1, layer_taps * channels + 1):
        if 2 * layer_taps * channels * width - width**2 >= taps * channels**2:
            return width
    raise ValueError(f"two layers of {layer_taps} taps compose no general kernel of {taps} taps")


def general_kernel_heads(
    kernel_size: int,
    patch_size: int,
    in_channels: int,
    out_channels: int,
    grid_size: int | None = None,
    axes: int = 2,
    **options: Unpack[Options],
) -> int:
    """The number of heads that a general kernel with K taps along each of d axes needs. It is the rank of the maps M_δ:
    min(sᵈ, D_in D_out (2P − 1)ᵈ) for stride and dilation 1.

    Along one axis s = 1 + ⌈⌊(K − 1)/2⌋ / P⌉ + ⌈⌊K/2⌋ / P⌉ offsets occur, none longer than the grid: an even-sized
    kernel may need no neighbour on one side. For each pair of channels the M_δ are Toeplitz along each axis, a space of
    (2P − 1)ᵈ dimensions. So this number equals `heads_needed` for a kernel that needs both sides, enough channels and a
    large enough image, and is smaller otherwise. A given kernel may need still fewer: see
    `cvit.theorem.kernel.kernel_heads`.

    With a stride s there are 2P − s diagonals instead of 2P − 1. With a dilation D, offsets that differ by no multiple
    of D/gcd(P, D) have no entry in common, so the number is a sum over the classes of offsets. Along several axes that
    is an upper bound: a kernel with few taps may have maps that depend on each other (two polynomials f and g in
    several variables have f·g − g·f = 0).

    Args:
        grid_size: patches along each axis of the image; None for a large image.
        axes: d.
        options: as `Options`, ints.

    Raises:
        ValueError: a size is below 1.
    """
    half_width(kernel_size, patch_size)  # raises for sizes below 1
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("grid_size", grid_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    axis = axes_of((kernel_size,), patch_size, **options)[0]
    classes: dict[int, tuple[set[int], set[int]]] = {}
    for offset, diagonal in _entries(axis):
        if grid_size is None or abs(offset) < grid_size:
            offsets, diagonals = classes.setdefault(axis.patch * offset % axis.dilation, (set(), set()))
            offsets.add(offset)
            diagonals.add(diagonal)
    counts = [(len(offsets), len(diagonals)) for offsets, diagonals in classes.values()]
    pairs = in_channels * out_channels
    return sum(
        min(math.prod(rows for rows, _ in combination), pairs * math.prod(columns for _, columns in combination))
        for combination in product(counts, repeat=axes)
    )


def _entries(axis: Axis) -> Iterator[tuple[int, int]]:
    """(offset, diagonal u − s·v) of the entries of the maps along an axis that are taps."""
    for offset, source, target in product(axis.offsets, range(axis.patch), range(axis.out_patch)):
        if axis.tap(offset, source, target) is not None:
            yield offset, source - axis.stride * target
