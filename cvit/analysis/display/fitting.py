"""Fits tables to a narrow terminal: a table that is too wide continues below itself, its first columns repeated."""

import itertools
from collections.abc import Iterator, Sequence


def fitted(text: str, width: int) -> str:
    """A text whose tables are at most `width` characters wide, as far as two of their columns fit; other lines stay."""
    lines: list[str] = []
    for is_table, group in itertools.groupby(text.split("\n"), key=lambda line: line.startswith("|")):
        block = list(group)
        lines += _fitted_table(block, width) if is_table else block
    return "\n".join(lines)


def _fitted_table(lines: list[str], width: int) -> list[str]:
    if len(lines[0]) <= width:
        return lines
    # The columns are aligned, so the bars of the rule below the head say where each of them ends.
    ends = [position for position, character in enumerate(lines[1]) if character == "|"]
    columns = [[line[start:end] for line in lines] for start, end in itertools.pairwise(ends)]
    num_keys = _num_keys(columns)
    parts = list(_parts(columns, num_keys, width))
    tables = [["".join(cells) + "|" for cells in zip(*columns[:num_keys], *part, strict=True)] for part in parts]
    return [line for number, table in enumerate(tables) for line in ([""] if number else []) + table]


def _num_keys(columns: Sequence[Sequence[str]]) -> int:
    """The number of first columns by which the rows can be told apart."""
    for number in range(1, len(columns)):
        rows = list(zip(*columns[:number], strict=True))[2:]
        if len(set(rows)) == len(rows):
            return number
    return 1


def _parts(columns: Sequence[Sequence[str]], num_keys: int, width: int) -> Iterator[list[Sequence[str]]]:
    """The columns beside the first ones in groups that fit, one column at least."""
    taken = sum(len(column[0]) for column in columns[:num_keys]) + 1
    part: list[Sequence[str]] = []
    for column in columns[num_keys:]:
        if part and taken + sum(len(each[0]) for each in part) + len(column[0]) > width:
            yield part
            part = []
        part.append(column)
    yield part
