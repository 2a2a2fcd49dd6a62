"""The figure docs/images/windows.png: the error of one layer of attention in windows against their size, for numbers of
heads. python examples/windows_figure.py
"""

import io
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from PIL import Image
from torch import nn

from cvit.analysis.display.figure_style import REMARK, draw_subtitle, grid_lines, image_bytes, legend_below, new_figure
from cvit.theorem import convolution_as_two_window_layers, window_attention, window_error

FILE = Path(__file__).parents[1] / "docs/images/windows.png"
KERNEL_SIZE, CHANNELS = 3, 4
HEADS = (1, 3, 5, 7, 8, 9)
COLOURS = 64
"""Colours of the file: a quarter of the bytes."""
SWIN, SMALL = 56, 12
"""Tokens a side: those of the first stage of a Swin transformer, and few enough to measure whole operators."""


def main() -> None:
    """Draws the figure and prints its numbers."""
    torch.manual_seed(0)
    conv = nn.Conv2d(CHANNELS, CHANNELS, KERNEL_SIZE, padding=1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        image = Image.open(io.BytesIO(image_bytes(draw(conv), "png")))
    image.convert("RGB").quantize(COLOURS).save(FILE, optimize=True)
    for side in (SWIN, SMALL):
        print(f"{side}x{side} tokens, heads {HEADS}")
        for window, errors in errors_by_window(conv, side).items():
            print(f"{window:>4}", *(f"{error:.4f}" for error in errors))


def errors_by_window(conv: nn.Conv2d, side: int) -> dict[int, list[float]]:
    """The least error for each number of HEADS, by the size of the windows, on side × side tokens of one pixel."""
    sizes = [size for size in range(1, side + 1) if side % size == 0]
    return {size: [window_error(conv.weight, 1, heads, side, size) for heads in HEADS] for size in sizes}


def measured(layer: nn.Module, conv: nn.Conv2d, side: int) -> float:
    """The distance of a layer from the convolution as operators on images, relative to the convolution's norm."""
    images = torch.eye(CHANNELS * side**2, dtype=torch.float64).view(-1, CHANNELS, side, side)
    expected = conv(images)
    return float((layer(images) - expected).norm() / expected.norm())


def draw(conv: nn.Conv2d) -> Figure:
    """The bounds on both grids; on the small one also the layers that were built, whose operators were measured."""
    with new_figure(3.1) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, side in zip(panels, (SWIN, SMALL), strict=True):
            errors = errors_by_window(conv, side)
            for place, heads in enumerate(HEADS):
                colour = colormaps["viridis"](0.9 * (1 - place / (len(HEADS) - 1)))
                label = f"{heads} head{'s' if heads > 1 else ''}"
                axes.plot(list(errors), [of[place] for of in errors.values()], color=colour, label=label, marker=".")
            draw_subtitle(axes, f"{side}×{side} tokens")
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(list(errors)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xticklabels([str(size) for size in errors])
            axes.set_xlabel("w, tokens along a side of a window")
            axes.set_ylim(-0.04, 1.0)
            grid_lines(axes)
        panels[0].set_ylabel("relative error")
        panels[0].annotate("Swin's w = 7", (7, errors_by_window(conv, SWIN)[7][0]), (7, 0.95), ha="center", **REMARK)
        sizes = [size for size in range(1, SMALL + 1) if SMALL % size == 0]
        one = [measured(window_attention(conv, 1, size), conv, SMALL) for size in sizes]
        two = [measured(convolution_as_two_window_layers(conv, 1, size), conv, SMALL) for size in sizes if size > 1]
        marks = {"linestyle": "", "markerfacecolor": "none", "color": "black"}
        panels[1].plot(sizes, one, marker="o", label="built, 9 heads", **marks)
        panels[1].plot([size for size in sizes if size > 1], two, marker="D", label="two layers, 41 + 9 heads", **marks)
        legend_below(figure, panels)
    return figure


if __name__ == "__main__":
    main()
