"""The figure of the sweep hybrids: accuracy against the number of attention blocks, a panel per data fraction."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvit.analysis.display.figure_style import (
    ROW_HEIGHT,
    STUDIES_SHOWN,
    draw_chance,
    draw_estimates,
    draw_heading,
    draw_subtitle,
    fixed_ticks,
    legend_below,
    line_style,
    new_figure,
    shifts,
    tidy,
)
from cvit.analysis.display.wording import fraction_text, scheme_text
from cvit.analysis.questions.hybrids import num_blocks
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import ATTENTION_BLOCKS, FRACTION, SCHEME
from cvit.init.schemes import REFERENCES


def draw(studies: Sequence[Study]) -> Figure:
    """Draws a row of panels per study, most recent first. Marks are means over seeds with 95 % t-intervals; references,
    which have no attention, are lines with a band."""
    recent = studies[:STUDIES_SHOWN]
    columns = max(len(study.values(FRACTION)) for study in recent)
    with new_figure(ROW_HEIGHT * len(recent)) as figure:
        rows = figure.subplots(len(recent), columns, squeeze=False, sharey="row")
        for panels, study in zip(rows, recent, strict=True):
            fractions = study.values(FRACTION)
            for axes, fraction in zip(panels, fractions, strict=False):
                _draw(axes, study, fraction)
                remark = f"{fraction_text(fraction)} of the images"
                if axes is panels[0]:
                    draw_heading(axes, study, remark)
                    axes.set_ylabel("test accuracy (%)")
                else:
                    draw_subtitle(axes, remark)
            for axes in panels[: len(fractions)]:  # after all are drawn, because they share the y axis
                tidy(axes)
                draw_chance(axes, study)
            for axes in panels[len(fractions) :]:
                axes.set_axis_off()
        legend_below(figure, rows.flat)
    return figure


def _draw(axes: Axes, study: Study, fraction: float) -> None:
    """Draws the schemes at a data fraction."""
    numbers = sorted({num_blocks(study, value) for value in study.values(ATTENTION_BLOCKS)})
    aside = shifts([scheme for scheme in study.schemes if scheme not in REFERENCES])
    for scheme in study.schemes:
        cells = [
            cell
            for cell in study.means
            if cell.estimate.n and (cell.place[FRACTION], cell.place[SCHEME]) == (fraction, scheme)
        ]
        if scheme in REFERENCES and cells:
            estimate = max((cell.estimate for cell in cells), key=lambda estimate: estimate.n)
            colour = line_style(scheme)["color"]
            axes.axhline(100 * estimate.mean, linestyle=":", color=colour, label=scheme_text(scheme))
            axes.axhspan(100 * estimate.ci_low, 100 * estimate.ci_high, color=colour, alpha=0.12, linewidth=0)
        elif cells:
            at = [num_blocks(study, cell.place[ATTENTION_BLOCKS]) for cell in cells]
            style = line_style(scheme, label=scheme_text(scheme))
            draw_estimates(axes, at, [cell.estimate for cell in cells], aside[scheme], **style)
    fixed_ticks(axes.xaxis, numbers, lambda number: f"{number:g}")
    axes.set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)
    axes.set_xlabel("blocks of attention")
