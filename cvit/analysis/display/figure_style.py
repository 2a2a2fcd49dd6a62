"""The parts that all figures share: the style, lines with their intervals, axes, and the bytes of a file.

Figures are drawn without pyplot and are the same bytes for the same data. Colours (`colours.py`) suit colour-blind
readers; markers and line styles distinguish curves in grey.
"""

import contextlib
import io
import math
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from cvit.analysis.display.colours import colour_of
from cvit.analysis.display.titles import study_hash, study_title
from cvit.analysis.display.wording import fraction_text, heads_text, scheme_text
from cvit.analysis.statistics.stats import Estimate, Summary
from cvit.analysis.statistics.studies import BASELINE, Study
from cvit.analysis.statistics.variants import base_scheme
from cvit.analysis.store.axes import SCHEME
from cvit.init.schemes import REFERENCES

T = TypeVar("T")

STUDIES_SHOWN = 3
"""The number of studies that a figure shows, the most recent ones."""

WIDTH, ROW_HEIGHT = 7.0, 2.8
"""The width of a figure and the height of a study's row of panels, in inches."""

LINE_STYLES: tuple[Any, ...] = ("-", (0, (3.2, 1.6)))
"""The line styles for the largest fraction and the smallest, or for no warm-up and the longest."""
REMARK: Mapping[str, Any] = {"fontsize": "small", "color": "0.35"}
"""The look of a remark inside a panel."""
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "svg.hashsalt": "cvit",
}
MARKERS = {
    "random": "o",
    "two_phase": "s",
    "conv_structured": "^",
    "joint": "<",
    "mimetic": "v",
    "impulse": "P",
    "local": "X",
    "convolution": "D",
    "resnet": "*",
}
_OTHER_MARKER = "h"
_VARIANT_MARKERS = ("^", "v", "P", "X", "D", "*", "h")
_MARKERS_PER_LINE = 8
_HEADING_PAD = 14.0
"""The room between a panel and the title above it, in points: that of the line with the hash."""
_WITHOUT_INTERVALS = "one seed, so no intervals"
_SHIFT, _LARGEST_SHIFT = 3.0, 18.0
"""The distance between the intervals of two schemes, and the largest one of all of them together, in points."""
_MOST_ROOM_TO_CHANCE = 0.5
"""The room that the line of chance may take, in heights of the panel without it."""
_ROOM_BELOW_CHANCE = 0.13
"""The room below the line of chance, for its name, where hardly a curve goes: a share of what is above it."""
_NUM_CLASSES = "num_classes"
_LEGEND_COLUMNS = 5
_WITHOUT_DATES: Mapping[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
_LONGEST_LINE, _LONGEST_NAME = 80, 30
"""The largest number of characters in a line of a title, and of a value at an axis or in a legend."""
_LEGEND_WIDTH = 120
"""The number of characters that a line of the legend below has room for."""
_HANDLE_WIDTH = 7
"""The room that an entry's line and the gap to the next entry take there, in characters."""


@contextlib.contextmanager
def new_figure(height: float) -> Iterator[Figure]:
    """A figure to draw on, in the common style."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        for text in _labels(figure):
            # Names come from stores: between two dollar signs they would be mathematics, which may not even be valid.
            text.set_parse_math(False)
            text.set_text("\n".join(_shortened(line, _LONGEST_LINE) for line in text.get_text().split("\n")))


def _labels(figure: Figure) -> Iterator[Text]:
    """The texts of a figure but its numbers at the axes, which are mathematics on a logarithmic scale."""
    yield from figure.texts
    legends = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()) is not None)]
    for legend in legends:
        yield from legend.get_texts()
    for axes in figure.axes:
        yield from (axes.xaxis.label, axes.yaxis.label, *axes.texts)
        yield from (title for title in axes.get_children() if isinstance(title, Text))


def _shortened(line: str, longest: int) -> str:
    """A line of a label; a name that is too long loses its middle."""
    half = longest // 2
    return line if len(line) <= longest else f"{line[: half - 1]}…{line[-half:]}"


@contextlib.contextmanager
def any_script() -> Iterator[None]:
    """Draws names in a script that the font does not have as boxes, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def image_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as `png` (200 dots per inch), `svg` or `pdf`, without dates, so that equal figures are equal bytes."""
    buffer = io.BytesIO()
    with rc_context(_STYLE), any_script():
        figure.savefig(buffer, format=kind, dpi=200, metadata=_WITHOUT_DATES[kind])
    return buffer.getvalue()


def draw_heading(axes: Axes, study: Study, remark: str = "") -> None:
    """Writes the study's title above a panel and, smaller, its hash, a remark, and that one seed has no interval."""
    axes.set_title(study_title(study), loc="left", fontweight="bold", pad=_HEADING_PAD)
    single = [_WITHOUT_INTERVALS] if max((cell.estimate.n for cell in study.means), default=0) == 1 else []
    draw_subtitle(axes, "; ".join([f"study {study_hash(study)}", *[remark] * bool(remark), *single]))


def draw_subtitle(axes: Axes, text: str) -> None:
    """Writes a line in small letters above a panel."""
    place: dict[str, Any] = {"xycoords": "axes fraction", "xytext": (0, 3), "textcoords": "offset points"}
    axes.annotate(text, (0.0, 1.0), **place, **REMARK)


def draw_accuracy(
    axes: Axes, study: Study, axis: str, place: Mapping[str, Any], aside: float = 0.0, **line: Any
) -> None:
    """Draws test accuracy against one axis, a line with intervals per scheme, at a place on the other axes.

    Args:
        aside: shifts all of it to the side, in points, so that the intervals of several places can be told apart.
    """
    for scheme, shift in shifts(study.schemes).items():
        at = {**place, SCHEME: scheme}
        cells = [cell for cell in study.means if cell.estimate.n and at.items() <= cell.place.items()]
        style = line_style(scheme, label=scheme_text(scheme), **line)
        draw_estimates(axes, [c.place[axis] for c in cells], [c.estimate for c in cells], shift + aside, **style)
    axes.set_ylabel("test accuracy (%)")


def draw_gains(axes: Axes, study: Study, axis: str, gains: Sequence[Summary]) -> None:
    """Draws the gains over random initialisation of every scheme, with intervals, side by side at each value."""
    schemes = [scheme for scheme in study.schemes if scheme != BASELINE]
    for scheme, shift in shifts(schemes).items():
        cells = [cell for cell in gains if cell.place[SCHEME] == scheme and cell.estimate.n]
        style = line_style(scheme, linestyle="")
        draw_estimates(axes, [c.place[axis] for c in cells], [c.estimate for c in cells], shift, **style)
    axes.axhline(0, color=line_style(BASELINE)["color"], linewidth=1.0, zorder=0)
    axes.set_ylabel(f"gain over {BASELINE} (points)")
    grid_lines(axes)


def shifts(lines: Sequence[T]) -> dict[T, float]:
    """Small shifts to the side, in points, by which the intervals of lines, such as schemes, are told apart."""
    apart = min(_SHIFT, _LARGEST_SHIFT / max(1, len(lines)))
    return {line: apart * (number - (len(lines) - 1) / 2) for number, line in enumerate(lines)}


def draw_estimates(
    axes: Axes, x: Sequence[float], estimates: Sequence[Estimate], shift: float = 0.0, scale: float = 100, **style: Any
) -> None:
    """Draws means, times a scale, with their intervals as vertical lines; a mean of one value has none."""
    ranges = [tuple(scale * value for value in (e.ci_low, e.mean, e.ci_high)) for e in estimates]
    draw_ranges(axes, x, ranges, shift, **style)


def draw_ranges(
    axes: Axes, x: Sequence[float], ranges: Sequence[tuple[float, ...]], shift: float = 0.0, **style: Any
) -> None:
    """Draws values with a vertical line from their lower to their upper ends, if these are known.

    Args:
        ranges: lower end, value and upper end at each x.
        shift: the shift of all of it to the side, in points.
    """
    assert axes.figure is not None
    low, middle, high = np.array(ranges, dtype=float).reshape(-1, 3).T
    aside = ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
    axes.errorbar(
        x, middle, yerr=[middle - low, high - middle], elinewidth=0.9, transform=axes.transData + aside, **style
    )
    points = np.array([(place, end) for place, ends in zip(x, ranges, strict=True) for end in ends if end == end])
    if len(points):  # matplotlib does not see what lies aside
        axes.update_datalim(points)
        axes.autoscale_view()


def draw_curve(axes: Axes, x: Sequence[float], estimates: Sequence[Estimate], scheme: str, **line: Any) -> None:
    """Draws a scheme's means during training in percent, with their intervals as a band."""
    low, mean, high = (100 * np.array([getattr(e, end) for e in estimates]) for end in ("ci_low", "mean", "ci_high"))
    every = math.ceil(len(x) / _MARKERS_PER_LINE) or None
    axes.plot(x, mean, **line_style(scheme, markevery=every, **line))
    axes.fill_between(x, low, high, color=line_style(scheme)["color"], alpha=0.15, linewidth=0)


def draw_chance(axes: Axes, study: Study) -> None:
    """Draws the accuracy of guessing, if the number of classes is known. It is called when the curves are drawn,
    and draws nothing where there are none.

    Where they lie far above, a line would leave them little room: then a remark says how far below it is.
    """
    classes = {row.get(_NUM_CLASSES) for row in study.trials or [study.params]}
    num_classes = classes.pop() if len(classes) == 1 else None
    if not num_classes or not axes.has_data():
        return
    chance, (low, high) = 100 / num_classes, axes.get_ylim()
    if low - chance <= _MOST_ROOM_TO_CHANCE * (high - low):
        axes.axhline(chance, color="0.45", linestyle=(0, (1, 1.6)), linewidth=1.0, zorder=0)
        axes.set_ylim(min(low, chance - _ROOM_BELOW_CHANCE * (high - chance)), high)
        text, height, coordinates, distance = "chance", chance, ("axes fraction", "data"), -2
    else:
        text, height, coordinates, distance = f"↓ chance: {chance:.3g} %", 0.0, "axes fraction", 2
    side: dict[str, Any] = {"ha": "right", "va": "bottom" if distance > 0 else "top", "textcoords": "offset points"}
    axes.annotate(text, (1.0, height), xycoords=coordinates, xytext=(0, distance), **side, **REMARK)


def line_style(scheme: str, **changes: Any) -> dict[str, Any]:
    """Colour and marker of a scheme's line, with changes. The markers of the baseline are hollow, the lines of
    references dotted. A variant has a hollow marker, a line of dots and dashes, and the colour of its scheme, or, where
    a figure has several of a scheme, one by its name."""
    base = base_scheme(scheme)
    is_variant = base != scheme
    colour, marker = colour_of(scheme), MARKERS.get(base, _OTHER_MARKER)
    if colour != colour_of(base):
        number = zlib.crc32(scheme.encode()) // 4  # which tells the variants of the presets apart
        marker = _VARIANT_MARKERS[number % len(_VARIANT_MARKERS)]
    face = "white" if base == BASELINE or is_variant else colour
    style = {"color": colour, "marker": marker, "markerfacecolor": face}
    line = {"linestyle": "-."} if is_variant else {"linestyle": ":"} if base in REFERENCES else {}
    return style | line | changes


def fraction_styles(fractions: Sequence[float]) -> dict[float, Any]:
    """The line styles of the largest and of the smallest data fraction; the others are not drawn."""
    ascending = sorted(fractions)
    return dict(zip(dict.fromkeys([*ascending[-1:], *ascending[:1]]), LINE_STYLES, strict=False))


def fraction_handles(styles: Mapping[float, Any]) -> list[Line2D]:
    """Legend entries for the line styles of data fractions."""
    return [
        Line2D([], [], color="black", linestyle=style, label=f"{fraction_text(fraction)} of images")
        for fraction, style in sorted(styles.items())
    ]


def scheme_handles(studies: Sequence[Study], **line: Any) -> list[Line2D]:
    """Legend entries for the init schemes of studies, with changes of their lines."""
    schemes = dict.fromkeys(scheme for study in studies for scheme in study.schemes)
    return [Line2D([], [], label=scheme_text(scheme), **line_style(scheme, **line)) for scheme in schemes]


def fixed_ticks(axis: Axis, values: Sequence[float], text: Callable[[float], str]) -> None:
    """Sets the ticks of an axis to these values."""
    axis.set_major_locator(FixedLocator(values))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _shortened(text(value), _LONGEST_NAME).replace("$", r"\$")))
    axis.set_minor_locator(NullLocator())


