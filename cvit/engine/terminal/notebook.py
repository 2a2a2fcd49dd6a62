"""The live panel in a notebook: an output of the cell, which is replaced while the sweep runs."""

import threading
from collections.abc import Callable
from typing import Any

from rich.console import RenderableType
from rich.table import Table

INTERVAL_S = 0.5


class NotebookPanel:
    """Shows what a function draws, as HTML that rich makes of it, twice a second. At the end the last state stays, so
    that it is part of a notebook that is saved."""

    def __init__(self, draw: Callable[[], RenderableType]) -> None:
        self._draw = draw
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="panel", daemon=True)
        self._output: Any = None

    def start(self) -> None:
        """Opens the output below the cell."""
        from IPython.display import display

        self._output = display(self._as_table(), display_id=True)
        self._thread.start()

    def stop(self) -> None:
        """Shows the last state."""
        self._ended.set()
        self._thread.join()
        self._output.update(self._as_table())

    def _refresh(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            self._output.update(self._as_table())

    def _as_table(self) -> Table:
        """The drawing in a table, which rich shows as HTML by itself; of a group it does so only when it prints it."""
        table = Table.grid()
        table.add_row(self._draw())
        return table
