"""The notebook in examples/: it runs from its first cell to its last, and what it shows is what it was saved with."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.support.scripts import ROOT

NOTEBOOK = ROOT / "examples" / "own_sweep.ipynb"
DECLARATION, RUN, THEOREM, LAST = 0, 1, -2, -1
"""Code cells: those of the sweep, and those that call the theorem."""


class Listening(NotebookClient):
    """A client that counts how often a cell's output is replaced."""

    num_updates = 0

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        """Handles a message of the kernel."""
        self.num_updates += msg["msg_type"] == "update_display_data"
        return super().process_message(msg, cell, cell_index)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: NotebookNode) -> set[tuple[str, ...]]:
    """The kinds of a cell's outputs, but for those that are empty, as a spinner leaves."""
    return {(output.output_type, *sorted(output.get("data", {}))) for output in cell.outputs if text_of(output)}


def text_of(output: Mapping[str, Any]) -> str:
    return output["text"] if "text" in output else output["data"].get("text/plain", "")


def text(cell: NotebookNode) -> str:
    return "".join(map(text_of, cell.outputs))


@pytest.fixture(scope="module")
def saved() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_runs_and_shows_what_it_was_saved_with(
    saved: NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MPLBACKEND")  # figures belong into the notebook
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    client = Listening(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert client.num_updates > 2, "the panel was not replaced while the sweep ran"
    for before, now in zip(code_cells(saved), code_cells(notebook), strict=True):
        assert (now.execution_count, kinds(now)) == (before.execution_count, kinds(before))
    as_html = [output.data["text/html"] for output in code_cells(notebook)[RUN].outputs if "text/html" in output.data]
    assert any("18 of 18 trials done" in html for html in as_html), "the last panel is not kept"
    assert not any("running</span>" in html for html in as_html)
    assert text(code_cells(notebook)[THEOREM]) == text(code_cells(saved)[THEOREM])
    assert float(text(code_cells(notebook)[LAST])) < 1e-5


def test_what_it_was_saved_with_is_right(saved: NotebookNode) -> None:
    cells = code_cells(saved)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "18 trials, " in text(cells[RUN]) and "failed" not in text(cells[RUN])
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    assert text(cells[THEOREM]).startswith("heads needed: 9\n")
    assert [float(bound) for bound in re.findall(r"at least ([\d.]+)", text(cells[THEOREM]))][-1] == 0
    assert float(text(cells[LAST])) < 1e-5
    assert not re.search(r"/(home|root|tmp|work)/", NOTEBOOK.read_text()), "a path of the machine that it ran on"


def test_a_sweep_is_declared_in_twelve_lines(saved: NotebookNode) -> None:
    declaration = ast.parse(code_cells(saved)[DECLARATION].source).body[-1]
    assert isinstance(declaration, ast.Assign) and declaration.end_lineno is not None
    assert declaration.end_lineno - declaration.lineno + 1 == 12
