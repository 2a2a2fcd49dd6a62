"""Tables of any sweep of trainings: CSV, Markdown, LaTeX, and the short table of one study for the terminal.

A table has a row per combination of the axes, a column per init scheme, and the paired gain last; a sweep may add
columns and comparisons (`Layout`). Printed numbers are rounded; the CSV has fractions in full precision. The statistics
and the rule on diverged trials are in cvit/analysis/statistics/stats.py.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cvit.analysis.display import cost_tables
from cvit.analysis.display.csv_text import csv_text
from cvit.analysis.display.notes import notes
from cvit.analysis.display.settings import heading_lines, listed, settings_lines
from cvit.analysis.display.text import (
    gain_text,
    interval,
    is_numeric,
    latex,
    latex_estimate,
    latex_table,
    markdown_name,
    markdown_table,
    mean_text,
    number_text,
    percent,
)
from cvit.analysis.display.titles import named_title
from cvit.analysis.display.wording import cell_text, csv_value, heading, in_caption, scheme_text, texts
from cvit.analysis.statistics.stats import Summary
from cvit.analysis.statistics.studies import GAIN, Study
from cvit.analysis.store.axes import SCHEME

_RULES = (
    "Accuracy on the test images at the end of training, mean over seeds with the 95 % t-interval; gains are "
    "differences on the same seeds. A diverged trial counts with its last measured accuracy, where there is one. "
    "A dash: nothing to compute it from."
)
_COUNTS = ("expected", "diverged", "missing")
_TRAIN_IMAGES = "train_images"


@dataclass(frozen=True)
class Column:
    """A further column of a sweep's tables; in the CSV it may be several columns.

    Attributes:
        heading: the heading in texts.
        csv_names: the headings in the CSV.
        values: (study, place on its axes) → a value per CSV column, NaN if unknown.
        is_measured: True for a value of trials, which the CSV omits for a difference between trials.
        in_overview: True if the short table, where all schemes share a row, has the column too.
    """

    heading: str
    csv_names: tuple[str, ...]
    values: Callable[[Study, Mapping[str, Any]], tuple[float, ...]]
    is_measured: bool = False
    in_overview: bool = True

    def text(self, study: Study, place: Mapping[str, Any]) -> str:
        """The values at a place, rounded."""
        return ", ".join(map(number_text, self.values(study, place)))


@dataclass(frozen=True)
class Comparison:
    """Differences on the same seeds.

    `{heads}` in a heading or title stands for the heads that a convolution of width 3 needs on the study's data.

    Attributes:
        kind: their `kind` in the CSV.
        heading: the heading of the column with their scheme.
        summaries: study → its differences, with the scheme among their axes.
        title: the heading of their section; empty for the paired gain, which is a column of the short table.
    """

    kind: str
    heading: str
    summaries: Callable[[Study], list[Summary]]
    title: str = ""

    def heading_of(self, study: Study) -> str:
        """The heading in the tables of a study."""
        return self.heading.format(heads=study.needed_heads)

    def title_of(self, study: Study) -> str:
        """The title in the tables of a study."""
        return self.title.format(heads=study.needed_heads)


@dataclass(frozen=True)
class Section:
    """A table of its own, of values that belong to no single row of the others.

    Attributes:
        title: its heading.
        notes: sentences below the heading.
        table: study → head and rows; no rows where there is nothing to show.
        csv_rows: study → rows of the CSV, each with its `kind`.
        csv_names: the columns that these rows add to the CSV.
    """

    title: str
    notes: str
    table: Callable[[Study], tuple[list[str], list[list[str]]]]
    csv_rows: Callable[[Study], list[dict[str, Any]]]
    csv_names: tuple[str, ...] = ()


PAIRED_GAIN = Comparison("paired_gain", "paired gain", lambda study: study.gain)


@dataclass(frozen=True)
class Layout:
    """The content of a sweep's tables beside accuracy.

    Attributes:
        columns: further columns.
        gain: the first comparison.
        comparisons: further differences.
        sections: tables of their own, below the others.
        across: the axis whose values are the columns of the short table.
        notes: sentences about how the further columns are measured.
    """

    columns: tuple[Column, ...] = ()
    gain: Comparison = PAIRED_GAIN
    comparisons: tuple[Comparison, ...] = ()
    sections: tuple[Section, ...] = ()
    across: str = SCHEME
    notes: str = ""


GENERAL_LAYOUT = Layout()
"""The layout of a sweep that has none of its own."""


def csv(studies: Sequence[Study], layout: Layout) -> str:
    """All studies as CSV. `kind` is `accuracy`, the kind of a comparison, or `cost` with a row per phase of the trials
    there; accuracies and differences are fractions.

    Columns: sweep, study, dataset, kind, the axes without the scheme, init_scheme (`two_phase-random` for the paired
    gain), mean, ci_low, ci_high, n, expected, diverged, the columns of the layout and of its sections, whose rows have
    the unit that their kind names, and, if a study says them, the costs (phase, steps, learning_rate_sum, flops,
    seconds) and the number of training images (train_images).
    """
    axes = list(dict.fromkeys(axis for study in studies for axis in study.axes))
    rows, has_costs = [], False
    for study in studies:
        common = {"sweep": study.sweep, "study": study.label, "dataset": study.dataset}
        kinds = [("accuracy", study.means)]
        kinds += [(each.kind, each.summaries(study)) for each in (layout.gain, *layout.comparisons)]
        for kind, summaries in kinds:
            for cell in summaries:
                place = {axis: cell.place[axis] for axis in study.axes}
                row = common | {"kind": kind} | {axis: csv_value(value) for axis, value in place.items()}
                row[SCHEME] = cell.place[SCHEME].replace(" - ", "-")
                row |= vars(cell.estimate) | {"expected": cell.expected, "diverged": cell.diverged}
                for column in layout.columns:
                    if kind == "accuracy":
                        row |= zip(column.csv_names, column.values(study, cell.place), strict=True)
                    elif not column.is_measured:
                        row |= zip(column.csv_names, column.values(study, place), strict=True)
                rows.append(row | {_TRAIN_IMAGES: study.shares.count_at(place)})
        rows += [common | row for section in layout.sections for row in section.csv_rows(study)]
        costs = cost_tables.csv_rows(study)
        has_costs |= bool(costs)
        rows += [common | cost | {_TRAIN_IMAGES: study.shares.count_at(cost)} for cost in costs]
    columns = ["sweep", "study", "dataset", "kind", *axes, SCHEME, "mean", "ci_low", "ci_high", "n", *_COUNTS[:2]]
    columns += [name for part in (*layout.columns, *layout.sections) for name in part.csv_names]
    columns += cost_tables.CSV_COLUMNS if has_costs else []
    columns += [_TRAIN_IMAGES] if any(study.shares.num_images for study in studies) else []
    return csv_text(rows, columns)


def markdown(studies: Sequence[Study], layout: Layout) -> str:
    """All studies of a sweep as Markdown, a section each."""
    rules = f"{_RULES} {layout.notes}".rstrip()
    return "\n".join(
        [f"# {markdown_name(studies[0].sweep)}\n\n{rules}\n", *(_markdown_section(study, layout) for study in studies)]
    )


def latex_tables(studies: Sequence[Study], layout: Layout) -> str:
    """All studies as LaTeX (package booktabs): a `table` each, and one for each of their comparisons, sections and
    costs."""
    return "\n".join(table for study in studies for table in _latex_study(study, layout))


def answer(study: Study, layout: Layout) -> str:
    """One study in a few lines for the terminal: by default a column per scheme, the gain last."""
    lines = markdown_table(*_overview(study, layout, plus_minus=" ± "))
    lines += ["", "Test accuracy in %: mean ± half of the 95 % interval (number of seeds)."]
    if _has_gain(study, layout):
        lines += [f"{_place_of_gain(layout)}: difference on the same seeds, points [95 % interval] (number of pairs)."]
    if study.missing:
        lines += [f"Missing: {len(study.missing)} of {len(study.results)} trials."]
    for comparison in (layout.gain, *layout.comparisons):
        if comparison.title and (summaries := comparison.summaries(study)):
            lines += ["", f"{comparison.title_of(study)}, points [95 % interval] (number of pairs):", ""]
            lines += markdown_table(*_pivot(study, summaries, gain_text, layout.across))
    for head, rows, section in _sections(study, layout):
        lines += ["", f"{section.title}:", "", *markdown_table(head, rows)]
    return "\n".join(lines)


def _sections(study: Study, layout: Layout) -> Iterator[tuple[list[str], list[list[str]], Section]]:
    """Head, rows and section of the sections that have rows."""
    for section in layout.sections:
        head, rows = section.table(study)
        if rows:
            yield head, rows, section


def _has_gain(study: Study, layout: Layout) -> bool:
    return layout.gain is PAIRED_GAIN and bool(study.gain)


def _place_of_gain(layout: Layout) -> str:
    return f"Column {GAIN}" if _overview_columns(layout) else "Last column"


def _overview_columns(layout: Layout) -> list[Column]:
    return [column for column in layout.columns if column.in_overview]


def _markdown_section(study: Study, layout: Layout) -> str:
    axes = [heading(axis) for axis in study.axes]
    added = [column.heading for column in layout.columns]
    lines = heading_lines(study)
    lines += markdown_table(
        [*axes, "scheme", "test accuracy, %", "95 % interval", "n", *_COUNTS, *added],
        [
            [*_markdown_cells(study, cell), *(column.text(study, cell.place) for column in layout.columns)]
            for cell in study.means
        ],
    )
    for comparison in (layout.gain, *layout.comparisons):
        if summaries := comparison.summaries(study):
            lines += ["", *([f"### {comparison.title_of(study)}", ""] if comparison.title else [])]
            lines += markdown_table(
                [*axes, comparison.heading_of(study), "points", "95 % interval", "pairs", *_COUNTS],
                [_markdown_cells(study, cell, sign="+") for cell in summaries],
            )
    for head, rows, section in _sections(study, layout):
        lines += ["", f"### {section.title}", "", section.notes, "", *markdown_table(head, rows)]
    lines += cost_tables.markdown_lines(study)
    unmeasured = [result for result in study.results if result.diverged and math.isnan(result.value)]
    lines += listed(study, "Missing", study.missing)
    lines += listed(study, "Diverged before the first test accuracy, so left out of the means", unmeasured)
    in_table = {name for column in layout.columns for name in column.csv_names}
    return "\n".join([*lines, *settings_lines(study, in_table), ""])


def _markdown_cells(study: Study, cell: Summary, sign: str = "") -> list[str]:
    counts = (cell.estimate.n, cell.expected, cell.diverged, cell.missing)
    estimate = [percent(cell.estimate.mean, sign), interval(cell.estimate, sign)]
    return [*texts(study, cell.place), scheme_text(cell.place[SCHEME]), *estimate, *map(str, counts)]


def _latex_study(study: Study, layout: Layout) -> Iterator[str]:
    """The tables of a study: the short one, then comparisons, sections and costs."""
    source = f"on {named_title(study)}"
    name = f"{study.sweep}-{study.label}"
    head, rows = _overview(study, layout, plus_minus=r" \pm ")
    first, last = len(_row_axes(study, layout.across)), len(head) - len(_overview_columns(layout))
    by = f" by {' and '.join(map(in_caption, study.axes))}" if study.axes else ""
    caption = f"Test accuracy in percent {source}{by}: mean, half of the 95 % t-interval, number of seeds."
    cells = [[*map(latex, r[:first]), *map(latex_estimate, r[first:last]), *map(latex, r[last:])] for r in rows]
    yield latex_table(caption, name, head, cells, left_columns=first, notes=notes(study))
    for comparison in (layout.gain, *layout.comparisons):
        if comparison.title and (summaries := comparison.summaries(study)):
            head, rows = _pivot(study, summaries, gain_text, layout.across)
            cells = [[*map(latex, row[:first]), *map(latex_estimate, row[first:])] for row in rows]
            caption = f"{comparison.title_of(study)}, {source}: points, 95 % t-interval, number of pairs."
            yield latex_table(caption, f"{name}-{comparison.kind}", head, cells, left_columns=first)
    for head, rows, section in _sections(study, layout):
        yield _latex_texts(f"{section.title}, {source}.", f"{name}-{section.title}", head, rows, [section.notes])
    head, rows = cost_tables.table(study)
    if rows:
        yield _latex_texts(f"{cost_tables.TITLE}, {source}.", f"{name}-cost", head, rows, [cost_tables.rules(study)])


def _latex_texts(
    caption: str, name: str, head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]
) -> str:
    """A table of texts, its columns of numbers to the right."""
    are_numbers = [is_numeric([row[column] for row in rows]) for column in range(len(head))]
    first = are_numbers.index(True) if True in are_numbers else len(head)
    return latex_table(caption, name, head, [[*map(latex, row)] for row in rows], left_columns=first, notes=notes)


def _overview(study: Study, layout: Layout, plus_minus: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the short table: the accuracies, then the paired gain and the columns of the layout."""
    head, rows = _pivot(study, study.means, lambda cell: mean_text(cell, plus_minus), layout.across)
    columns = _overview_columns(layout)
    if layout.across == SCHEME:  # a row is a place on the study's axes
        has_gain = _has_gain(study, layout)
        gain = {study.row_of(cell): cell for cell in study.gain}
        head = [*head, *([GAIN] if has_gain else []), *(column.heading for column in columns)]
        for row, place in zip(rows, study.rows, strict=True):
            row += [gain_text(gain.get(tuple(place.values())))] if has_gain else []
            row += [column.text(study, place) for column in columns]
    return head, rows


def _row_axes(study: Study, across: str) -> list[str]:
    return [axis for axis in (*study.axes, SCHEME) if axis != across]


def _pivot(
    study: Study, summaries: Sequence[Summary], text: Callable[[Summary | None], str], across: str
) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a column per value of the axis `across` and a row per place on the others that have a summary."""
    axes = _row_axes(study, across)
    found = {cell.place[across] for cell in summaries}
    columns = [value for value in (study.schemes if across == SCHEME else study.values(across)) if value in found]
    cells = {(tuple(cell.place[axis] for axis in axes), cell.place[across]): cell for cell in summaries}
    head = [*map(heading, axes), *(cell_text(study, across, value) for value in columns)]
    return head, [
        [
            *(cell_text(study, axis, value) for axis, value in zip(axes, place, strict=True)),
            *(text(cells.get((place, value))) for value in columns),
        ]
        for place in dict.fromkeys(place for place, _ in cells)
    ]