def log_x(axes: Axes, values: Sequence[float], text: Callable[[float], str]) -> None:
    """Makes the x axis logarithmic, with ticks at these ascending values and some room beside them."""
    axes.set_xscale("log")
    fixed_ticks(axes.xaxis, values, text)
    axes.set_xlim(values[0] / 1.25, values[-1] * 1.25)


def legend_below(figure: Figure, panels: Iterable[Axes], others: Sequence[Line2D] = ()) -> None:
    """Draws one legend for all panels below them, with every curve once, and with other entries."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    handles |= {str(other.get_label()): other for other in others}
    if handles:
        labels = [_shortened(name, _LONGEST_NAME) for name in handles]
        columns = min(len(handles), _LEGEND_COLUMNS, max(1, _LEGEND_WIDTH // (_HANDLE_WIDTH + max(map(len, labels)))))
        figure.legend(handles.values(), labels, loc="outside lower center", ncols=columns)


def mark_heads(axes: Axes, count: int, at_top: bool) -> None:
    """Draws a vertical line at a number of heads, with a label right of its upper or left of its lower end."""
    axes.axvline(count, color="0.5", linestyle=":", linewidth=1.0, zorder=0)
    height, horizontal, vertical, distance = (1.0, "left", "top", 3) if at_top else (0.1, "right", "bottom", -3)
    axes.annotate(
        heads_text(count),
        (count, height),
        xycoords=("data", "axes fraction"),
        xytext=(distance, 0),
        textcoords="offset points",
        ha=horizontal,
        va=vertical,
        **REMARK,
    )


def tidy(axes: Axes) -> None:
    """Tidies a panel of percentages: light horizontal lines, and no room beyond 0 and 100 % except for markers."""
    grid_lines(axes)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2), min(high, 102))


def grid_lines(axes: Axes) -> None:
    """Draws light horizontal lines behind the curves."""
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
