"""The figure of the sweep depth: heads a layer against layers, with the exact frontier, a panel per convolution."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvit.analysis.display.colours import colour_of
from cvit.analysis.display.figure_style import (
    REMARK,
    STUDIES_SHOWN,
    draw_heading,
    draw_subtitle,
    fixed_ticks,
    legend_below,
    new_figure,
)
from cvit.analysis.questions.depth import Case, Fits, fits_by_case
from cvit.analysis.statistics.studies import TREATMENT, Study

_PANELS_PER_ROW = 3
_PANEL_HEIGHT = 2.6
_HEAD_TICKS = (1, 2, 3, 5, 8, 15, 26, 50, 100)
_ROOM = 1.35  # beyond the least and the largest number of heads
_HALF = 0.5


def draw(studies: Sequence[Study]) -> Figure:
    """Draws, per study, most recent first, a panel per convolution: a mark for each number of layers and of heads a
    layer, filled where the convolution was reached, and the area below the frontier, where it cannot be."""
    recent = [(study, fits_by_case(study)) for study in studies[:STUDIES_SHOWN]]
    columns = min(_PANELS_PER_ROW, max(len(cases) for _, cases in recent))
    rows = [math.ceil(len(cases) / columns) for _, cases in recent]
    with new_figure(_PANEL_HEIGHT * sum(rows) + 0.3) as figure:
        panels = figure.subplots(sum(rows), columns, squeeze=False)
        for row in panels:
            row[0].set_ylabel("heads a layer (log)")
        for i, (study, cases) in enumerate(recent):
            panels_of_study = panels[sum(rows[:i]) : sum(rows[: i + 1])].ravel()
            for axes, (case, by_layers) in zip(panels_of_study, cases.items(), strict=False):
                title = f"{case.maps} maps"
                if axes is panels_of_study[0]:
                    draw_heading(axes, study, title)
                else:
                    draw_subtitle(axes, title)
                _draw_case(axes, case, by_layers)
            for axes in panels_of_study[len(cases) :]:
                axes.set_axis_off()
        legend_below(figure, panels.flat)
    return figure


def _draw_case(axes: Axes, case: Case, by_layers: Fits) -> None:
    layers = list(by_layers)
    edges = [edge for place in layers for edge in (place - _HALF, place + _HALF)]
    frontier = [max(case.frontier(place) - _HALF, _HALF) for place in layers for _ in range(2)]
    axes.fill_between(edges, frontier, color="0.9", linewidth=0, zorder=0, label="impossible")
    axes.plot(edges, frontier, color="black", linewidth=1.2, label="exact frontier")
    colour = colour_of(TREATMENT)
    points = [(place, heads, fit) for place, fits in by_layers.items() for heads, fit in fits.items() if fit.restarts]
    for exact, face, name in ((True, colour, "reached by gradient descent"), (False, "white", "not reached")):
        at = [(place, heads) for place, heads, fit in points if fit.is_exact == exact]
        axes.plot(
            [place for place, _ in at],
            [heads for _, heads in at],
            linestyle="",
            marker="o",
            color=colour,
            markerfacecolor=face,
            label=name,
        )
    axes.annotate(case.text.replace(", ", "\n"), (1.0, 1.0), xycoords="axes fraction", ha="right", va="top", **REMARK)
    axes.set_yscale("log")
    most = max((heads for fits in by_layers.values() for heads in fits), default=1)
    axes.set_ylim(_HALF / _ROOM, max(most, case.frontier(layers[0])) * _ROOM)
    fixed_ticks(axes.yaxis, [heads for heads in _HEAD_TICKS if heads <= most], lambda heads: f"{heads:g}")
    axes.set_xlim(layers[0] - _HALF, layers[-1] + _HALF)
    fixed_ticks(axes.xaxis, layers, lambda place: f"{place:g}")
    axes.set_xlabel("layers")
