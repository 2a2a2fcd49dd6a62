"""The display of a running sweep: one live panel in a terminal, plain lines elsewhere."""

import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from cvit.engine.execution.forecast import Forecast
from cvit.engine.execution.queue import StagePack
from cvit.engine.planning.progress import Progress
from cvit.engine.terminal.live_figures import SEED, LiveFigures
from cvit.engine.terminal.notebook import NotebookPanel
from cvit.engine.terminal.spinner import is_live
from cvit.engine.wording import duration
from cvit.errors import one_line
from cvit.parameters import as_text
from cvit.results import Report
from cvit.vocabulary import IMAGES_PER_SECOND, noun_of

PLAIN_INTERVAL_S = 5.0
"""The least time between two plain lines."""
STILL_INTERVAL_S = 60.0
"""After so long a plain line is printed although nothing has been reported, since the time left is another one."""
WAITING_INTERVAL_S = 60.0
_TICK_S = 0.5
_MOST_PACKS_SHOWN = 8
_MOST_NEWS = 6
_NARROW = 60
"""Below this width, the panel leaves out the stages that run."""
_PANEL_TIME_SHARE = 0.05
"""Largest share of the time spent on drawing the panel: with ten thousand trials, one drawing takes 0.1 s."""


class Display:
    """The live panel, or the plain lines, of a sweep. It is a `Follower` (`execution/follower.py`) of the training."""

    def __init__(self, progress: Progress, console: Console, forecast: Forecast) -> None:
        self._progress, self._console, self._forecast = progress, console, forecast
        self._todo = {stage.key: stage for stage in progress.todo}
        self._steps_before = progress.num_steps_kept
        plan = progress.plan
        num_steps = sum(stage.steps for stage in plan.stages.values())
        self._num_steps = num_steps + round(num_steps * plan.num_trials_to_come / len(plan.trials))
        self._steps = {key: progress.steps.get(key, 0) for key in self._todo}
        self._steps_here = 0
        self._speed: dict[str, float] = {}
        self._running: dict[str, StagePack] = {}
        self._has_begun = False
        self._figures = LiveFigures(progress)
        self._waiting = self._waiting_printed = ""
        self._waiting_printed_at = 0.0
        self._bar = Bar(BarColumn(bar_width=None), TextColumn("{task.description}"), console=console, expand=True)
        self._bar_task = self._bar.add_task("", total=self._num_steps)
        self._group, self._next_panel_at = Group(), 0.0
        self._live: Live | NotebookPanel | None = None
        if console.is_jupyter:
            self._live = NotebookPanel(self._current_panel, stays=True)
        elif is_live(console):
            self._live = Live(get_renderable=self._current_panel, console=console, refresh_per_second=2, transient=True)
        self._lock, self._is_over = threading.RLock(), threading.Event()
        self._printed_at, self._has_news = time.monotonic(), False
        self._ticker = threading.Thread(target=self._print_while_open, name="cvit-display", daemon=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        else:
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._next_panel_at = 0.0  # a notebook keeps the last panel
            self._live.stop()
        else:
            self._is_over.set()
            self._ticker.join()
            self._print_plain()

    def started(self, name: str, pack: StagePack) -> None:
        """A worker has begun a pack."""
        self._forecast.started(name, pack)
        self._running[name] = pack
        self._waiting, self._has_begun, self._has_news = "", True, True

    def waiting(self, line: str) -> None:
        """A worker is free, and the stages that are left wait for another driver."""
        self._waiting, now = line, time.monotonic()
        is_news = line != self._waiting_printed or now - self._waiting_printed_at >= WAITING_INTERVAL_S
        if is_news and not self._running and self._live is None:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
            self._waiting_printed, self._waiting_printed_at = line, now

    def reported(self, name: str, key: str, report: Report) -> None:
        """A stage has reached a checkpoint or its end."""
        step = self._todo[key].steps if report.result is not None else report.step
        self._forecast.reported(name, key, step)
        if report.result is not None and report.result.diverged_step is not None:
            self._forecast.left_out(key)
        self._steps_here += step - self._steps[key]
        self._steps[key] = step
        self._figures.reported(key, report.points)
        speeds = [value for metric, _, value, _ in report.points if metric == IMAGES_PER_SECOND]
        if speeds:
            self._speed[name] = speeds[-1]
        self._has_news = True

    def ended(self, name: str, lines: Iterable[str] = ()) -> None:
        """A worker has finished a pack, or given it up; `lines` then say what follows."""
        for stage in self._running.pop(name, ()):
            if all(trial.key in self._progress.pruned for trial in self._progress.plan.trials_of[stage.key]):
                self._forecast.left_out(stage.key)
        self._forecast.ended(name)
        self._speed.pop(name, None)
        self._has_news = True
        for line in lines:
            self.noticed(line)

    def noticed(self, line: str) -> None:
        """Something happened that the user has to know, such as a worker that hangs."""
        self._console.print(line, highlight=False, markup=False)

    def _print_while_open(self) -> None:
        """Prints plain lines until the display is closed: soon after something has happened, and now and then if
        nothing has, so that the last line never tells of a state that is long over."""
        while not self._is_over.wait(_TICK_S):
            since = time.monotonic() - self._printed_at
            if since >= (PLAIN_INTERVAL_S if self._has_news else STILL_INTERVAL_S):
                self._print_plain()

    def _print_plain(self) -> None:
        with self._lock:
            self._printed_at, self._has_news = time.monotonic(), False
            news = self._figures.news()
            more = [f"and {len(news) - _MOST_NEWS} more"] if len(news) > _MOST_NEWS else []
            text = " | ".join(filter(None, [self._headline(), "; ".join([*news[-_MOST_NEWS:], *more])]))
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _headline(self) -> str:
        """The time left first, so that no terminal is too narrow for it."""
        speed = sum(list(self._speed.values()))
        num_done, num_trials = self._figures.num_done, len(self._progress.plan.trials)
        parts = [
            *([] if num_done == num_trials else [f"about {duration(self._forecast.left_s())} left"]),
            *([] if self._live is not None else [self._steps_text()]),
            f"{num_done} of {num_trials} trials done",
            f"{len(self._running)} running" if self._has_begun else "starting workers",
            *([f"{speed:,.0f} {noun_of(self._progress.plan.study.params.get('dimensions'))}s/s"] if speed else []),
            *([self._waiting] if self._waiting else []),
        ]
        return ", ".join(parts)

    def _steps_text(self) -> str:
        return f"{self._steps_before + self._steps_here:,} of {self._num_steps:,} steps"

    def _current_panel(self) -> Group:
        """The panel, redrawn no more often than `_PANEL_TIME_SHARE` allows. Rich calls this in a thread of its own."""
        started = time.monotonic()
        if started >= self._next_panel_at:
            try:
                self._group = self._panel()
            except Exception as error:  # noqa: BLE001  it would end the thread, and the panel would stand still
                self._group = Group(Text(f"the panel cannot be drawn now: {type(error).__name__}: {one_line(error)}"))
            self._next_panel_at = started + (time.monotonic() - started) / _PANEL_TIME_SHARE
        return self._group

    def _panel(self) -> Group:
        width, height = self._console.size
        self._bar.update(
            self._bar_task, completed=self._steps_before + self._steps_here, description=self._steps_text()
        )
        parts: list[RenderableType] = [
            Text(self._headline(), style="bold", no_wrap=True, overflow="ellipsis"),
            self._bar.get_renderable(),
        ]
        height_left = height - 3
        if width >= _NARROW and self._running:
            packs = self._packs(most_rows=max(1, min(_MOST_PACKS_SHOWN, height_left // 3)))
            height_left -= packs.row_count + 1
            parts.append(packs)
        figures = self._figures.table(width, most_rows=height_left - 3)
        return Group(*parts, *([figures] if figures is not None else []))

    def _packs(self, most_rows: int) -> Table:
        """The stages that run, with the values of their axes."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        axes = [*self._figures.axes, SEED]
        for heading in ("running", *axes, "step"):
            style = "dim" if heading == "running" else ""
            table.add_column(heading, style=style, no_wrap=True, overflow="ellipsis")
        running = [stage for pack in list(self._running.values()) for stage in pack]
        for stage in running[:most_rows]:
            cell = self._progress.plan.trials_of[stage.key][0].cell
            step = f"{self._steps.get(stage.key, 0):,} of {stage.steps:,}"
            table.add_row(stage.phase, *(as_text(cell[axis]) for axis in axes), step)
        return table
