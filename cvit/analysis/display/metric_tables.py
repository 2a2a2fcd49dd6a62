"""Tables of any task: the mean of the metric that answers its question, a row per place on the axes.

Numbers have the unit of the metric; printed numbers are rounded.
"""

import math
from collections.abc import Sequence

from cvit.analysis.display.csv_text import csv_text
from cvit.analysis.display.notes import notes
from cvit.analysis.display.settings import has_schemes, heading_lines, listed, settings_lines
from cvit.analysis.display.text import latex, latex_table, markdown_name, markdown_table, number_text
from cvit.analysis.display.titles import named_title
from cvit.analysis.display.wording import csv_value, heading, in_caption, metric_text, scheme_text, texts
from cvit.analysis.statistics.stats import Estimate, Summary
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import SCHEME

_RULES = (
    "The last measured value, mean over seeds with the 95 % t-interval. A diverged trial counts with its last measured "
    "value, where there is one. A dash: nothing to compute it from."
)
_COUNTS = ("n", "expected", "diverged", "missing")


def csv(studies: Sequence[Study]) -> str:
    """All studies as CSV; `kind` is the metric.

    Columns: sweep, study, dataset, kind, the axes, init_scheme if there are schemes, mean, ci_low, ci_high, n,
    expected, diverged.
    """
    axes = list(dict.fromkeys(axis for study in studies for axis in (*study.axes, *_scheme_axis(study))))
    rows = []
    for study in studies:
        common = {"sweep": study.sweep, "study": study.label, "dataset": study.dataset, "kind": study.metric}
        for cell in study.means:
            place = {axis: csv_value(cell.place[axis]) for axis in (*study.axes, *_scheme_axis(study))}
            counts = {"expected": cell.expected, "diverged": cell.diverged}
            rows.append(common | place | vars(cell.estimate) | counts)
    columns = ["sweep", "study", "dataset", "kind", *axes, "mean", "ci_low", "ci_high", "n", "expected", "diverged"]
    return csv_text(rows, columns)


def markdown(studies: Sequence[Study]) -> str:
    """All studies of a sweep as Markdown, a section each."""
    return "\n".join([f"# {markdown_name(studies[0].sweep)}\n\n{_RULES}\n", *map(_markdown_section, studies)])


def latex_tables(studies: Sequence[Study]) -> str:
    """All studies as LaTeX, a `table` each (package booktabs)."""
    return "\n".join(map(_latex_table, studies))


def answer(study: Study) -> str:
    """One study in a few lines for the terminal."""
    lines = [*_table(study), "", "Mean over seeds with the 95 % interval."]
    if study.missing:
        lines += [f"Missing: {len(study.missing)} of {len(study.results)} trials."]
    return "\n".join(lines)


def _markdown_section(study: Study) -> str:
    lines = [*heading_lines(study), *_table(study), *listed(study, "Missing", study.missing)]
    return "\n".join([*lines, *settings_lines(study), ""])


def _latex_table(study: Study) -> str:
    head, rows = _head(study), _rows(study)
    by = f" by {' and '.join(map(in_caption, study.axes))}" if study.axes else ""
    caption = f"{_metric(study)}, {named_title(study)}{by}: mean over seeds with the 95 % t-interval."
    cells = [list(map(latex, row)) for row in rows]
    name = f"{study.sweep}-{study.label}"
    return latex_table(
        caption, name, head, cells, left_columns=len(study.axes) + len(_scheme_axis(study)), notes=notes(study)
    )


def _table(study: Study) -> list[str]:
    return markdown_table(_head(study), _rows(study))


def _head(study: Study) -> list[str]:
    axes = [heading(axis) for axis in (*study.axes, *_scheme_axis(study))]
    return [*axes, metric_text(study.metric), "95 % interval", *_COUNTS]


def _rows(study: Study) -> list[list[str]]:
    return [_row(study, cell) for cell in study.means]


def _row(study: Study, cell: Summary) -> list[str]:
    place = [*texts(study, cell.place), *(scheme_text(cell.place[axis]) for axis in _scheme_axis(study))]
    counts = (cell.estimate.n, cell.expected, cell.diverged, cell.missing)
    return [*place, number_text(cell.estimate.mean), _interval(cell.estimate), *map(str, counts)]


def _interval(estimate: Estimate) -> str:
    if math.isnan(estimate.ci_low):
        return "-"
    return f"[{number_text(estimate.ci_low)}, {number_text(estimate.ci_high)}]"


def _scheme_axis(study: Study) -> list[str]:
    return [SCHEME] if has_schemes(study) else []


def _metric(study: Study) -> str:
    return metric_text(study.metric).capitalize()
