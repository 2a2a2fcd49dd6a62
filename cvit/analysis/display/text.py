"""Tables as text: Markdown, LaTeX (package booktabs), and the numbers in them, rounded."""

import math
import re
from collections.abc import Iterable, Sequence

from cvit.analysis.statistics.stats import Estimate, Summary

_LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "_%&#${}"},
}

_NUMBER = re.compile(r"-( \(0\))?|<?\[?[-+]?(\d|inf|nan)[-+\d.,e% ±\[\]infa]*(\([^()]*\))?( \*\*.*\*\*)?")
"""A cell with a number: signs, an interval, a count in brackets, a remark that stands out."""
_ACTIVE = re.compile(r"<(?=[A-Za-z/!?])|\[(?=[^\]]*\]\()")
"""The beginning of HTML or of a link in Markdown."""


def percent(value: float, sign: str = "") -> str:
    """A fraction in percent with one decimal; `sign` is `+` for differences."""
    if math.isnan(value):
        return "-"
    return f"{round(100 * value, 1) + 0.0:{sign}.1f}"


def interval(estimate: Estimate, sign: str = "") -> str:
    """The 95 % interval in percent."""
    if math.isnan(estimate.ci_low):
        return "-"
    return f"[{percent(estimate.ci_low, sign)}, {percent(estimate.ci_high, sign)}]"


def mean_text(cell: Summary | None, plus_minus: str) -> str:
    """Mean, half of the interval and number of seeds, such as `63.2 ± 2.1 (5, 1 diverged)`."""
    if cell is None:  # not part of the grid
        return "-"
    half_width = cell.estimate.half_width
    mean = percent(cell.estimate.mean) + ("" if math.isnan(half_width) else plus_minus + percent(half_width))
    diverged = f", {cell.diverged} diverged" if cell.diverged else ""
    return f"{mean} ({cell.estimate.n}{diverged})"


def gain_text(cell: Summary | None) -> str:
    """Difference, interval and number of pairs, such as `+2.1 [+0.4, +3.8] (5)`."""
    if cell is None:
        return "-"
    limits = "" if math.isnan(cell.estimate.ci_low) else f" {interval(cell.estimate, sign='+')}"
    return f"{percent(cell.estimate.mean, sign='+')}{limits} ({cell.estimate.n})"


def error_text(value: float) -> str:
    """An error with three digits, such as `2.13e-01`."""
    if math.isnan(value):
        return "-"
    return f"{value:.2e}" if value else "0"


def number_text(value: float) -> str:
    """A measured number with three significant digits; an integer as it is."""
    if isinstance(value, int):
        return str(value)
    return "-" if math.isnan(value) else f"{float(f'{value:.3g}'):.10g}"


def p_text(value: float) -> str:
    """A p-value with two digits, such as `0.012`; a dash where there is none."""
    if math.isnan(value):
        return "-"
    return f"{value:.2g}" if value >= 0.001 else "<0.001"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table with aligned columns, those of numbers to the right; what Markdown would take for its own
    within a cell is escaped."""
    are_numbers = [is_numeric([row[column] for row in rows]) for column in range(len(head))]
    head, *rows = ([_markdown_cell(cell) for cell in row] for row in (head, *rows))
    widths = [max(2, *(len(row[column]) for row in [head, *rows])) for column in range(len(head))]

    def line(cells: Iterable[str]) -> str:
        parts = zip(cells, widths, are_numbers, strict=True)
        return "| " + " | ".join(c.rjust(width) if right else c.ljust(width) for c, width, right in parts) + " |"

    rules = ["-" * (width + 1) + (":" if right else "-") for width, right in zip(widths, are_numbers, strict=True)]
    return [line(head), "|" + "|".join(rules) + "|", *map(line, rows)]


def is_numeric(cells: Sequence[str]) -> bool:
    """True for a column of numbers, with or without intervals and counts, of which at least one is no dash."""
    return all(map(_NUMBER.fullmatch, cells)) and any(cell != "-" for cell in cells)


def _markdown_cell(text: str) -> str:
    # Our own cells are code, or end in what stands out.
    is_marked = re.fullmatch(r"`[^`]+`|[^`*<\[]*\*\*[^`*<\[]+\*\*", text) is not None
    return (text if is_marked else markdown_name(text)).replace("|", "\\|")


def markdown_name(text: str) -> str:
    """A name as Markdown, in which it stays as it is: no emphasis, no code, no HTML, no link."""
    return re.sub(rf"[\\`*]|{_ACTIVE.pattern}|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def markdown_code(text: str) -> str:
    """A text as code within a line of Markdown."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def latex_table(
    caption: str,
    name: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left_columns: int = 1,
    notes: Sequence[str] = (),
) -> str:
    """A `table`; caption, head and notes are plain text, the cells are LaTeX already.

    Args:
        name: the label after `tab:`, for references in the text.
        left_columns: the number of first columns that are aligned to the left.
        notes: sentences below the table.
    """
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            f"  \\caption{{{latex(caption)}}}",
            f"  \\label{{tab:{re.sub('[^A-Za-z0-9]+', '-', name)}}}",
            f"  \\begin{{tabular}}{{{'l' * left_columns}{'r' * (len(head) - left_columns)}}}",
            r"    \toprule",
            "    " + " & ".join(map(latex, head)) + r" \\",
            r"    \midrule",
            *("    " + _latex_row(cells) + r" \\" for cells in rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            *([rf"  \par\footnotesize {latex(' '.join(notes))}"] if notes else []),
            r"\end{table}",
            "",
        ]
    )


def _latex_row(cells: Sequence[str]) -> str:
    """A row. Without the braces, a star or a bracket at its beginning would belong to the line break before it."""
    row = " & ".join(cells)
    return f"{{}}{row}" if row[:1] in ("[", "*") else row


def latex_estimate(text: str) -> str:
    """An estimate such as `63.2 \\pm 2.1 (5)` in LaTeX: the numbers in mathematics, the count in text."""
    numbers, _, count = text.partition(" (")
    mathematics = "--" if numbers == "-" else f"${numbers}$"
    return f"{mathematics} ({latex(count)}" if count else mathematics


def latex(text: str) -> str:
    """Plain text with LaTeX's special characters escaped."""
    return "".join(_LATEX_ESCAPES.get(character, character) for character in text)
