"""The figure of the sweep full_grid: accuracy against heads, a panel per patch size and data fraction."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvit.analysis.display.figure_style import (
    STUDIES_SHOWN,
    draw_accuracy,
    draw_chance,
    draw_heading,
    draw_ranges,
    draw_subtitle,
    fixed_ticks,
    legend_below,
    line_style,
    new_figure,
    shifts,
    tidy,
)
from cvit.analysis.display.wording import fraction_text
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import FRACTION, NUM_HEADS, PATCH_SIZE, SCHEME

_PANEL_HEIGHT = 1.8


def draw(studies: Sequence[Study]) -> Figure:
    """Draws, per study, most recent first, a row of panels per patch size and a column per data fraction, all with the
    same y axis.

    Marks are means over seeds with 95 % t-intervals, dots single trials; impossible combinations have no mark.
    """
    recent = studies[:STUDIES_SHOWN]
    places = [(study, size) for study in recent for size in study.values(PATCH_SIZE)]
    columns = max(len(study.values(FRACTION)) for study in recent)
    with new_figure(_PANEL_HEIGHT * len(places) + 0.3) as figure:
        rows = figure.subplots(len(places), columns, squeeze=False, sharey=True)
        for panels, (study, size) in zip(rows, places, strict=True):
            fractions, heads = study.values(FRACTION), study.values(NUM_HEADS)
            for axes, fraction in zip(panels, fractions, strict=False):
                place = {PATCH_SIZE: size, FRACTION: fraction}
                draw_accuracy(axes, study, NUM_HEADS, place)
                _draw_trials(axes, study, place)
                title = f"patch size {size}, {fraction_text(fraction)} of the images"
                if axes is panels[0] and size == study.values(PATCH_SIZE)[0]:
                    draw_heading(axes, study, title)
                else:
                    draw_subtitle(axes, title)
                axes.set_xlabel("number of heads")
                axes.set_ylabel("test accuracy (%)" if axes is panels[0] else "")
                fixed_ticks(axes.xaxis, heads, str)
                axes.set_xlim(heads[0] - 0.5, heads[-1] + 0.5)
            for axes in panels[len(fractions) :]:
                axes.set_axis_off()
        for axes in rows.flat:  # after all are drawn, because they share the y axis
            tidy(axes)
        for panels, (study, _) in zip(rows, places, strict=True):
            for axes in panels[: len(study.values(FRACTION))]:
                draw_chance(axes, study)
        legend_below(figure, rows.flat)
    return figure


def _draw_trials(axes: Axes, study: Study, place: Mapping[str, Any]) -> None:
    """Draws single trials: with the few seeds of a large grid, they say more than an interval."""
    for scheme, shift in shifts(study.schemes).items():
        results = [r for r in study.results if {**place, SCHEME: scheme}.items() <= r.place.items()]
        values = [(math.nan, 100 * result.value, math.nan) for result in results]
        style = {"linestyle": "", "marker": ".", "markersize": 4, "alpha": 0.4, "color": line_style(scheme)["color"]}
        draw_ranges(axes, [result.place[NUM_HEADS] for result in results], values, shift, **style)
