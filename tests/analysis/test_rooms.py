"""The rooms of the analysis import downwards, and no file but its own knows a single sweep."""

import pytest

from tests.test_layering import ROOT, imports_of, is_room, within

# The rooms of the analysis and the files on top of them, and what each of them may import. Nothing else is allowed.
QUESTIONS = {"store", "statistics", "display", "questions"}
ANALYSIS = {
    "store": set[str](),
    "statistics": {"store"},
    "display": {"store", "statistics"},
    "questions": {"store", "statistics", "display"},
    "answers": QUESTIONS | {"claims", "verdicts_text"},
    "files": QUESTIONS,
    "claims": QUESTIONS,
    "verdicts_text": QUESTIONS | {"claims"},
    "report": QUESTIONS | {"claims", "verdicts_text", "files"},
    "make_tables": QUESTIONS | {"claims", "verdicts_text", "files", "report"},
}


@pytest.mark.parametrize("room", sorted(path.stem for path in (ROOT / "cvit/analysis").iterdir() if is_room(path)))
def test_rooms_of_the_analysis_import_downwards(room: str) -> None:
    allowed = ANALYSIS[room] | {room}
    upwards = [
        (file, name)
        for file, name in imports_of("cvit/analysis")
        if file.removesuffix(".py").split("/")[2] == room
        and within(name, "cvit.analysis")
        and name.split(".")[2] not in allowed
    ]
    assert upwards == []


def test_no_file_knows_a_single_sweep_but_its_question_and_its_figure() -> None:
    """A sweep is found by name: deleting its files is all that it takes to forget it."""
    sweeps = {path.stem for path in (ROOT / "cvit/analysis/questions").glob("*.py")} - {"__init__"}
    known = {
        (file, name)
        for file, name in imports_of("cvit/analysis")
        for sweep in sweeps
        if within(name, f"cvit.analysis.questions.{sweep}") and file != f"cvit/analysis/questions/figures/{sweep}.py"
    }
    assert known == set()
