"""The figure of the sweep full_grid: accuracy against heads, a panel per patch size and data fraction."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvit.analysis.display.figure_style import (
    STUDIES_SHOWN,
    draw_accuracy,
    fixed_ticks,
    legend_below,
    line_style,
    new_figure,
    tidy,
)
from cvit.analysis.display.wording import fraction_text
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import FRACTION, NUM_HEADS, PATCH_SIZE, SCHEME

_PANEL_HEIGHT = 1.8


def draw(studies: Sequence[Study]) -> Figure:
    """Draws, per study, most recent first, a row of panels per patch size and a column per data fraction, all with the
    same y axis.

    Lines are means over seeds, dots single trials; impossible combinations have no mark.
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
                draw_accuracy(axes, study, NUM_HEADS, place, has_band=False)
                _draw_trials(axes, study, place)
                title = f"patch size {size}, {fraction_text(fraction)} of the images"
                is_first = axes is panels[0] and size == study.values(PATCH_SIZE)[0]
                axes.set_title(f"{study.label}\n{title}" if is_first else title, loc="left")
                axes.set_xlabel("number of heads")
                axes.set_ylabel("test accuracy (%)" if axes is panels[0] else "")
                fixed_ticks(axes.xaxis, heads, str)
                axes.set_xlim(heads[0] - 0.5, heads[-1] + 0.5)
            for axes in panels[len(fractions) :]:
                axes.set_axis_off()
        for axes in rows.flat:  # after all are drawn, because they share the y axis
            tidy(axes)
        legend_below(figure, rows.flat)
    return figure


def _draw_trials(axes: Axes, study: Study, place: Mapping[str, Any]) -> None:
    """Draws single trials: with the few seeds of a large grid, they say more than an interval."""
    for scheme in study.schemes:
        results = [r for r in study.results if {**place, SCHEME: scheme}.items() <= r.place.items()]
        heads, values = [r.place[NUM_HEADS] for r in results], [100 * r.value for r in results]
        axes.plot(heads, values, linestyle="", marker=".", markersize=4, color=line_style(scheme)["color"], alpha=0.4)
