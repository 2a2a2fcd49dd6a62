"""The live panel in a notebook: an output of the cell, which is replaced while the sweep runs.

Rich's own `Live` needs ipywidgets there, and what widgets show is not saved with the notebook.
"""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import RenderableType
from rich.table import Table

INTERVAL_S = 0.5


class NotebookPanel:
    """Shows what a function draws, as HTML that rich makes of it, twice a second."""

    def __init__(self, draw: Callable[[], RenderableType], stays: bool) -> None:
        """
        Args:
            stays: keep the last state, so that it is part of a notebook that is saved; else the output ends empty.
        """
        self._draw, self._stays = draw, stays
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="cvit-panel", daemon=True)
        self._output: Any = None

    def start(self) -> None:
        """Opens the output below the cell."""
        from IPython.display import display

        self._output = display(self._as_table(), display_id=True)
        self._thread.start()

    def stop(self) -> None:
        """Shows the last state, or nothing any more."""
        self._ended.set()
        self._thread.join()
        if self._stays:
            self._output.update(self._as_table())
        else:
            self._output.update({"text/plain": ""}, raw=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _refresh(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            self._output.update(self._as_table())

    def _as_table(self) -> Table:
        """The drawing in a table, which rich shows as HTML by itself; of a group it does so only when it prints it."""
        table = Table.grid()
        table.add_row(self._draw())
        return table
