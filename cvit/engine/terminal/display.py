"""The display of a running sweep: one live panel in a terminal, plain lines elsewhere."""

import statistics
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cvit.config import as_text
from cvit.engine.execution.queue import StagePack
from cvit.engine.planning.progress import Progress
from cvit.engine.terminal.notebook import NotebookPanel
from cvit.engine.wording import duration
from cvit.errors import one_line
from cvit.results import Report, last_value
from cvit.tasks import task_named
from cvit.vocabulary import IMAGES_PER_SECOND, is_accuracy

PLAIN_INTERVAL_S = 5.0
WAITING_INTERVAL_S = 60.0
_MOST_PACKS_SHOWN = 8
_PANEL_TIME_SHARE = 0.05
"""Largest share of the time spent on drawing the panel: with ten thousand trials, one drawing takes 0.1 s."""


class Display:
    """The live panel, or the plain lines, of a sweep. It is a `Follower` (`execution/follower.py`) of the training."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress, self._console = progress, console
        self._started_at = time.monotonic()
        self._printed_at = 0.0
        self._todo = {stage.key: stage for stage in progress.todo}
        self._steps: dict[str, int] = {}
        self._first_steps: dict[str, int] = {}
        self._speed: dict[str, float] = {}
        self._running: dict[str, StagePack] = {}
        self._waiting = self._waiting_printed = ""
        self._waiting_printed_at = 0.0
        self._group, self._next_panel_at = Group(), 0.0
        self._is_live = console.is_terminal or console.is_jupyter
        self._live = (
            NotebookPanel(self._current_panel)
            if console.is_jupyter
            else Live(get_renderable=self._current_panel, console=console, refresh_per_second=2, transient=True)
        )

    def __enter__(self) -> Self:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_live:
            self._live.stop()
        else:
            self._print_plain()

    def started(self, name: str, pack: StagePack) -> None:
        """A worker has begun a pack."""
        self._running[name] = pack
        self._waiting = ""

    def waiting(self, line: str) -> None:
        """A worker is free, and the stages that are left wait for another driver."""
        self._waiting, now = line, time.monotonic()
        is_news = line != self._waiting_printed or now - self._waiting_printed_at >= WAITING_INTERVAL_S
        if is_news and not self._running and not self._is_live:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
            self._waiting_printed, self._waiting_printed_at = line, now

    def reported(self, name: str, key: str, report: Report) -> None:
        """A stage has reached a checkpoint or its end."""
        # Steps that an earlier session trained must not count as this session's speed.
        self._first_steps.setdefault(key, min(report.step, max(0, report.step - self._todo[key].report_interval)))
        self._steps[key] = self._todo[key].steps if report.result is not None else report.step
        speeds = [value for metric, _, value, _ in report.points if metric == IMAGES_PER_SECOND]
        if speeds:
            self._speed[name] = speeds[-1]
        self._print_plain_at_times()

    def ended(self, name: str, lines: Iterable[str] = ()) -> None:
        """A worker has finished a pack, or given it up; `lines` then say what follows."""
        self._running.pop(name, None)
        self._speed.pop(name, None)
        for line in lines:
            self.noticed(line)
        self._print_plain_at_times()

    def noticed(self, line: str) -> None:
        """Something happened that the user has to know, such as a worker that hangs."""
        self._console.print(line, highlight=False, markup=False)

    def _print_plain_at_times(self) -> None:
        if not self._is_live and time.monotonic() - self._printed_at >= PLAIN_INTERVAL_S:
            self._print_plain()

    def _print_plain(self) -> None:
        self._printed_at = time.monotonic()
        text = " | ".join(filter(None, [self._headline(), self._accuracies()]))
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _headline(self) -> str:
        speed = sum(list(self._speed.values()))
        parts = [
            f"{self._progress.num_done} of {len(self._progress.plan.trials)} trials done",
            f"{len(self._running)} running",
            *([f"{speed:,.0f} images/s"] if speed else []),
            self._time_left(),
            *([self._waiting] if self._waiting else []),
        ]
        return ", ".join(parts)

    def _time_left(self) -> str:
        done = sum(steps - self._first_steps.get(key, 0) for key, steps in list(self._steps.items()))
        steps_left = sum(stage.steps - self._steps.get(key, 0) for key, stage in self._todo.items())
        if not done:
            return "time left unknown"
        return f"about {duration((time.monotonic() - self._started_at) / done * steps_left)} left"

    def _accuracies(self) -> str:
        return "; ".join(
            f"{scheme} mean {100 * statistics.fmean(values):.1f} % best {100 * max(values):.1f} % ({len(values)})"
            for scheme, values in self._by_scheme().items()
        )

    def _images(self) -> str:
        return "test" if self._progress.plan.search is None else "validation"

    def _metric(self) -> str | None:
        """The metric of the answer; in a search, the metric of the selection."""
        task = task_named(self._progress.plan.study.task)
        return task.metric if self._progress.plan.search is None else task.selection_metric

    def _by_scheme(self) -> dict[str, list[float]]:
        """Accuracies of the finished trials of each init scheme: on test images, in a search on validation images."""
        accuracies: dict[str, list[float]] = {}
        metric = self._metric()
        if metric is None or not is_accuracy(metric):
            return {}
        for trial in self._progress.plan.trials:
            result = self._progress.results.get(trial.stages[-1].key)
            value = last_value(result.points, metric) if result is not None else None
            if value is not None:
                accuracies.setdefault(trial.cell.get("init_scheme", "all"), []).append(value)
        return accuracies

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
        bar = Table.grid()
        bar.add_row(ProgressBar(total=len(self._progress.plan.trials), completed=self._progress.num_done, width=40))
        packs = Table(box=None, padding=(0, 2, 0, 0))
        axes = list(self._progress.plan.trials[0].cell)
        for heading in ("running", *axes, "step"):
            packs.add_column(heading, style="dim" if heading == "running" else "")
        for pack in list(self._running.values())[:_MOST_PACKS_SHOWN]:
            for stage in pack:
                cell = self._progress.plan.trials_of[stage.key][0].cell
                step = f"{self._steps.get(stage.key, 0)}/{stage.steps}"
                packs.add_row(stage.phase, *(as_text(cell[axis]) for axis in axes), step)
        schemes = Table(box=None, padding=(0, 2, 0, 0))
        for heading in ("scheme", "trials", f"mean {self._images()} accuracy", "best"):
            schemes.add_column(heading)
        for scheme, values in self._by_scheme().items():
            mean, best = 100 * statistics.fmean(values), 100 * max(values)
            schemes.add_row(scheme, str(len(values)), f"{mean:.1f} %", f"{best:.1f} %")
        return Group(Text(self._headline(), style="bold"), bar, packs, *([schemes] if schemes.row_count else []))
