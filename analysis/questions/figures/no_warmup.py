"""The figure of the sweep no_warmup: accuracy and divergence against learning rate, and the first gradients."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.display.figure_style import (
    LINE_STYLES,
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
from analysis.display.wording import plain_text
from analysis.questions.no_warmup import divergence_rate, early_gradients
from analysis.statistics.studies import Study
from analysis.store.axes import LEARNING_RATE, SCHEME, WARMUP

_PANELS = 5
"""The number of learning rates whose gradients are shown, the smallest and the largest included."""
_GRADIENTS_HEIGHT = 1.9


def draw(studies: Sequence[Study]) -> Figure:
    """Draws two rows per study, most recent first.

    Above: accuracy (means over seeds, bands 95 % t-intervals) and the share of diverged trials against learning rate.
    Below: the norm of the gradient in the first steps of the attention phase, the median over the seeds that reached
    them. Lines are solid without warm-up, broken with the longest.
    """
    recent = studies[:STUDIES_SHOWN]
    with new_figure((ROW_HEIGHT + _GRADIENTS_HEIGHT) * len(recent) + 0.3) as figure:
        blocks = figure.subfigures(len(recent), 1, squeeze=False).ravel()
        for block, study in zip(blocks, recent, strict=True):
            styles = _warmup_styles(study)
            rates = study.values(LEARNING_RATE)
            above, below = block.subfigures(2, 1, height_ratios=(ROW_HEIGHT, _GRADIENTS_HEIGHT))
            left, right = above.subplots(1, 2)
            left.set_title(study.label, loc="left", fontweight="bold")
            for warmup, style in styles.items():
                draw_accuracy(left, study, LEARNING_RATE, {WARMUP: warmup}, linestyle=style)
                _draw_divergence(right, study, warmup, style)
            right.set_ylabel("diverged (% of the trials)")
            right.set_ylim(-4, 104)
            for axes in (left, right):
                log_x(axes, rates, plain_text)
                axes.set_xlabel("learning rate (log scale)")
                tidy(axes)
            rates_below = _spread(rates)
            panels = below.subplots(1, len(rates_below), sharey=True, squeeze=False).ravel()
            for axes, rate in zip(panels, rates_below, strict=True):
                axes.set_title(f"learning rate {plain_text(rate)}", loc="left")
                _draw_gradients(axes, study, rate, styles)
            panels[0].set_ylabel("gradient norm (log)")
        figure.legend(
            handles=[*scheme_handles(recent), *_warmup_handles(recent)],
            loc="outside lower center",
            ncols=len(recent) + 4,
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
