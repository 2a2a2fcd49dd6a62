"""The live figures of a sweep: for every cell of its grid, the validation accuracy of its trials so far."""

import statistics
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from cvit.engine.planning.progress import Progress
from cvit.engine.planning.trials import Trial
from cvit.parameters import as_text
from cvit.results import Point, last_value
from cvit.tasks import task_named
from cvit.vocabulary import is_accuracy

SEED = "seed"
_MOST_COLUMNS = 6
"""An axis with more values has no columns."""
_COLUMN_WIDTH = 16
"""The width that a column of figures needs."""
_NARROW = 60
"""Below this width, a row has a single figure."""


@dataclass(frozen=True)
class Figure:
    """The figure of a cell: a mean over its finished trials or, as long as there are none, over those that run.

    Attributes:
        best: the largest accuracy, or the smallest error.
        num_trials: the number of the cell's trials; `num_done` of them are finished.
    """

    mean: float | None
    best: float | None
    num_done: int
    num_trials: int


@dataclass
class _Cell:
    """The trials of a cell so far, so that no figure has to look at all of them again.

    Attributes:
        done: the values of finished trials, by key; None for one that diverged before it was measured.
        running: the latest values of the others that have been measured.
        total: the sum of the values of finished trials, of which there are `num_values`.
    """

    num_trials: int = 0
    done: dict[str, float | None] = field(default_factory=dict)
    running: dict[str, float] = field(default_factory=dict)
    total: float = 0.0
    num_values: int = 0
    best: float | None = None


