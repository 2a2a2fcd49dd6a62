"""The figure of the sweep patch_size: accuracy and speed against the size of the patches."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from cvit.analysis.display.figure_style import (
    ROW_HEIGHT,
    STUDIES_SHOWN,
    draw_accuracy,
    draw_chance,
    draw_heading,
    draw_ranges,
    fraction_handles,
    fraction_styles,
    grid_lines,
    legend_below,
    line_style,
    log_x,
    new_figure,
    scheme_handles,
    shifts,
    tidy,
)
from cvit.analysis.questions.patch_size import HEADS_NEEDED, all_steps_per_second, heads_by_kernel
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import FRACTION, PATCH_SIZE, SCHEME

_ASIDE = (-5.0, 5.0)
"""The shifts to the side of the largest and the smallest fraction, in points."""


def draw(studies: Sequence[Study]) -> Figure:
    """Draws, per study, most recent first: accuracy against patch size, and steps per second with the heads needed.

    On the left, marks are means over seeds with 95 % t-intervals; on the right, medians of all
    trials with their quartiles.
    """
    recent = studies[:STUDIES_SHOWN]
    with new_figure(ROW_HEIGHT * len(recent) + 0.2) as figure:
        panels = figure.subplots(len(recent), 2, squeeze=False)
        for (left, right), study in zip(panels, recent, strict=True):
            _draw_accuracy(left, study)
            _draw_speed(right, study)
        styles = {k: style for study in recent for k, style in fraction_styles(study.values(FRACTION)).items()}
        legend_below(figure, [], [*scheme_handles(recent), *fraction_handles(styles)])
        figure.align_ylabels()
    return figure


def _draw_accuracy(axes: Axes, study: Study) -> None:
    styles = fraction_styles(study.values(FRACTION))
    for (fraction, style), aside in zip(styles.items(), _ASIDE, strict=False):
        draw_accuracy(axes, study, PATCH_SIZE, {FRACTION: fraction}, aside, linestyle=style)
    log_x(axes, study.values(PATCH_SIZE), str)
    axes.set_xlabel("patch size (pixels, log scale)")
    draw_heading(axes, study)
    tidy(axes)
    draw_chance(axes, study)


def _draw_speed(axes: Axes, study: Study) -> None:
    sizes = study.values(PATCH_SIZE)
    for scheme, shift in shifts(study.schemes).items():
        speeds = {size: all_steps_per_second(study, {PATCH_SIZE: size, SCHEME: scheme}) for size in sizes}
        known = {size: tuple(np.quantile(of_size, (0.25, 0.5, 0.75))) for size, of_size in speeds.items() if of_size}
        draw_ranges(axes, list(known), list(known.values()), shift, **line_style(scheme))
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda speed, _: f"{speed:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    log_x(axes, sizes, lambda size: f"{size}\n{', '.join(map(str, heads_by_kernel(round(size))))}")
    axes.set_xlabel(f"patch size (pixels, log scale)\nbelow it: {HEADS_NEEDED}")
    axes.set_ylabel("steps per second (log scale)")
    grid_lines(axes)
