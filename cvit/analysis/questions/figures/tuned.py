"""The figure of the sweep tuned: every scheme's search, its winner on fresh seeds, and the course of the searches."""

import itertools
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cvit.analysis.display.figure_style import (
    STUDIES_SHOWN,
    draw_heading,
    fixed_ticks,
    legend_below,
    line_style,
    new_figure,
    tidy,
)
from cvit.analysis.display.wording import scheme_text
from cvit.analysis.statistics.searches import Tuned, searches
from cvit.analysis.statistics.studies import Study

_SCHEME_HEIGHT, _MARGIN, _COURSE_HEIGHT = 0.27, 0.95, 1.9
"""The heights of a scheme's row, of what is around the rows, and of the course of the searches, in inches."""
_ASIDE = 0.22
"""The distance of a mean from the row of its single trials, in rows."""
_FIRST = {"linestyle": "", "marker": "|", "markersize": 11, "markeredgewidth": 1.6, "color": "black"}
_IN_FINAL = {"linestyle": "", "marker": "x", "markersize": 6, "markeredgewidth": 1.2}


def draw(studies: Sequence[Study]) -> Figure:
    """Draws each study, most recent first.

    Above, a row per scheme: left the validation accuracies of the search's trials, with a tick at the first one, whose
    settings were known, and the finalists' means as crosses; right the test accuracies of the winners on fresh seeds
    with mean and 95 % t-interval. Below, the best validation accuracy so far against the trial of the search.
    """
    recent = [(study, searches(study)) for study in studies[:STUDIES_SHOWN]]
    heights = [(_MARGIN + _SCHEME_HEIGHT * len(outcomes), _COURSE_HEIGHT) for _, outcomes in recent]
    with new_figure(sum(map(sum, heights)) + 0.4) as figure:
        blocks = figure.subfigures(len(recent), 1, squeeze=False, height_ratios=[*map(sum, heights)]).ravel()
        courses = []
        for block, (study, outcomes), rows in zip(blocks, recent, heights, strict=True):
            above, below = block.subfigures(2, 1, height_ratios=rows)
            left, right = above.subplots(1, 2, sharey=True)
            draw_heading(left, study)
            _draw_searches(left, outcomes)
            _draw_winners(right, outcomes)
            fixed_ticks(left.yaxis, range(len(outcomes)), lambda row, of=outcomes: scheme_text(of[round(row)].scheme))
            left.set_ylim(len(outcomes) - 0.5, -0.7)
            courses.append(below.subplots())
            _draw_course(courses[-1], outcomes)
        first = Line2D([], [], label="first trial", **_FIRST)
        legend_below(figure, courses, [first, Line2D([], [], label="mean in the final", color="black", **_IN_FINAL)])
    return figure


def _draw_searches(axes: Axes, outcomes: Sequence[Tuned]) -> None:
    for row, tuned in enumerate(outcomes):
        values = [100 * result.value for result in tuned.tried]
        axes.plot(values, [row] * len(values), **line_style(tuned.scheme, linestyle="", alpha=0.5))
        if tuned.first is not None:
            axes.plot(100 * tuned.first.value, row, **_FIRST)
        finals = [100 * finalist.mean for finalist in tuned.finalists if math.isfinite(finalist.mean)]
        axes.plot(finals, [row + _ASIDE] * len(finals), color=line_style(tuned.scheme)["color"], **_IN_FINAL)
    axes.set_xlabel("validation accuracy in the search (%)")
    _grid(axes)


def _draw_winners(axes: Axes, outcomes: Sequence[Tuned]) -> None:
    for row, tuned in enumerate(outcomes):
        seeds = [100 * result.value for result in tuned.fresh]
        axes.plot(seeds, [row] * len(seeds), **line_style(tuned.scheme, linestyle="", alpha=0.45))
        if tuned.accuracy is not None and tuned.accuracy.estimate.n:
            estimate = tuned.accuracy.estimate
            style = line_style(tuned.scheme, linestyle="", elinewidth=1.2)
            axes.errorbar(100 * estimate.mean, row + _ASIDE, xerr=100 * estimate.half_width, **style)
    axes.set_xlabel("test accuracy of the winner on fresh seeds (%)")
    _grid(axes)


def _draw_course(axes: Axes, outcomes: Sequence[Tuned]) -> None:
    lowest = math.inf
    for tuned in outcomes:
        best = list(itertools.accumulate((100 * result.value for result in tuned.tried), max))
        style = line_style(tuned.scheme, marker="", label=scheme_text(tuned.scheme))
        axes.step(range(1, len(best) + 1), best, where="post", **style)
        lowest = min([lowest, *best[len(best) // 4 :]])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial of the search")
    axes.set_ylabel("best so far,\nvalidation (%)")
    if math.isfinite(lowest):  # a bad first trial would leave no room for the rest
        axes.set_ylim(bottom=lowest - 0.1 * max(1.0, axes.get_ylim()[1] - lowest))
    tidy(axes)


def _grid(axes: Axes) -> None:
    """Draws light vertical lines behind the marks, since accuracies are along x."""
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
