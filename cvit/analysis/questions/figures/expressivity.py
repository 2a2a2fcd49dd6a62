"""The figure of the sweep expressivity: bound and reached error against the number of heads, a panel per case."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cvit.analysis.display.colours import colour_of
from cvit.analysis.display.figure_style import (
    REMARK,
    STUDIES_SHOWN,
    draw_heading,
    draw_subtitle,
    fixed_ticks,
    grid_lines,
    legend_below,
    mark_heads,
    new_figure,
)
from cvit.analysis.display.wording import heads_text
from cvit.analysis.questions.expressivity import case_text
from cvit.analysis.statistics.fits import ROUNDING, Cases, Fit, by_case, fits
from cvit.analysis.statistics.studies import TREATMENT, Study

_PANELS_PER_ROW = 4
_PANEL_HEIGHT = 1.9
_BEYOND_COUNT = 3  # heads shown beyond the theorem's count: with more, the error remains zero

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def draw(studies: Sequence[Study]) -> Figure:
    """Draws, per study, most recent first, a panel per convolution, all with the same logarithmic y axis; a row has the
    dimensions of one convolution if there are several.

    Errors below ROUNDING are drawn at ROUNDING. A vertical line marks the theorem's number of heads.
    """
    recent = [(study, by_case(fits(study))) for study in studies[:STUDIES_SHOWN]]
    columns = max(_num_columns(cases) for _, cases in recent)
    rows = [math.ceil(len(cases) / columns) for _, cases in recent]
    with new_figure(_PANEL_HEIGHT * sum(rows) + 0.3) as figure:
        panels = figure.subplots(sum(rows), columns, squeeze=False, sharey=True)
        for row in panels:
            row[0].set_ylabel("relative error (log)")
        for i, (study, cases) in enumerate(recent):
            panels_of_study = panels[sum(rows[:i]) : sum(rows[: i + 1])].ravel()
            for axes, (case, by_heads) in zip(panels_of_study, cases.items(), strict=False):
                title = case_text(case, cases)
                if axes is panels_of_study[0]:
                    draw_heading(axes, study, title)
                else:
                    draw_subtitle(axes, title)
                _draw_case(axes, by_heads, case.heads)
            for axes in panels_of_study[len(cases) :]:
                axes.set_axis_off()
        legend_below(figure, panels.flat)
    return figure


def _num_columns(cases: Cases) -> int:
    dimensions = {case.dimensions for case in cases}
    return len(dimensions) if len(dimensions) > 1 else min(_PANELS_PER_ROW, len(cases))


def _draw_case(axes: Axes, by_heads: Mapping[int, Fit], count: int) -> None:
    heads = [number for number in by_heads if number <= count + _BEYOND_COUNT] or list(by_heads)
    axes.plot(
        heads,
        [_drawn(by_heads[number].bound) for number in heads],
        marker=".",
        color="black",
        label="bound (theorem 2)",
    )
    axes.plot(
        heads,
        [_drawn(by_heads[number].reached) for number in heads],
        linestyle="",
        marker="o",
        markerfacecolor="none",
        color=colour_of(TREATMENT),
        label="reached by gradient descent",
    )
    axes.set_yscale("log")
    axes.set_ylim(ROUNDING / 3, 3.0)
    fixed_ticks(axes.yaxis, [ROUNDING, 1e-6, 1e-3, 1.0], _power_of_ten)
    axes.set_xlim(heads[0] - 0.5, heads[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.set_xlabel("heads")
    if heads[0] <= count <= heads[-1]:
        mark_heads(axes, count, at_top=True)
    else:  # beyond the grid
        text, x, side = (
            (f"{heads_text(count)} →", 1.0, "right") if count > heads[-1] else (f"← {heads_text(count)}", 0.01, "left")
        )
        axes.annotate(text, (x, 0.85), xycoords="axes fraction", ha=side, va="top", **REMARK)
    grid_lines(axes)


def _drawn(error: float) -> float:
    return error if math.isnan(error) else max(error, ROUNDING)


def _power_of_ten(error: float) -> str:
    return f"{'≤ ' if error == ROUNDING else ''}10{str(round(math.log10(error))).translate(_SUPERSCRIPTS)}"
