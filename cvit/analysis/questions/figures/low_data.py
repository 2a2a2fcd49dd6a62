"""The figure of the sweep low_data: accuracy and gain against data fraction, and accuracy during training."""

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cvit import vocabulary as names
from cvit.analysis.display.figure_style import (
    ROW_HEIGHT,
    STUDIES_SHOWN,
    draw_accuracy,
    draw_chance,
    draw_curve,
    draw_gains,
    draw_heading,
    draw_subtitle,
    fraction_handles,
    fraction_styles,
    legend_below,
    log_x,
    new_figure,
    tidy,
)
from cvit.analysis.display.wording import fraction_text
from cvit.analysis.statistics.stats import Estimate, t_interval
from cvit.analysis.statistics.studies import TREATMENT, Study, gains_over
from cvit.analysis.statistics.variants import base_scheme
from cvit.analysis.store.axes import FRACTION, SCHEME

_PHASE_MARK: dict[str, Any] = {"color": "black", "marker": "|", "markersize": 12, "markeredgewidth": 1.2}
_MOST_SCHEMES = 4  # of more schemes, only the curves of the smallest fraction are drawn
_LOG_STEPS_FROM = 4.0  # ratio between the longest and the shortest curve from which steps get a log axis


def draw(studies: Sequence[Study]) -> Figure:
    """Draws, per study, most recent first: accuracy against data fraction, the gain over random initialisation on the
    same seeds, and validation accuracy against steps.

    Marks are means over seeds, with 95 % t-intervals. Diverged trials count as in the tables but for the last panel,
    which leaves them and those of equal FLOPs out. A tick on a curve marks where its trials pass from convolution to
    attention.
    """
    recent = studies[:STUDIES_SHOWN]
    with new_figure(ROW_HEIGHT * len(recent) + 0.2) as figure:
        panels = figure.subplots(len(recent), 3, squeeze=False)
        handles: dict[str, Line2D] = {}
        for (left, middle, right), study in zip(panels, recent, strict=True):
            draw_heading(left, study)
            draw_accuracy(left, study, FRACTION, {})
            draw_gains(middle, study, FRACTION, gains_over(study))
            handles |= {str(handle.get_label()): handle for handle in _draw_curves(right, study)}
            for axes in (left, middle):
                log_x(axes, study.values(FRACTION), lambda fraction: f"{100 * fraction:.10g}")
                axes.set_xlabel("training images (%, log scale)")
            for axes in (left, right):
                tidy(axes)
                draw_chance(axes, study)
        legend_below(figure, panels[:, 0], list(handles.values()))
        figure.align_ylabels()
    return figure


def _draw_curves(axes: Axes, study: Study) -> list[Line2D]:
    """Draws the curves of the smallest and the largest fraction; returns what the legend says of them."""
    history = {key: curve for (key, metric), curve in study.curves.items() if metric == names.VAL_ACCURACY}
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for result in study.results:
        if result.place[SCHEME] != base_scheme(result.place[SCHEME]):
            continue  # the curves are those of equal steps
        if result.trial and result.state == names.STATUS_OK and result.trial["trial_key"] in history:
            groups.setdefault((result.place[FRACTION], result.place[SCHEME]), []).append(result.trial)
    fractions = sorted({fraction for fraction, _ in groups})
    styles = fraction_styles(fractions if len({scheme for _, scheme in groups}) <= _MOST_SCHEMES else fractions[:1])
    lines = {
        (fraction, scheme): _mean_curve([history[trial["trial_key"]] for trial in trials])
        for (fraction, scheme), trials in groups.items()
        if fraction in styles
    }
    last_steps = [steps[-1] for steps, _ in lines.values() if steps]
    first_step = 0
    if last_steps and max(last_steps) >= _LOG_STEPS_FROM * min(last_steps):
        axes.set_xscale("log")
        first_step = 1
    phase_changes = []
    for (fraction, scheme), (steps, means) in lines.items():
        start = bisect.bisect_left(steps, first_step)
        draw_curve(axes, steps[start:], means[start:], scheme, linestyle=styles[fraction])
        if scheme == TREATMENT and steps:
            change = groups[fraction, scheme][0]["convolution_fraction"] * steps[-1]
            phase_changes.append((change, np.interp(change, steps, [100 * estimate.mean for estimate in means])))
    for change in phase_changes:
        axes.plot(*change, **_PHASE_MARK)
    axes.set_xlabel("optimiser step (log scale)" if first_step else "optimiser step")
    axes.set_ylabel("validation accuracy (%)")
    if len(styles) == 1:
        draw_subtitle(axes, f"{fraction_text(fractions[0])} of the images")
    handles = fraction_handles(styles) if len(styles) > 1 else []
    if phase_changes:
        handles.append(Line2D([], [], linestyle="", label="phase change", **_PHASE_MARK))
    return handles


def _mean_curve(curves: Sequence[Mapping[int, float]]) -> tuple[list[int], list[Estimate]]:
    """The means at the steps that all curves have in common."""
    steps = sorted(set.intersection(*map(set, curves)))
    return steps, [t_interval(curve[step] for curve in curves) for step in steps]
