"""Tables as CSV. A text that a spreadsheet would run as a formula is marked as text."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

_FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")
"""The first character of what spreadsheets take for a formula."""
_DASH = "-"
"""A scheme where there is none; alone it is no formula."""


def csv_text(rows: Iterable[Mapping[Any, Any]], columns: Sequence[str]) -> str:
    """The rows as CSV with these columns. Numbers have full precision, a missing value is empty."""
    cells = [{name: as_cell(value) for name, value in row.items()} for row in rows]
    # As objects, because beside a missing value pandas would turn integers into floats.
    frame = pd.DataFrame(cells, columns=list(columns), dtype=object)
    return frame.to_csv(index=False, header=list(map(as_cell, columns)), lineterminator="\n")


def as_cell(value: Any) -> Any:
    """A value for a cell: a text that begins like a formula and is no number gets the `'` that spreadsheets take for
    the mark of a text."""
    if not isinstance(value, str) or value == _DASH or not _FORMULA.match(value) or _is_number(value):
        return value
    return f"'{value}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
