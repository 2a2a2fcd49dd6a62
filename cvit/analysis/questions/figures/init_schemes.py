"""The figure of the sweep init_schemes: accuracy of all schemes against data fraction, and their gains."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from cvit.analysis.display.figure_style import (
    ROW_HEIGHT,
    STUDIES_SHOWN,
    draw_accuracy,
    draw_chance,
    draw_gains,
    draw_heading,
    legend_below,
    log_x,
    new_figure,
    tidy,
)
from cvit.analysis.statistics.studies import Study, gains_over
from cvit.analysis.store.axes import FRACTION


def draw(studies: Sequence[Study]) -> Figure:
    """Draws, per study, most recent first: accuracy against data fraction, and the paired gain over random
    initialisation. Marks are means over seeds with 95 % t-intervals, side by side at each fraction."""
    recent = studies[:STUDIES_SHOWN]
    with new_figure((ROW_HEIGHT + 0.3) * len(recent) + 0.3) as figure:
        panels = figure.subplots(len(recent), 2, squeeze=False)
        for (left, right), study in zip(panels, recent, strict=True):
            draw_heading(left, study)
            draw_accuracy(left, study, FRACTION, {}, linewidth=0.7)
            tidy(left)
            draw_chance(left, study)
            draw_gains(right, study, FRACTION, gains_over(study))
            for axes in (left, right):
                log_x(axes, study.values(FRACTION), lambda fraction: f"{100 * fraction:.10g}")
                axes.set_xlabel("share of the training images (%, log scale)")
        legend_below(figure, panels.flat)
    return figure
