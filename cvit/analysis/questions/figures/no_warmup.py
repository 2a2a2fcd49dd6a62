"""The figure of the sweep no_warmup: accuracy and divergence against learning rate, and the first gradients."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cvit.analysis.display.figure_style import (
    LINE_STYLES,
    REMARK,
    ROW_HEIGHT,
    STUDIES_SHOWN,
    draw_accuracy,
    grid_lines,
    line_style,
    log_x,
    new_figure,
    scheme_handles,
    tidy,
)
from cvit.analysis.display.wording import plain_text, scheme_text
from cvit.analysis.questions.no_warmup import divergence_rate, early_gradients, range_text
from cvit.analysis.statistics.learning_rates import TOLERANCE, rate_summaries
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import LEARNING_RATE, SCHEME, WARMUP

_PANELS = 5
"""The number of learning rates whose gradients are shown, the smallest and the largest included."""
_GRADIENTS_HEIGHT = 1.9
_RANGE_HEIGHT, _RANGES_MARGIN = 0.27, 0.55
"""The height of a scheme's two ranges, and that of their axis."""
_LEGEND_COLUMNS = 3
_MOST_BANDS = 3
"""With more schemes than this, bands would hide the lines."""


def draw(studies: Sequence[Study]) -> Figure:
    """Draws three rows per study, most recent first.

    Above: accuracy (means over seeds, bands 95 % t-intervals) and the share of diverged trials against learning rate.
    In the middle: the range of learning rates of each scheme's means, with its width in decades. Below: the norm of the
    gradient in the first steps of the attention phase, the median over the seeds that reached them. Lines are solid
    without warm-up, broken with the longest.
    """
    recent = studies[:STUDIES_SHOWN]
    heights = [(ROW_HEIGHT, _RANGES_MARGIN + _RANGE_HEIGHT * len(study.schemes), _GRADIENTS_HEIGHT) for study in recent]
    with new_figure(sum(map(sum, heights)) + 0.5) as figure:
        blocks = figure.subfigures(len(recent), 1, squeeze=False, height_ratios=[*map(sum, heights)]).ravel()
        for block, study, rows in zip(blocks, recent, heights, strict=True):
            styles = _warmup_styles(study)
            rates = study.values(LEARNING_RATE)
            above, middle, below = block.subfigures(3, 1, height_ratios=rows)
            left, right = above.subplots(1, 2)
            left.set_title(study.label, loc="left", fontweight="bold")
            for warmup, style in styles.items():
                has_band = len(study.schemes) <= _MOST_BANDS
                draw_accuracy(left, study, LEARNING_RATE, {WARMUP: warmup}, has_band, linestyle=style)
                _draw_divergence(right, study, warmup, style)
            right.set_ylabel("diverged (% of the trials)")
            right.set_ylim(-4, 104)
            for axes in (left, right):
                log_x(axes, rates, plain_text)
                axes.set_xlabel("learning rate (log scale)")
                tidy(axes)
            _draw_ranges(middle.subplots(), study, styles)
            rates_below = _spread(rates)
            panels = below.subplots(1, len(rates_below), sharey=True, squeeze=False).ravel()
            for axes, rate in zip(panels, rates_below, strict=True):
                axes.set_title(f"learning rate {plain_text(rate)}", loc="left")
                _draw_gradients(axes, study, rate, styles)
            panels[0].set_ylabel("gradient norm (log)")
        figure.legend(
            handles=[*scheme_handles(recent, linestyle="-"), *_warmup_handles(recent)],
            loc="outside lower center",
            ncols=_LEGEND_COLUMNS,
        )
    return figure


def _warmup_styles(study: Study) -> dict[float, Any]:
    """The line styles of the shortest and of the longest warm-up; the others are not drawn."""
    ascending = study.values(WARMUP)
    return dict(zip(dict.fromkeys([ascending[0], ascending[-1]]), LINE_STYLES, strict=False))


def _warmup_handles(studies: Sequence[Study]) -> list[Line2D]:
    styles = {warmup: style for study in studies for warmup, style in _warmup_styles(study).items()}
    texts = {warmup: f"warm-up {plain_text(warmup)}" if warmup else "no warm-up" for warmup in styles}
    return [Line2D([], [], color="black", linestyle=style, label=texts[warmup]) for warmup, style in styles.items()]


def _draw_divergence(axes: Axes, study: Study, warmup: float, style: Any) -> None:
    rates = study.values(LEARNING_RATE)
    for scheme in study.schemes:
        shares = [divergence_rate(study, {WARMUP: warmup, LEARNING_RATE: rate, SCHEME: scheme}) for rate in rates]
        axes.plot(rates, [100 * share for share in shares], **line_style(scheme, linestyle=style))


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


def _draw_gradients(axes: Axes, study: Study, rate: float, styles: Mapping[float, Any]) -> None:
    for warmup, style in styles.items():
        for scheme in study.schemes:
            by_step: dict[int, list[float]] = {}
            for trial in study.trials_at({WARMUP: warmup, LEARNING_RATE: rate, SCHEME: scheme}):
                for step, norm in early_gradients(study, trial).items():
                    by_step.setdefault(step, []).append(norm)
            medians = [statistics.median(norms) for _, norms in sorted(by_step.items())]
            axes.plot(sorted(by_step), medians, color=line_style(scheme)["color"], linestyle=style, linewidth=1.0)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.set_xlabel("step")
    grid_lines(axes)


def _spread(values: Sequence[float]) -> list[float]:
    """At most _PANELS of the values, evenly chosen, the first and the last included."""
    count = min(_PANELS, len(values))
    places = [round(i * (len(values) - 1) / max(1, count - 1)) for i in range(count)]
    return [values[place] for place in places]
