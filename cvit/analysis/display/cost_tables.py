"""The costs of a study's trials by scheme and phase: as a table, as a section in Markdown, as rows of a CSV."""

import math
from typing import Any

from cvit.analysis.display.text import markdown_table, number_text
from cvit.analysis.display.wording import cell_text, csv_value, heading, scheme_text
from cvit.analysis.statistics.cost import costs_of, decisive_axes
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import SCHEME

CSV_COLUMNS = ("phase", "steps", "learning_rate_sum", "flops", "seconds")
TITLE = "Cost of a trial"
_RULES = (
    "S is the sum of the learning rates: in a phase, AdamW moves no parameter by much more than S times the factor of "
    "its rate (`position_learning_rate_factor` for relative bias and position embedding). FLOPs are those of matrix "
    "products and convolutions, forward and backward. Seconds are a worker's, evaluation included, a trial's share of "
    "its pack; mean over n trials."
)


def table(study: Study) -> tuple[list[str], list[list[str]]]:
    """Head and rows, by the axes that have an influence on costs; no rows if no trial says what it costs."""
    axes = decisive_axes(study)
    rows = [
        [
            *(cell_text(study, axis, at.place[axis]) for axis in axes),
            scheme_text(at.place[SCHEME]),
            at.cost.phase,
            str(at.cost.steps),
            number_text(at.cost.learning_rate_sum),
            "-" if math.isnan(at.cost.flops) else f"{at.cost.flops:.2e}",
            number_text(at.cost.seconds),
            str(at.num_timed),
        ]
        for at in costs_of(study, axes)
    ]
    return [*map(heading, axes), "scheme", "phase", "steps", "S", "FLOPs", "seconds", "n"], rows


def rules(study: Study) -> str:
    """The sentences below the table."""
    left_out = [heading(axis) for axis in study.axes if axis not in decisive_axes(study)]
    return " ".join([_RULES, *([f"No influence on steps, S and FLOPs: {', '.join(left_out)}."] if left_out else [])])


def markdown_lines(study: Study) -> list[str]:
    """The section in Markdown; no lines without rows."""
    head, rows = table(study)
    return ["", f"### {TITLE}", "", *markdown_table(head, rows), "", rules(study)] if rows else []


def csv_rows(study: Study) -> list[dict[str, Any]]:
    """A row per place and phase; what is not known is empty."""
    return [
        {
            "kind": "cost",
            **{axis: csv_value(value) for axis, value in at.place.items()},
            "phase": at.cost.phase,
            "steps": at.cost.steps,
            "learning_rate_sum": at.cost.learning_rate_sum,
            "flops": at.cost.flops,
            "seconds": at.cost.seconds,
            "n": at.num_timed,
        }
        for at in costs_of(study, study.axes)
    ]
