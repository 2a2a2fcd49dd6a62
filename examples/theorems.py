"""The numbers of docs/THEOREMS.md: python examples/theorems.py, and with --networks those of torchvision's networks."""

import sys

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from cvit.theorem import (
    axial_error,
    convert,
    convolution_as_attention,
    convolution_as_deep_attention,
    convolution_as_two_window_layers,
    depth_bounds,
    depth_ranks,
    error_bound,
    heads_by_layer,
    heads_needed,
    kernel_heads,
    maps_of,
    window_error,
    window_heads,
)
from cvit.theorem.counts import Options

COUNTS: list[tuple[str, tuple[int, ...], int, Options]] = [
    ("3 taps, series", (3,), 16, {}),
    ("3x3, image", (3, 3), 16, {}),
    ("3x3x3, volume", (3, 3, 3), 4, {}),
    ("3 taps, causal", (3,), 4, {"padding": "causal"}),
    ("3 taps, causal, dilation 16", (3,), 4, {"padding": "causal", "dilation": 16}),
    ("3x3, stride 2", (3, 3), 4, {"stride": 2, "padding": 1}),
    ("1x1, stride 2", (1, 1), 4, {"stride": 2, "padding": 0}),
    ("7x7, stride 2", (7, 7), 4, {"stride": 2, "padding": 3}),
    ("4x4, stride 4", (4, 4), 4, {"stride": 4, "padding": 0}),
]


def main() -> None:
    """Prints every table."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    counts()
    strided()
    windows()
    depth()
    if "--networks" in sys.argv[1:]:
        networks()


def counts() -> None:
    """Heads by the theorem, those of a random kernel, and its error with one head less on 10 patches a side."""
    row = "{:<30}{:>6}{:>14}{:>22}".format
    print(row("kernel", "heads", "random kernel", "error, one head less"))
    for name, size, patch, options in COUNTS:
        weight = torch.randn(2, 2, *size)
        heads, needed = heads_needed(size, patch, **options), kernel_heads(weight, patch, **options)
        error = error_bound(weight, patch, needed - 1, 10 * patch, **options)
        print(row(name, heads, needed, f"{error:.2f}"))


def strided() -> None:
    """A network of six layers on one grid of tokens."""
    images = expected = torch.randn(2, 3, 32, 32)
    patch, heads, channels = 8, 0, 3
    for out_channels, stride in ((8, 1), (8, 1), (16, 2), (16, 1), (32, 2), (32, 1)):
        conv = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1)
        layer = convolution_as_attention(conv, patch)
        images, expected = F.relu(layer(images)), F.relu(conv(expected))
        patch, heads, channels = patch // stride, heads + layer.num_heads, out_channels
    print(f"\nsix strided layers on 4x4 tokens: {heads} heads, {exact(images, expected)}")


def windows() -> None:
    """The error of one layer in windows, and the heads of two."""
    row = "{:>7}{:>8}{:>7}{:>16}{:>14}{:>14}   {}".format
    print()
    print(row("tokens", "window", "taps", "one layer, all", "one less", "two layers", "error of two"))
    for side, window, taps in ((8, 4, 3), (12, 4, 5), (12, 6, 7), (8, 2, 3), (56, 7, 3)):
        conv = nn.Conv2d(2, 2, taps, padding=taps // 2)
        needed = kernel_heads(conv.weight, 1, side)
        lost = [window_error(conv.weight, 1, heads, side, window) for heads in (needed, needed - 1)]
        error = "not run"
        if side <= 12:
            image = torch.randn(1, 2, side, side)
            layers = convolution_as_two_window_layers(conv, 1, window)
            error = exact(layers(image), conv(image))
        heads = "{} + {}".format(*window_heads(taps, 1))
        print(row(f"{side}x{side}", window, f"{taps}x{taps}", f"{lost[0]:.4f}", f"{lost[1]:.4f}", heads, error))


def depth() -> None:
    """Heads a layer against layers, widths of 27 causal taps, and axial attention."""
    print("\nmaps  " + "".join(f"{f'{layers} layer(s)':>16}" for layers in range(1, 5)))
    for maps in (9, 27, 81):
        by_layer = [heads_by_layer(maps, layers) for layers in range(1, 5)]
        print(f"{maps:<6}" + "".join(f"{' + '.join(map(str, heads)):>16}" for heads in by_layer))
        assert all(maps_of(heads) >= maps for heads in by_layer)

    conv = nn.Conv1d(2, 2, 27)
    ranks = depth_ranks(conv.weight, 1, 3, padding="causal")
    print(f"\n27 causal taps, 2 channels, three layers of 2 heads: widths of {ranks} are exact")
    impulse = F.pad(torch.eye(2).unsqueeze(2), (0, 29))
    expected = F.conv1d(F.pad(impulse, (26, 0)), conv.weight)
    for width in (6, 5, 4, 3, 2):
        module = convolution_as_deep_attention(conv, 1, 3, widths=width, causal=True)
        taps = module(impulse) - module(torch.zeros_like(impulse))
        lower, upper = depth_bounds(conv.weight, 1, width, 3, padding="causal")
        print(f"  width {width}: at least {lower:.3f}, reached {norm(taps, expected):.3f}, at most {upper:.3f}")

    conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    print("\n3x3, 3 channels, 8x8 tokens, axial attention with 2 + 2 heads and skip connections:")
    unit = torch.eye(3 * 64).view(-1, 3, 8, 8)
    for width in (3, 5, 7, 9):
        module = convolution_as_deep_attention(conv, 1, widths=width, image_size=8)
        least = axial_error(conv.weight, 1, width, 8)
        print(f"  width {width}: least error {least:.4f}, reached {norm(module(unit), conv(unit)):.4f}")


def networks() -> None:
    """Every convolution of three networks of torchvision, in float32."""
    torch.set_default_dtype(torch.float32)
    print()
    for name, side, patch in (("resnet18", 64, 8), ("resnet18", 224, 16), ("vgg11", 64, 8), ("mobilenet_v2", 64, 8)):
        network = getattr(torchvision.models, name)().eval()
        images = torch.randn(2, 3, side, side)
        conversion = convert(network, images[:1], patch)
        expected = network(images)
        error = float((conversion.network(images) - expected).abs().max() / expected.abs().max())
        kept = ", ".join(conversion.kept) or "nothing"
        print(
            f"{name}, {side}x{side}, P = {patch}: {len(conversion.replaced)} replaced, error {error:.0e}; kept: {kept}"
        )


def exact(actual: Tensor, expected: Tensor) -> str:
    """The largest difference as text, which names none at rounding level."""
    error = float((actual - expected).abs().max())
    return "exact (below 1e-12)" if error <= 1e-12 else f"error {error:.1e}"


def norm(actual: Tensor, expected: Tensor) -> float:
    """The distance relative to the norm of what was expected."""
    return float((actual - expected).norm() / expected.norm())


if __name__ == "__main__":
    with torch.no_grad():
        main()
