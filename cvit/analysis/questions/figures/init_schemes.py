"""The figure of the sweep init_schemes: accuracy of all schemes against data fraction, and their gains."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvit.analysis.display.figure_style import (
    ROW_HEIGHT,
    STUDIES_SHOWN,
    draw_accuracy,
    grid_lines,
    legend_below,
    line_style,
    log_x,
    new_figure,
    tidy,
)
from cvit.analysis.questions.init_schemes import gains_over_random
from cvit.analysis.statistics.studies import BASELINE, Study
from cvit.analysis.store.axes import FRACTION, SCHEME

_SPREAD = 1.12  # ratio between the first and the last scheme's place at one fraction, so that intervals do not overlap


def draw(studies: Sequence[Study]) -> Figure:
    """Draws, per study, most recent first: accuracy against data fraction, and the paired gain over random
    initialisation.

    Marks are means over seeds; on the right with 95 % t-intervals, side by side at each fraction.
    """
    recent = studies[:STUDIES_SHOWN]
    with new_figure((ROW_HEIGHT + 0.3) * len(recent) + 0.3) as figure:
        panels = figure.subplots(len(recent), 2, squeeze=False)
        for (left, right), study in zip(panels, recent, strict=True):
            left.set_title(study.label, loc="left", fontweight="bold")
            draw_accuracy(left, study, FRACTION, {}, has_band=False)
            tidy(left)
            _draw_gains(right, study)
            for axes in (left, right):
                log_x(axes, study.values(FRACTION), lambda fraction: f"{100 * fraction:.10g}")
                axes.set_xlabel("share of the training images (%, log scale)")
        legend_below(figure, panels.flat)
    return figure


def _draw_gains(axes: Axes, study: Study) -> None:
    schemes = [scheme for scheme in study.schemes if scheme != BASELINE]
    shifts = _SPREAD ** np.linspace(-1, 1, len(schemes))
    gains = gains_over_random(study)
    for scheme, shift in zip(schemes, shifts, strict=True):
        cells = [cell for cell in gains if cell.place[SCHEME] == scheme and cell.estimate.n]
        axes.errorbar(
            [shift * cell.place[FRACTION] for cell in cells],
            [100 * cell.estimate.mean for cell in cells],
            yerr=[100 * cell.estimate.half_width for cell in cells],
            elinewidth=0.8,
            **line_style(scheme, linestyle=""),
        )
    axes.axhline(0, color=line_style(BASELINE)["color"], linewidth=1.0, zorder=0)
    axes.set_ylabel(f"gain over {BASELINE} (points)")
    grid_lines(axes)
