"""The figure of the sweep tuned: the course of each scheme's search, and its winner on fresh seeds."""

import itertools
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cvit.analysis.display.figure_style import (
    ROW_HEIGHT,
    STUDIES_SHOWN,
    fixed_ticks,
    legend_below,
    line_style,
    new_figure,
    tidy,
)
from cvit.analysis.display.wording import scheme_text
from cvit.analysis.questions.tuned import Tuned, searches
from cvit.analysis.statistics.studies import Study


def draw(studies: Sequence[Study]) -> Figure:
    """Draws, per study, most recent first: validation accuracy of the search's trials with the best so far as a line,
    the finalists' means as crosses, and test accuracies of the winners on fresh seeds with mean and 95 % t-interval."""
    recent = studies[:STUDIES_SHOWN]
    with new_figure(ROW_HEIGHT * len(recent) + 0.3) as figure:
        panels = figure.subplots(len(recent), 2, squeeze=False)
        for (left, right), study in zip(panels, recent, strict=True):
            outcomes = searches(study)
            left.set_title(study.label, loc="left", fontweight="bold")
            _draw_searches(left, outcomes)
            _draw_winners(right, outcomes)
            for axes in (left, right):
                tidy(axes)
        legend_below(figure, panels[:, 0])
    return figure


def _draw_searches(axes: Axes, outcomes: Sequence[Tuned]) -> None:
    for tuned in outcomes:
        values = [100 * result.value for result in tuned.tried]
        numbers = range(1, len(values) + 1)
        axes.plot(numbers, values, **line_style(tuned.scheme, linestyle="", alpha=0.6))
        best = list(itertools.accumulate(values, max))
        style = line_style(tuned.scheme, marker="", label=scheme_text(tuned.scheme))
        axes.step(numbers, best, where="post", **style)
        finals = [(tuned.tried.index(f.tried) + 1, 100 * f.mean) for f in tuned.finalists if math.isfinite(f.mean)]
        cross = line_style(tuned.scheme, linestyle="", marker="x", markersize=7)
        axes.plot([number for number, _ in finals], [mean for _, mean in finals], **cross)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial (line: best so far; ×: mean in the final)")
    axes.set_ylabel("validation accuracy (%)")


def _draw_winners(axes: Axes, outcomes: Sequence[Tuned]) -> None:
    for place, tuned in enumerate(outcomes):
        seeds = [100 * result.value for result in tuned.fresh]
        axes.plot([place] * len(seeds), seeds, **line_style(tuned.scheme, linestyle="", alpha=0.5))
        if tuned.accuracy is not None and tuned.accuracy.estimate.n:
            estimate = tuned.accuracy.estimate
            half_width = 100 * estimate.half_width
            style = line_style(tuned.scheme, linestyle="", elinewidth=1.0, capsize=3.0)
            axes.errorbar(place + 0.15, 100 * estimate.mean, yerr=half_width, **style)
    fixed_ticks(axes.xaxis, range(len(outcomes)), lambda place: scheme_text(outcomes[round(place)].scheme))
    axes.set_xlim(-0.5, len(outcomes) - 0.5)
    axes.set_ylabel("test accuracy on fresh seeds (%)")
