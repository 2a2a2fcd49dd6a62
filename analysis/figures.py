"""Figures of the answers, drawn without pyplot and the same bytes for the same data.

Colours are Okabe and Ito's, told apart by colour-blind readers; markers and line styles tell curves apart in grey.
"""

import bisect
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.load import CURVE_COLUMNS
from analysis.stats import Estimate, t_interval
from analysis.tables import BASELINE, FRACTION, LOW_DATA, SCHEME, TREATMENT, StudyTable, fraction_text, read_studies
from cvit import vocabulary as names

STUDIES_SHOWN = 3
"""The most recent studies that a figure shows."""

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "svg.hashsalt": "cvit",
}
_COLOURS = {"random": "#D55E00", "two_phase": "#0072B2", "conv_structured": "#009E73"}
_MARKERS = {"random": "o", "two_phase": "s", "conv_structured": "^"}
_OTHER_COLOUR, _OTHER_MARKER = "#000000", "D"
_FRACTION_STYLES = ("-", (0, (3.2, 1.6)))  # the largest fraction, the smallest
_PHASE_MARK: dict[str, Any] = {"color": "black", "marker": "|", "markersize": 12, "markeredgewidth": 1.2}
_MARKERS_PER_LINE = 8
_LOG_STEPS_FROM = 4.0  # ratio between the longest and the shortest curve from which steps get a log axis


def low_data_figure(studies: pd.DataFrame, trials: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Per study, most recent first: accuracy against data fraction, and validation accuracy against steps.

    Lines are means over seeds, bands 95 % t-intervals. Diverged trials enter the left panel as they enter the tables,
    and are left out of the right one. A tick on a curve marks where its trials pass from convolution to attention.
    """
    shown = read_studies(studies, trials, LOW_DATA)[:STUDIES_SHOWN]
    history = _history(curves)
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.0, 2.8 * len(shown)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(shown), 2, squeeze=False)
        for (left, right), study in zip(panels, shown, strict=True):
            _draw_accuracy(left, study)
            _draw_curves(right, study, history)
        figure.align_ylabels()
    return figure


def image_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as `png` (200 dots per inch) or `svg`, without dates, so that equal figures give equal bytes."""
    buffer = io.BytesIO()
    with rc_context(_STYLE):
        figure.savefig(buffer, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return buffer.getvalue()


def _draw_accuracy(axes: Axes, study: StudyTable) -> None:
    axes.set_title(study.label, loc="left", fontweight="bold")
    axes.set_xscale("log")
    for scheme in study.schemes:
        cells = [cell for cell in study.accuracy if cell.axes[SCHEME] == scheme and cell.estimate.n]
        fractions = [cell.axes[FRACTION] for cell in cells]
        _draw_line(axes, fractions, [cell.estimate for cell in cells], scheme, label=scheme)
    axes.xaxis.set_major_locator(FixedLocator(study.fractions))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda fraction, _: f"{100 * fraction:.10g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(study.fractions[0] / 1.25, study.fractions[-1] * 1.25)
    axes.set_xlabel("share of the training images (%, log scale)")
    axes.set_ylabel("test accuracy (%)")
    _tidy(axes)
    axes.legend(loc="best")


def _draw_curves(axes: Axes, study: StudyTable, history: Mapping[str, Mapping[int, float]]) -> None:
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for result in study.results:
        if result.trial and result.state == names.STATUS_OK and result.trial["trial_key"] in history:
            groups.setdefault((result.axes[FRACTION], result.axes[SCHEME]), []).append(result.trial)
    fractions = sorted({fraction for fraction, _ in groups})
    styles = dict(zip(dict.fromkeys([*fractions[-1:], *fractions[:1]]), _FRACTION_STYLES, strict=False))
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
        _draw_line(axes, steps[start:], means[start:], scheme, linestyle=styles[fraction])
        if scheme == TREATMENT and steps:
            change = groups[fraction, scheme][0]["convolution_fraction"] * steps[-1]
            phase_changes.append((change, np.interp(change, steps, [100 * estimate.mean for estimate in means])))
    for change in phase_changes:
        axes.plot(*change, **_PHASE_MARK)
    axes.set_xlabel("optimiser step (log scale)" if first_step else "optimiser step")
    axes.set_ylabel("validation accuracy (%)")
    _tidy(axes)
    handles = [
        Line2D([], [], color="black", linestyle=style, label=f"{fraction_text(fraction)} of images")
        for fraction, style in sorted(styles.items())
    ]
    if phase_changes:
        handles.append(Line2D([], [], linestyle="", label="phase change", **_PHASE_MARK))
    if handles:
        legend = axes.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(-0.03, 0.98),
            borderaxespad=0.0,
            ncols=len(handles),
            columnspacing=1.0,
            handletextpad=0.5,
            handlelength=2.0,
            fontsize="small",
        )
        legend.set_in_layout(False)


def _draw_line(axes: Axes, x: Sequence[float], estimates: Sequence[Estimate], scheme: str, **line: Any) -> None:
    """A scheme's means with their interval as a band, in percent."""
    colour, marker = _look(scheme)
    face = "white" if scheme == BASELINE else colour
    every = math.ceil(len(x) / _MARKERS_PER_LINE) or None
    low, mean, high = (100 * np.array([getattr(e, end) for e in estimates]) for end in ("ci_low", "mean", "ci_high"))
    axes.plot(x, mean, color=colour, marker=marker, markerfacecolor=face, markevery=every, **line)
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _history(curves: pd.DataFrame) -> dict[str, dict[int, float]]:
    """Validation accuracy by trial and step."""
    history: dict[str, dict[int, float]] = {}
    for trial_key, metric, step, value in curves[list(CURVE_COLUMNS)].itertuples(index=False, name=None):
        if metric == names.VAL_ACCURACY and math.isfinite(value):
            history.setdefault(trial_key, {})[step] = value
    return history


def _mean_curve(curves: Sequence[Mapping[int, float]]) -> tuple[list[int], list[Estimate]]:
    """Means at the steps that all the curves have in common."""
    steps = sorted(set.intersection(*map(set, curves)))
    return steps, [t_interval(curve[step] for curve in curves) for step in steps]


def _look(scheme: str) -> tuple[str, str]:
    return _COLOURS.get(scheme, _OTHER_COLOUR), _MARKERS.get(scheme, _OTHER_MARKER)


def _tidy(axes: Axes) -> None:
    """Light horizontal lines, and no room beyond 0 and 100 % but for the markers."""
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2), min(high, 102))
