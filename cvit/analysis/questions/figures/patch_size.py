"""The figure of the sweep patch_size: accuracy and speed against the size of the patches."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from cvit.analysis.display.figure_style import (
    ROW_HEIGHT,
    STUDIES_SHOWN,
    draw_accuracy,
    fraction_handles,
    fraction_styles,
    grid_lines,
    legend_above,
    line_style,
    log_x,
    new_figure,
    tidy,
)
from cvit.analysis.questions.patch_size import HEADS_NEEDED, heads_by_kernel, steps_per_second
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import FRACTION, PATCH_SIZE, SCHEME


def draw(studies: Sequence[Study]) -> Figure:
    """Draws, per study, most recent first: accuracy against patch size, and steps per second with the heads needed.

    On the left, lines are means over seeds and bands 95 % t-intervals; on the right, lines are medians over all trials.
    """
    recent = studies[:STUDIES_SHOWN]
    with new_figure(ROW_HEIGHT * len(recent)) as figure:
        panels = figure.subplots(len(recent), 2, squeeze=False)
        for (left, right), study in zip(panels, recent, strict=True):
            _draw_accuracy(left, study)
            _draw_speed(right, study)
        figure.align_ylabels()
    return figure


def _draw_accuracy(axes: Axes, study: Study) -> None:
    styles = fraction_styles(study.values(FRACTION))
    for fraction, style in styles.items():
        draw_accuracy(axes, study, PATCH_SIZE, {FRACTION: fraction}, linestyle=style)
    log_x(axes, study.values(PATCH_SIZE), str)
    axes.set_xlabel("patch size (pixels, log scale)")
    axes.set_title(study.label, loc="left", fontweight="bold", pad=14)
    tidy(axes)
    legend_above(axes, fraction_handles(styles))


def _draw_speed(axes: Axes, study: Study) -> None:
    sizes = study.values(PATCH_SIZE)
    for scheme in study.schemes:
        speeds = [steps_per_second(study, {PATCH_SIZE: size, SCHEME: scheme}) for size in sizes]
        axes.plot(sizes, speeds, label=scheme, **line_style(scheme))
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda speed, _: f"{speed:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    log_x(axes, sizes, lambda size: f"{size}\n{', '.join(map(str, heads_by_kernel(round(size))))}")
    axes.set_xlabel(f"patch size (pixels, log scale)\nbelow it: {HEADS_NEEDED}")
    axes.set_ylabel("steps per second (log scale)")
    grid_lines(axes)
    axes.legend(loc="best")
