"""The spinner: it says what is being started or written, while nothing is trained, and how much time is left."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from cvit.engine.execution.forecast import Forecast
from cvit.engine.terminal.notebook import NotebookPanel
from cvit.engine.wording import duration


def is_live(console: Console) -> bool:
    """True if the console is a terminal that can redraw what it shows."""
    return console.is_terminal and not console.is_dumb_terminal


@contextlib.contextmanager
def spinner(console: Console, work: str, forecast: Forecast) -> Iterator[None]:
    """Shows that some work is being done; off a terminal, a line says so.

    Args:
        work: a phrase such as `starting Ray`.
    """

    def text() -> Text:
        return Text(f"about {duration(forecast.left_s())} left: {work}", no_wrap=True, overflow="ellipsis")

    if console.is_jupyter:
        with NotebookPanel(text, stays=False):
            yield
        return
    if not is_live(console):
        console.print(text(), soft_wrap=True)
        yield
        return
    turning = Spinner("dots")

    def current() -> Spinner:
        turning.update(text=text())
        return turning

    with Live(get_renderable=current, console=console, refresh_per_second=10, transient=True) as live:
        live.refresh()
        yield
