"""The panel of a running sweep, and the lines that stand for it off a terminal."""

import io
import re
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live

from cvit.engine.execution.forecast import Forecast
from cvit.engine.execution.speed import Speed
from cvit.engine.execution.workers import Workers
from cvit.engine.planning.progress import Progress
from cvit.engine.terminal import display as module
from cvit.engine.terminal.display import Display
from cvit.engine.terminal.spinner import spinner
from cvit.results import Report, StageResult
from cvit.stages import Stage
from cvit.vocabulary import VAL_ACCURACY
from sweeps.head_count import EXPRESSIVITY
from tests.support.plans import SMALL, make_progress


def forecast_of(progress: Progress) -> Forecast:
    return Forecast(progress, Workers("cpu", 2, is_here=True), Speed())


def display_on(console: Console, progress: Progress) -> Display:
    return Display(progress, console, forecast_of(progress))


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=30)


def panel(display: Display, width: int) -> list[str]:
    """The lines of the panel as they stand in a terminal, without colours."""
    console = Console(file=io.StringIO(), width=width)
    console.print(display._panel())
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def report(display: Display, progress: Progress, stage: Stage, accuracy: float, *, is_done: bool = True) -> None:
    """Reports a stage at its end, or at half of its steps."""
    points = [(VAL_ACCURACY, stage.steps, accuracy, 0)]
    result = StageResult("ok", 2.3, 1.0, "cpu", points) if is_done else None
    if result is not None:
        progress.results[stage.key] = result
    display.started("pack", (stage,))
    display.reported("pack", stage.key, Report(points, stage.steps if is_done else stage.steps // 2, result))
    if is_done:
        display.ended("pack")


def test_a_panel_that_cannot_be_drawn_says_so_and_is_drawn_again_later(tmp_path: Path) -> None:
    """Rich draws it in a thread, which an exception would end; the panel would then stand still."""
    output, broken = io.StringIO(), Any
    progress = make_progress(tmp_path, *SMALL)
    with display_on(Console(file=output, force_terminal=True, width=100), progress) as display:
        display._running["pack"] = (broken,)  # type: ignore[assignment]
        display._next_panel_at = 0.0
        assert isinstance(display._live, Live)
        display._live.refresh()
        assert "the panel cannot be drawn now: AttributeError" in output.getvalue()
        display.ended("other")
        del display._running["pack"]
        output.truncate(0)
        display._next_panel_at = 0.0
        display._live.refresh()
        assert "0 of 8 trials done, starting workers" in output.getvalue()


def test_a_wait_for_another_driver_is_said_once_and_stands_in_the_headline(tmp_path: Path) -> None:
    output = io.StringIO()
    progress = make_progress(tmp_path, *SMALL)
    with display_on(Console(file=output, width=100), progress) as display:
        for _ in range(3):
            display.waiting("waiting for 2 stages that sweep other trains (process 7 on there)")
        assert output.getvalue().count("waiting for") == 1
        display._print_plain()
        assert output.getvalue().count("waiting for") == 2
        display.started("pack", (progress.todo[0],))
        output.truncate(0)
        display._print_plain()
        assert "waiting" not in output.getvalue()


@pytest.mark.parametrize("width", [120, 80, 40])
def test_every_terminal_shows_the_time_left_and_the_steps_in_lines_that_fit(tmp_path: Path, width: int) -> None:
    progress = make_progress(tmp_path, *SMALL)
    done, half = progress.todo[:2]
    display = display_on(terminal(width), progress)
    report(display, progress, done, 0.5)
    report(display, progress, half, 0.25, is_done=False)
    headline, bar, *rest = panel(display, width)
    assert re.match(r"about \d+ (s|min) left, 1 of 8 trials done", headline)
    assert bar.endswith(f" {done.steps + half.steps // 2} of 192 steps") and "━" in bar
    assert all(len(line) <= width for line in (headline, bar, *rest))
    assert any("50.0 % (1 of 2)" in line for line in rest)
    assert any(line.startswith("running") for line in rest) == (width >= 60)


def test_the_bar_counts_the_steps_of_earlier_runs_too(tmp_path: Path) -> None:
    progress = make_progress(tmp_path, *SMALL)
    half = progress.todo[0]
    progress.steps[half.key] = half.steps // 2
    display = display_on(terminal(80), progress)
    assert panel(display, 80)[1].endswith(f" {half.steps // 2} of 192 steps")
    report(display, progress, half, 0.5)
    assert panel(display, 80)[1].endswith(f" {half.steps} of 192 steps")


def test_figures_are_means_of_validation_accuracies_for_every_cell_of_the_grid(tmp_path: Path) -> None:
    progress = make_progress(tmp_path, *SMALL)
    display = display_on(terminal(100), progress)
    of_random = [trial for trial in progress.plan.trials if trial.cell["init_scheme"] == "random"]
    at = {(trial.cell["data_fraction"], trial.cell["seed"]): trial.stages[0] for trial in of_random}
    report(display, progress, at[0.02, 0], 0.5)
    report(display, progress, at[0.02, 1], 0.75)
    report(display, progress, at[0.05, 0], 0.9, is_done=False)
    assert [re.split(r" {2,}", line) for line in panel(display, 100)[-3:]] == [
        ["data_fraction", "budget_unit", "random", "two_phase"],
        ["0.02", "steps", "62.5 % (2 of 2)", "–"],
        ["0.05", "steps", "90.0 % …", "–"],
    ]


def test_a_fit_shows_its_error(tmp_path: Path) -> None:
    progress = make_progress(tmp_path, "--preset", "smoke", sweep=EXPRESSIVITY)
    figures = display_on(terminal(100), progress)._figures
    stage = progress.todo[0]
    figures.reported(stage.key, [("expressivity/error", 400, 0.125, 0)])
    table = figures.table(100, most_rows=10)
    assert table is not None and table.title == "expressivity error, mean of finished trials (…: running)"
    assert "0.125 …" in list(table.columns[2].cells)


def test_of_many_cells_those_that_changed_last_are_shown(tmp_path: Path) -> None:
    progress = make_progress(tmp_path, "--data-fraction", *(f"0.{n:02}" for n in range(10, 50)), "--seeds", "1")
    display = display_on(terminal(100), progress)
    last = progress.plan.trials[-1]
    for trial in (progress.plan.trials[0], last):
        report(display, progress, trial.stages[-1], 0.5)
    lines = panel(display, 100)
    assert len(lines) < 30 and re.fullmatch(r"and \d+ more", lines[-1])
    assert any(line.startswith(as_shown) for line in lines for as_shown in [f"{last.cell['data_fraction']} "])


def test_off_a_terminal_the_last_line_tells_of_the_last_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line follows each report after a while, although nothing else happens, and another one at the end."""
    for name in ("PLAIN_INTERVAL_S", "_TICK_S"):
        monkeypatch.setattr(module, name, 0.01)
    output, progress = io.StringIO(), make_progress(tmp_path, *SMALL)

    def last_line() -> str:
        return output.getvalue().rstrip("\n").rpartition("\n")[2]

    with display_on(Console(file=output, width=100), progress) as display:
        stages = progress.todo
        report(display, progress, stages[0], 0.5)
        while "1 of 8 trials done" not in last_line():
            time.sleep(0.01)
        assert f"{stages[0].steps} of 192 steps" in last_line()
        assert last_line().endswith("| data_fraction 0.02 random steps 50.0 % (1 of 2)")
        for stage in stages:
            progress.results[stage.key] = StageResult("ok", 2.3, 1.0, "cpu", [])
    assert re.search(r"^\d+ of 192 steps, 8 of 8 trials done", last_line())


def test_off_a_terminal_the_time_left_is_said_again_while_nothing_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TICK_S", 0.01)
    monkeypatch.setattr(module, "STILL_INTERVAL_S", 0.02)
    output = io.StringIO()
    with display_on(Console(file=output, width=100), make_progress(tmp_path, *SMALL)):
        while output.getvalue().count("starting workers") < 3:
            time.sleep(0.01)


def test_a_spinner_says_what_is_started_and_leaves_nothing_behind(tmp_path: Path) -> None:
    forecast = forecast_of(make_progress(tmp_path, *SMALL))
    plain = Console(file=io.StringIO(), width=100)
    with spinner(plain, "starting Ray", forecast):
        assert isinstance(plain.file, io.StringIO)
        assert re.fullmatch(r"about \d+ (s|min) left: starting Ray\n", plain.file.getvalue())
    for width in (100, 40):
        live = terminal(width)
        with spinner(live, "starting Ray", forecast):
            assert isinstance(live.file, io.StringIO)
            assert re.search(r"about \d+ (s|min) left: starting Ray", live.file.getvalue())
        assert live.file.getvalue().endswith("\x1b[2K") or live.file.getvalue().endswith("\x1b[?25h")
