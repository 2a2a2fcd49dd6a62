"""The figure of the sweep budget: accuracy against optimiser steps and against operations."""

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from cvit.analysis.display.figure_style import (
    ROW_HEIGHT,
    STUDIES_SHOWN,
    draw_chance,
    draw_estimates,
    draw_heading,
    legend_below,
    line_style,
    log_x,
    new_figure,
    shifts,
    tidy,
)
from cvit.analysis.display.wording import scheme_text
from cvit.analysis.questions.budget import costs_at, steps_at
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import MIN_STEPS, SCHEME


def draw(studies: Sequence[Study]) -> Figure:
    """Draws two panels per study, most recent first. Marks are means over seeds with 95 %
    t-intervals."""
    recent = studies[:STUDIES_SHOWN]
    with new_figure(ROW_HEIGHT * len(recent)) as figure:
        rows = figure.subplots(len(recent), 2, squeeze=False, sharey="row")
        for (left, right), study in zip(rows, recent, strict=True):
            _draw(left, study, lambda budget, _, study=study: steps_at(study, budget))
            log_x(left, [steps_at(study, budget) for budget in study.values(MIN_STEPS)], lambda steps: f"{steps:,g}")
            left.set_xlabel("optimiser steps (log scale)")
            left.set_ylabel("test accuracy (%)")
            draw_heading(left, study)
            _draw(right, study, lambda budget, scheme, study=study: _flops(study, budget, scheme))
            if any(line.get_xydata().size for line in right.lines):  # matplotlib scales no empty panel
                right.set_xscale("log")
                right.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
                right.xaxis.set_major_formatter(lambda flops, _: f"{flops:.0e}".replace("e+", "e"))
                right.xaxis.set_minor_formatter(NullFormatter())  # its labels would overlap
            right.set_xlabel("floating-point operations (log scale)")
            for axes in (left, right):  # after both are drawn, because they share the y axis
                tidy(axes)
                draw_chance(axes, study)
        legend_below(figure, rows.flat)
    return figure


def _draw(axes: Axes, study: Study, x_of: Callable[[int, str], float]) -> None:
    """Draws a line per scheme through the budgets whose place on the x axis is known."""
    for scheme, shift in shifts(study.schemes).items():
        cells = [cell for cell in study.means if cell.estimate.n and cell.place[SCHEME] == scheme]
        points = [(x_of(cell.place[MIN_STEPS], scheme), cell.estimate) for cell in cells]
        known = [(x, estimate) for x, estimate in points if math.isfinite(x)]
        style = line_style(scheme, label=scheme_text(scheme))
        draw_estimates(axes, [x for x, _ in known], [e for _, e in known], shift, **style)


def _flops(study: Study, budget: int, scheme: str) -> float:
    """The operations of a scheme's training at a budget; NaN if they are not known."""
    return sum(phase.flops for phase in costs_at(study, budget, scheme)) or math.nan
