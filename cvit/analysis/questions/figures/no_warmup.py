"""The figure of the sweep no_warmup: accuracy and divergence against learning rate, and the first gradients."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cvit.analysis.display.figure_style import (
    LINE_STYLES,
    REMARK,
    STUDIES_SHOWN,
    draw_accuracy,
    draw_chance,
    draw_heading,
    draw_ranges,
    draw_subtitle,
    grid_lines,
    line_style,
    log_x,
    new_figure,
    scheme_handles,
    shifts,
    tidy,
)
from cvit.analysis.display.wording import plain_text, scheme_text
from cvit.analysis.questions.no_warmup import divergence_rate, early_gradients, range_text
from cvit.analysis.statistics.learning_rates import TOLERANCE, rate_summaries
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import LEARNING_RATE, SCHEME, WARMUP

_PANELS = 5
"""The number of learning rates whose gradients are shown, the smallest and the largest included."""
_ACCURACY_HEIGHT, _DIVERGENCE_HEIGHT, _GRADIENTS_HEIGHT = 2.5, 1.5, 1.3
_RANGE_HEIGHT, _RANGES_MARGIN = 0.27, 0.55
"""The height of a scheme's two ranges, and that of their axis."""
_LEGEND_COLUMNS = 3


def draw(studies: Sequence[Study]) -> Figure:
    """Draws each study, most recent first.

    Above: accuracy against learning rate, means over seeds with 95 % t-intervals, left without warm-up, right with the
    longest. Below it, only if trials diverged: their share. Then the range of learning rates of each scheme's means,
    solid without warm-up, broken with the longest, and its width in decades. Last, the norm of the gradient in the
    first steps of the attention phase: the median over the seeds that reached them, and the least and the most as a
    band.
    """
    recent = studies[:STUDIES_SHOWN]
    heights = [_heights(study) for study in recent]
    with new_figure(sum(map(sum, heights)) + 0.5) as figure:
        blocks = figure.subfigures(len(recent), 1, squeeze=False, height_ratios=[*map(sum, heights)]).ravel()
        for block, study, rows in zip(blocks, recent, heights, strict=True):
            parts = iter(block.subfigures(len(rows), 1, height_ratios=rows))
            styles = _warmup_styles(study)
            panels = next(parts).subplots(1, len(styles), sharey=True, squeeze=False).ravel()
            for axes, warmup in zip(panels, styles, strict=True):
                if axes is panels[0]:
                    draw_heading(axes, study, _warmup_text(warmup))
                else:
                    draw_subtitle(axes, _warmup_text(warmup))
                draw_accuracy(axes, study, LEARNING_RATE, {WARMUP: warmup}, linewidth=1.0)
                axes.set_ylabel("test accuracy (%)" if axes is panels[0] else "")
                _scale_rates(axes, study)
            for axes in panels:  # after all are drawn, because they share the y axis
                tidy(axes)
                draw_chance(axes, study)
            if _has_diverged(study):
                _draw_divergence(
                    next(parts).subplots(1, len(styles), sharey=True, squeeze=False).ravel(), study, styles
                )
            _draw_ranges(next(parts).subplots(), study, styles)
            rates = _spread(study.values(LEARNING_RATE))
            grid = next(parts).subplots(len(styles), len(rates), sharex=True, sharey=True, squeeze=False)
            for row, warmup in zip(grid, styles, strict=True):
                row[0].set_ylabel(f"{_warmup_text(warmup)}\ngradient norm")
                for axes, rate in zip(row, rates, strict=True):
                    _draw_gradients(axes, study, rate, warmup)
            for axes, rate in zip(grid[0], rates, strict=True):
                draw_subtitle(axes, f"learning rate {plain_text(rate)}")
            for axes in grid[-1]:
                axes.set_xlabel("step")
        figure.legend(
            handles=[*scheme_handles(recent, linestyle="-"), *_warmup_handles(recent)],
            loc="outside lower center",
            ncols=_LEGEND_COLUMNS,
        )
    return figure


def _heights(study: Study) -> list[float]:
    """The heights of the rows of a study, in inches."""
    ranges = _RANGES_MARGIN + _RANGE_HEIGHT * len(study.schemes)
    diverged = [_DIVERGENCE_HEIGHT] if _has_diverged(study) else []
    return [_ACCURACY_HEIGHT, *diverged, ranges, _GRADIENTS_HEIGHT * len(_warmup_styles(study))]


