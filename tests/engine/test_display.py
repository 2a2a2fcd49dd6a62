"""The panel of a running sweep."""

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from cvit.engine.terminal.display import Display
from tests.support.plans import SMALL, make_progress


def test_a_panel_that_cannot_be_drawn_says_so_and_is_drawn_again_later(tmp_path: Path) -> None:
    """Rich draws it in a thread, which an exception would end; the panel would then stand still."""
    output, broken = io.StringIO(), Any
    progress = make_progress(tmp_path, *SMALL)
    with Display(progress, Console(file=output, force_terminal=True, width=100)) as display:
        display.started("pack", (broken,))  # type: ignore[arg-type]
        display._next_panel_at = 0.0
        display._live.refresh()
        assert "the panel cannot be drawn now: AttributeError" in output.getvalue()
        display.ended("pack")
        output.truncate(0)
        display._next_panel_at = 0.0
        display._live.refresh()
        assert "0 of 8 trials done, 0 running" in output.getvalue()


def test_a_wait_for_another_driver_is_said_once_and_stands_in_the_headline(tmp_path: Path) -> None:
    output = io.StringIO()
    progress = make_progress(tmp_path, *SMALL)
    with Display(progress, Console(file=output, width=100)) as display:
        for _ in range(3):
            display.waiting("waiting for 2 stages that sweep other trains (process 7 on there)")
        assert output.getvalue().count("waiting for") == 1
        display._print_plain()
        assert output.getvalue().count("waiting for") == 2
        display.started("pack", (progress.todo[0],))
        output.truncate(0)
        display._print_plain()
        assert "waiting" not in output.getvalue()
