"""The general figure, for sweeps without one of their own: the metric that answers the question against an axis."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from cvit.analysis.display.arrangement import PANELS_SHOWN, Arrangement, arrangement, is_spread, values
from cvit.analysis.display.colours import COLOURS
from cvit.analysis.display.figure_style import (
    MARKERS,
    STUDIES_SHOWN,
    draw_chance,
    draw_estimates,
    draw_heading,
    draw_subtitle,
    fixed_ticks,
    grid_lines,
    legend_below,
    line_style,
    log_x,
    new_figure,
    shifts,
    tidy,
)
from cvit.analysis.display.wording import heading, label, metric_text, plain_text, scheme_text, value_text
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import SCHEME
from cvit.vocabulary import is_accuracy

_PANELS_PER_ROW = 3
_PANEL_HEIGHT = 2.3
_LOG_X_FROM = 10.0
_LOG_Y_FROM = 100.0
_MOST_TICKS = 8
"""An axis with more values than this has ticks at round numbers instead of at the values."""


def draw(studies: Sequence[Study]) -> Figure:
    """Draws each study, most recent first: means of the metric with 95 % t-intervals, arranged by `arrangement`."""
    recent = [(study, arrangement(study)) for study in studies[:STUDIES_SHOWN]]
    places_of = [arranged.places(study)[:PANELS_SHOWN] for study, arranged in recent]
    columns = min(_PANELS_PER_ROW, max(map(len, places_of)))
    rows = [math.ceil(len(places) / columns) for places in places_of]
    panels_of_studies = []
    with new_figure(_PANEL_HEIGHT * sum(rows) + 0.3) as figure:
        grid = figure.subplots(sum(rows), columns, squeeze=False, sharey=True)
        for i, ((study, arranged), places) in enumerate(zip(recent, places_of, strict=True)):
            panels = grid[sum(rows[:i]) : sum(rows[: i + 1])].ravel()
            for axes, place in zip(panels, places, strict=False):
                title = ", ".join(label(axis, value, study.head_dim) for axis, value in place.items())
                if axes is panels[0]:
                    draw_heading(axes, study, title)
                elif title:
                    draw_subtitle(axes, title)
                _draw_panel(axes, study, arranged, place)
                if is_accuracy(study.metric):
                    panels_of_studies.append((study, axes))
            for axes in panels[len(places) :]:
                axes.set_axis_off()
        for row in grid:
            row[0].set_ylabel(metric_text(studies[0].metric) + (" (%)" if is_accuracy(studies[0].metric) else ""))
        _scale_y(grid.flat, [study for study, _ in recent])
        for study, axes in panels_of_studies:
            draw_chance(axes, study)
        legend_below(figure, grid.flat)
    return figure


def _draw_panel(axes: Axes, study: Study, arranged: Arrangement, place: Mapping[str, Any]) -> None:
    ticks = values(study, arranged.x)
    is_numeric = all(isinstance(value, int | float) for value in ticks)
    x_of = {value: value if is_numeric else number for number, value in enumerate(ticks)}
    at_place = [cell for cell in study.means if cell.estimate.n and place.items() <= cell.place.items()]
    lines = [None] if arranged.lines is None else values(study, arranged.lines)
    for number, (value, shift) in enumerate(zip(lines, shifts(lines).values(), strict=True)):
        cells = [cell for cell in at_place if arranged.lines is None or cell.place[arranged.lines] == value]
        x = [x_of[cell.place[arranged.x]] for cell in cells]
        scale = 100 if is_accuracy(study.metric) else 1
        draw_estimates(axes, x, [cell.estimate for cell in cells], shift, scale, **_style(arranged, number, value))
    axes.set_xlabel(heading(arranged.x))
    _scale_x(axes, study, arranged.x, list(x_of.values()), is_numeric)


def _scale_y(panels: Iterable[Axes], studies: Sequence[Study]) -> None:
    """Scales the y axis. It is called when all panels are drawn, because they share this axis."""
    means = [cell.estimate.mean for study in studies for cell in study.means if cell.estimate.n]
    for axes in panels:
        if is_accuracy(studies[0].metric):
            tidy(axes)
        else:
            axes.set_yscale("log" if is_spread(means, _LOG_Y_FROM) else "linear")
            grid_lines(axes)


def _style(arranged: Arrangement, number: int, value: Any) -> dict[str, Any]:
    """The look of a line: by its init scheme, else by its number."""
    if arranged.lines == SCHEME:
        return line_style(value, **({} if value == "-" else {"label": scheme_text(value)}))
    colours, markers = list(COLOURS.values()), list(MARKERS.values())
    style = {"color": colours[number % len(colours)], "marker": markers[number % len(markers)]}
    return style if arranged.lines is None else style | {"label": label(arranged.lines, value)}


def _scale_x(axes: Axes, study: Study, axis: str, places: Sequence[float], is_numeric: bool) -> None:
    texts = [value_text(axis, value, study.head_dim) for value in values(study, axis)]
    is_log = is_numeric and is_spread(places, _LOG_X_FROM)
    if is_log:
        log_x(axes, places, lambda place: texts[places.index(place)])
    else:
        fixed_ticks(axes.xaxis, places, lambda place: texts[places.index(place)])
        room = (places[-1] - places[0]) / 20 or 0.5
        axes.set_xlim(places[0] - room, places[-1] + room)
    if is_numeric and len(places) > _MOST_TICKS:
        axes.xaxis.set_major_locator(LogLocator() if is_log else MaxNLocator(_MOST_TICKS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: plain_text(float(place))))