class LiveFigures:
    """The figures of all cells. A cell is a place of the grid without the seed; of a search, an init scheme."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = task_named(progress.plan.study.task)
        self._metric = self._task.selection_metric or self._task.metric
        axes = [axis for axis in progress.plan.trials[0].cell if axis != SEED]
        self.axes = [self._task.compared_by] if progress.plan.search is not None else axes
        self._latest: dict[str, float] = {}
        self._num_done = 0
        self._cells: dict[tuple[Any, ...], _Cell] = {}
        for trial in progress.plan.trials:
            self._cells.setdefault(self._cell_of(trial), _Cell()).num_trials += 1
            self._note(trial)
        self._state = self._state_now()
        self._changed: dict[tuple[Any, ...], None] = {}

    def _cell_of(self, trial: Trial) -> tuple[Any, ...]:
        return tuple(trial.cell[axis] for axis in self.axes)

    @property
    def title(self) -> str:
        """The name of the metric, in words."""
        return self._metric.replace("val/", "validation ").replace("/", " ")

    @property
    def num_done(self) -> int:
        """The number of trials that are finished."""
        self._catch_up()
        return self._num_done

    def reported(self, key: str, points: Iterable[Point]) -> None:
        """Takes the measurements of a stage."""
        num_results, num_pruned = self._state
        if key in self._progress.results and self._state_now() == (num_results + 1, num_pruned):
            self._state = num_results + 1, num_pruned
        values = [value for name, _, value, _ in points if name == self._metric]
        if values:
            self._latest[key] = values[-1]
        for trial in self._progress.plan.trials_of[key]:
            self._note(trial)
            if values:
                cell = self._cell_of(trial)
                self._changed.pop(cell, None)
                self._changed[cell] = None

    def _note(self, trial: Trial) -> None:
        """Adds what is known of a trial now to its cell's figure; what is known of a finished one stays."""
        cell = self._cells[self._cell_of(trial)]
        if trial.key in cell.done:
            return
        if self._progress.status(trial) is None:
            if (running := self._running_value(trial)) is not None:
                cell.running[trial.key] = running
            return
        self._num_done += 1
        cell.running.pop(trial.key, None)
        cell.done[trial.key] = value = self._value(trial)
        if value is not None:
            best = max if is_accuracy(self._metric) else min
            cell.best = value if cell.best is None else best(cell.best, value)
            cell.total, cell.num_values = cell.total + value, cell.num_values + 1

    def news(self) -> list[str]:
        """A phrase for each cell with finished trials that has changed since the last call."""
        changed, self._changed = list(self._changed), {}
        figures = [(cell, self._figure(cell)) for cell in changed]
        return [f"{self._named(cell)} {self._text(figure)}" for cell, figure in figures if figure.num_done]

    def _named(self, cell: tuple[Any, ...]) -> str:
        return " ".join(
            as_text(value) if isinstance(value, str) else f"{axis} {as_text(value)}"
            for axis, value in zip(self.axes, cell, strict=True)
        )

    def _catch_up(self) -> None:
        """Notes what has ended without a report, such as trials that were stopped early."""
        if self._state != (state := self._state_now()):
            self._state = state
            for trial in self._progress.plan.trials:
                self._note(trial)

    def _state_now(self) -> tuple[int, int]:
        return len(self._progress.results), len(self._progress.pruned)

    def _figure(self, cell: tuple[Any, ...]) -> Figure:
        self._catch_up()
        of = self._cells[cell]
        if of.num_values:
            return Figure(of.total / of.num_values, of.best, len(of.done), of.num_trials)
        best = max if is_accuracy(self._metric) else min
        values = list(of.running.values())
        mean = statistics.fmean(values) if values else None
        return Figure(mean, best(values, default=None), len(of.done), of.num_trials)

    def _value(self, trial: Trial) -> float | None:
        """The last value of a finished trial; None if it diverged before it was measured."""
        if trial.key in self._progress.pruned:
            return self._progress.pruned[trial.key]
        key = trial.stages[-1].key
        if key not in self._latest and key in self._progress.results:
            value = last_value(self._progress.results[key].points, self._metric)
            if value is not None:
                self._latest[key] = value
        return self._latest.get(key)

    def _running_value(self, trial: Trial) -> float | None:
        return next((self._latest[stage.key] for stage in reversed(trial.stages) if stage.key in self._latest), None)

    def _text(self, figure: Figure) -> str:
        """78.3 % (3 of 5), as a mean of finished trials; 61.0 % … while none is finished."""
        if figure.mean is None:
            return "–"
        number = self._number(figure.mean)
        return f"{number} ({figure.num_done} of {figure.num_trials})" if figure.num_done else f"{number} …"

    def _number(self, value: float) -> str:
        return f"{100 * value:.1f} %" if is_accuracy(self._metric) else f"{value:.3g}"

    def table(self, width: int, most_rows: int) -> Table | None:
        """The figures of all cells as a table; of too many, the ones that changed last. None before the first figure.

        Args:
            width: of the terminal, in characters.
        """
        figures = {cell: self._figure(cell) for cell in self._cells}
        if most_rows < 1 or all(figure.mean is None for figure in figures.values()):
            return None
        across = self._axis_across(width)
        if across is None:
            return self._list(figures, width, most_rows)
        columns = list(dict.fromkeys(cell[across] for cell in figures))
        rows: dict[tuple[Any, ...], dict[Hashable, str]] = {}
        for cell, figure in figures.items():
            rows.setdefault(self._without(cell, across), {})[cell[across]] = self._text(figure)
        others = [axis for axis in self.axes if axis != self.axes[across]]
        name = self.axes[across]
        headings = [as_text(value) if isinstance(value, str) else f"{name} {as_text(value)}" for value in columns]
        table = self._empty([*others, *headings], num_names=len(others))
        changed = [self._without(cell, across) for cell in self._changed]
        shown = _last_changed(list(rows), changed, most_rows)
        for row in shown:
            table.add_row(*map(as_text, row), *(rows[row].get(column, "") for column in columns))
        return _with_rest(table, len(rows) - len(shown))

    def _list(self, figures: dict[tuple[Any, ...], Figure], width: int, most_rows: int) -> Table:
        shown = _last_changed(list(figures), list(self._changed), most_rows)
        if width < _NARROW:
            table = self._empty(["cell", "mean"], num_names=1)
            table.columns[1].min_width = _COLUMN_WIDTH
            for cell in shown:
                table.add_row(" ".join(map(as_text, cell)), self._text(figures[cell]))
        else:
            table = self._empty([*self.axes, "trials", self.title, "best"], num_names=len(self.axes))
            for cell in shown:
                figure = figures[cell]
                numbers = [self._number(each) if each is not None else "–" for each in (figure.mean, figure.best)]
                table.add_row(*map(as_text, cell), f"{figure.num_done} of {figure.num_trials}", *numbers)
        return _with_rest(table, len(figures) - len(shown))

    def _empty(self, headings: list[str], num_names: int) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), title=f"{self.title}, mean of finished trials (…: running)")
        table.title_style, table.title_justify = "dim", "left"
        for number, heading in enumerate(headings):
            style = "dim" if number < num_names else ""
            table.add_column(heading, style=style, no_wrap=True, overflow="ellipsis")
        return table

    def _axis_across(self, width: int) -> int | None:
        """The number of the axis whose values are columns: the schemes, or else another one, if they fit."""
        if len(self.axes) < 2:
            return None
        compared = self._task.compared_by
        for axis in sorted(self.axes, key=lambda axis: axis != compared):
            across = self.axes.index(axis)
            num_columns = len({cell[across] for cell in self._cells})
            fits = _COLUMN_WIDTH * (num_columns + len(self.axes) - 1) <= width
            if 1 < num_columns <= _MOST_COLUMNS and fits:
                return across
        return None

    def _without(self, cell: tuple[Any, ...], axis: int) -> tuple[Any, ...]:
        return (*cell[:axis], *cell[axis + 1 :])


def _last_changed(rows: list[Any], changed: list[Any], most: int) -> list[Any]:
    """At most so many rows, in their order; if there are more, the ones that changed last."""
    if len(rows) <= most:
        return rows
    at = {row: number for number, row in enumerate(changed)}
    kept = sorted(rows, key=lambda row: at.get(row, -1), reverse=True)[:most]
    return [row for row in rows if row in set(kept)]


def _with_rest(table: Table, num_hidden: int) -> Table:
    if num_hidden:
        table.caption, table.caption_justify = f"and {num_hidden} more", "left"
    return table
