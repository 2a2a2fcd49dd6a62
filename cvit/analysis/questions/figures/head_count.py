"""The figure of the sweep head_count: accuracy against the number of heads, a panel per rule for their width."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from cvit.analysis.display.figure_style import (
    ROW_HEIGHT,
    STUDIES_SHOWN,
    draw_accuracy,
    draw_chance,
    draw_heading,
    draw_subtitle,
    fixed_ticks,
    legend_below,
    mark_heads,
    new_figure,
    tidy,
)
from cvit.analysis.display.wording import value_text
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import INNER_DIM, NUM_HEADS


def draw(studies: Sequence[Study]) -> Figure:
    """Draws a row of panels per study, most recent first. Marks are means over seeds with 95 % t-intervals."""
    recent = studies[:STUDIES_SHOWN]
    columns = max(len(study.values(INNER_DIM)) for study in recent)
    with new_figure(ROW_HEIGHT * len(recent)) as figure:
        rows = figure.subplots(len(recent), columns, squeeze=False, sharey="row")
        for panels, study in zip(rows, recent, strict=True):
            widths, heads = study.values(INNER_DIM), study.values(NUM_HEADS)
            for axes, width in zip(panels, widths, strict=False):
                draw_accuracy(axes, study, NUM_HEADS, {INNER_DIM: width})
                rule = value_text(INNER_DIM, width, study.head_dim)
                if axes is panels[0]:
                    draw_heading(axes, study, rule)
                else:
                    draw_subtitle(axes, rule)
                axes.set_xlabel("number of heads")
                fixed_ticks(axes.xaxis, heads, str)
                axes.set_xlim(heads[0] - 0.5, heads[-1] + 0.5)
                if heads[0] <= study.needed_heads <= heads[-1]:
                    mark_heads(axes, study.needed_heads, at_top=False)
            for axes in panels[: len(widths)]:  # after all are drawn, because they share the y axis
                tidy(axes)
                draw_chance(axes, study)
            for axes in panels[1:]:
                axes.set_ylabel("")
            for axes in panels[len(widths) :]:
                axes.set_axis_off()
        legend_below(figure, rows.flat)
    return figure
