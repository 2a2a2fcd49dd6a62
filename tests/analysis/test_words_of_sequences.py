"""Tables, captions, figures and the report speak of recordings where all data are sequences, else of images."""

import re
from pathlib import Path
from typing import Any

import pytest

from cvit.analysis.files import files_of
from cvit.analysis.questions import draw_figure, studies_of
from cvit.analysis.report import report
from cvit.analysis.store.frames import Frames
from cvit.analysis.store.journal import load_journal
from tests.support.fake_studies import trainings, write_journal

GRID: dict[str, Any] = {
    "data_fraction": (0.1, 1.0),
    "init_scheme": ("random", "conv_structured", "two_phase"),
    "seed": (0, 1, 2),
}
OF_SEQUENCES: dict[str, Any] = {"dimensions": 1, "image_size": 32, "num_heads": 3}


def frames_of(folder: Path, *shared: dict[str, Any]) -> Frames:
    studies = [
        trainings("low_data", f"study{number}", GRID, lambda cell: 0.5 + 0.01 * cell["seed"], **each)
        for number, each in enumerate(shared)
    ]
    return load_journal(write_journal(folder, studies), "low_data", lambda sweep: ())


def words_of(frames: Frames) -> list[str]:
    """Everything that is shown of low_data: tables, the caption, the text of the figure and that of the report."""
    files = files_of(frames, "low_data")
    figure = draw_figure("low_data", studies_of(frames, "low_data"))
    shown: list[str] = [each.get_text() for each in figure.findobj(lambda each: hasattr(each, "get_text"))]  # pyright: ignore[reportAttributeAccessIssue]
    page = re.sub(r"<style.*?</style>|<[^>]*>", " ", report(frames, {"low_data": files}, [], "make"), flags=re.DOTALL)
    return [files.markdown, files.by_name["low_data.tex"].decode(), files.caption, *shown, page]


@pytest.mark.parametrize(
    ("shared", "expected", "other"),
    [([OF_SEQUENCES], "recording", "image"), ([{}], "image", "recording"), ([{}, OF_SEQUENCES], "image", "recording")],
    ids=["sequences", "images", "both"],
)
def test_the_words_are_those_of_the_data(
    tmp_path: Path, shared: list[dict[str, Any]], expected: str, other: str
) -> None:
    words = words_of(frames_of(tmp_path, *shared))
    text = "\n".join(words)
    assert re.search(rf"\b{expected}s?\b", words[0]) and re.search(rf"\b{expected}s?\b", words[2])
    if len(shared) == 1:
        assert re.findall(rf".*\b{other}s?\b.*", text) == []