def _has_diverged(study: Study) -> bool:
    """True if a trial with one of the two warm-ups has diverged: a panel that is zero throughout says nothing."""
    return any(result.diverged and result.place[WARMUP] in _warmup_styles(study) for result in study.results)


def _warmup_text(warmup: float) -> str:
    return f"warm-up {plain_text(warmup)}" if warmup else "no warm-up"


def _scale_rates(axes: Axes, study: Study) -> None:
    log_x(axes, study.values(LEARNING_RATE), plain_text)
    axes.set_xlabel("learning rate (log scale)")


def _warmup_styles(study: Study) -> dict[float, Any]:
    """The line styles of the shortest and of the longest warm-up; the others are not drawn."""
    ascending = study.values(WARMUP)
    return dict(zip(dict.fromkeys([ascending[0], ascending[-1]]), LINE_STYLES, strict=False))


def _warmup_handles(studies: Sequence[Study]) -> list[Line2D]:
    styles = {warmup: style for study in studies for warmup, style in _warmup_styles(study).items()}
    return [
        Line2D([], [], color="black", linestyle=style, label=_warmup_text(warmup)) for warmup, style in styles.items()
    ]


def _draw_divergence(panels: Sequence[Axes], study: Study, warmups: Iterable[float]) -> None:
    """Draws the share of diverged trials, side by side at each rate, a panel per warm-up."""
    rates = study.values(LEARNING_RATE)
    for axes, warmup in zip(panels, warmups, strict=True):
        for scheme, shift in shifts(study.schemes).items():
            shares = [divergence_rate(study, {WARMUP: warmup, LEARNING_RATE: rate, SCHEME: scheme}) for rate in rates]
            ranges = [(0.0, 100 * share, 100 * share) for share in shares]
            draw_ranges(axes, rates, ranges, shift, **line_style(scheme, linestyle=""))
        axes.set_ylim(-4, 104)
        _scale_rates(axes, study)
        grid_lines(axes)
    panels[0].set_ylabel("diverged (% of trials)")


def _draw_ranges(axes: Axes, study: Study, styles: Mapping[float, Any]) -> None:
    """Draws the stretches of each scheme's range, one line per warm-up, and writes its width beside it."""
    rates = study.values(LEARNING_RATE)
    lines = {(row.scheme, row.warmup): row.of_means for row in rate_summaries(study)}
    for number, scheme in enumerate(study.schemes):
        for warmup, shift in zip(styles, (-0.2, 0.2), strict=False):
            if (of_means := lines.get((scheme, warmup))) is not None:
                for stretch in of_means.stretches:
                    colour = line_style(scheme)["color"]
                    axes.plot(stretch, [number + shift] * 2, color=colour, linestyle=styles[warmup], linewidth=2.0)
                place = (1.01, number + shift)
                axes.annotate(range_text(of_means), place, xycoords=("axes fraction", "data"), va="center", **REMARK)
    names = [scheme_text(scheme).replace("$", r"\$") for scheme in study.schemes]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(study.schemes) - 0.5, -0.5)
    log_x(axes, rates, plain_text)
    axes.set_xlabel(f"learning rates within {100 * TOLERANCE:g} points of the best (log scale); right: decades")


def _draw_gradients(axes: Axes, study: Study, rate: float, warmup: float) -> None:
    for scheme in study.schemes:
        by_step: dict[int, list[float]] = {}
        for trial in study.trials_at({WARMUP: warmup, LEARNING_RATE: rate, SCHEME: scheme}):
            for step, norm in early_gradients(study, trial).items():
                by_step.setdefault(step, []).append(norm)
        steps, norms = sorted(by_step), [by_step[step] for step in sorted(by_step)]
        colour = line_style(scheme)["color"]
        axes.plot(steps, [statistics.median(at_step) for at_step in norms], color=colour, linewidth=0.8)
        if steps:  # else the band would begin at 0, which no logarithmic axis has
            axes.fill_between(steps, [*map(min, norms)], [*map(max, norms)], color=colour, alpha=0.12, linewidth=0)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    grid_lines(axes)


def _spread(values: Sequence[float]) -> list[float]:
    """At most _PANELS of the values, evenly chosen, the first and the last included."""
    count = min(_PANELS, len(values))
    places = [round(i * (len(values) - 1) / max(1, count - 1)) for i in range(count)]
    return [values[place] for place in places]
