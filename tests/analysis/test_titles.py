"""Titles, sentences and the width of a terminal: what a person reads first about a study."""

from pathlib import Path
from typing import Any

import pytest

from cvit import vocabulary as names
from cvit.analysis.answers import answer_text
from cvit.analysis.display.fitting import fitted
from cvit.analysis.display.notes import OF_SMOKE
from cvit.analysis.display.sentences import gain_sentence
from cvit.analysis.display.text import is_numeric, markdown_table, p_text
from cvit.analysis.display.titles import is_smoke, named_title, study_title
from cvit.analysis.files import files_of
from cvit.analysis.questions import question_of
from cvit.analysis.statistics.studies import Study, all_studies
from cvit.analysis.store.frames import Frames
from cvit.analysis.store.journal import load_journal
from cvit.analysis.store.mlflow import load_mlflow
from tests.support.fake_studies import Cell, FakeStudy, trainings, write_journal, write_mlflow
from tests.support.scripts import sweep

KEY = "7fd319a5" * 2
GRID = {"data_fraction": [0.05, 1.0], "init_scheme": ["random", "two_phase"], "seed": [0, 1, 2]}


def frames_of(folder: Path, *studies: FakeStudy) -> Frames:
    return load_journal(write_journal(folder / "storage", studies))


def study_of(folder: Path, made: FakeStudy) -> Study:
    return all_studies(frames_of(folder, made))[0]


def made_up(unfinished: Cell | None = None, **shared: Any) -> FakeStudy:
    def accuracy(cell: Cell) -> float | None:
        return None if cell == unfinished else 0.5 + 0.01 * cell["seed"] * (cell["init_scheme"] == "two_phase")

    return trainings("low_data", KEY, GRID, accuracy, **shared)


def test_a_title_has_data_model_and_seeds(tmp_path: Path) -> None:
    study = study_of(tmp_path, made_up(depth=4))
    assert study_title(study) == "digits, ViT 4×48, n = 3"
    assert named_title(study) == "digits, ViT 4×48, n = 3 (study 7fd319a5)"
    lost = {"data_fraction": 0.05, "init_scheme": "random", "seed": 1}
    assert study_title(study_of(tmp_path / "lost", made_up(lost))) == "digits, n = 2 to 3"


@pytest.mark.parametrize(
    ("presets", "expected"),
    [(["smoke"], True), (["smoke", "smoke"], True), (["laptop"], False), (["smoke", "laptop"], False), ([None], False)],
)
def test_smoke_is_said_only_where_all_of_a_study_is(tmp_path: Path, presets: list[str | None], expected: bool) -> None:
    """A study may grow by another preset; journals of earlier versions do not say theirs."""
    studies = []
    for number, preset in enumerate(presets):
        study = made_up()
        study.cells = [GRID | {"seed": [number]}]
        study.own_tags = {} if preset is None else {names.TAG_PRESET: preset}
        studies.append(study)
    study = study_of(tmp_path, studies[0]) if len(studies) == 1 else all_studies(frames_of(tmp_path, *studies))[0]
    assert is_smoke(study) == expected
    assert study_title(study).endswith(" (smoke preset)") == expected


def test_all_tables_of_a_smoke_preset_say_so_and_mlflow_knows_too(tmp_path: Path) -> None:
    study = made_up()
    study.own_tags = {names.TAG_PRESET: "smoke"}
    frames = frames_of(tmp_path, study)
    files = files_of(frames, "low_data").by_name
    for text in (answer_text(frames, KEY), files["low_data.md"].decode(), files["low_data.tex"].decode()):
        assert OF_SMOKE in text
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    write_mlflow(uri, [study])
    assert list(load_mlflow(uri).studies["preset"]) == list(frames.studies["preset"]) == ["smoke"]


def test_a_sweep_records_its_preset(tmp_path: Path) -> None:
    options = ["--preset", "smoke", "--data-fraction", "0.05", "--init-scheme", "random", "--seeds", "1"]
    assert OF_SMOKE.split(",")[0] in sweep(tmp_path, *options)


def test_a_gain_in_a_sentence(tmp_path: Path) -> None:
    study = study_of(tmp_path, made_up())
    # 0, 1 and 2 points: t(0.975, 2) · 0.01 / sqrt(3) = 2.48 points.
    assert gain_sentence(study) == (
        "two_phase - random on the same seeds: +1.0 points [-1.5, +3.5] at 5 % and +1.0 points [-1.5, +3.5] at 100 %."
    )
    wide = trainings("any", KEY, GRID | {"patch_size": [1, 2, 4]}, lambda c: 0.5 + 0.1 * c["patch_size"] * (
        c["init_scheme"] == "two_phase"))  # fmt: skip
    (study,) = all_studies(frames_of(tmp_path / "wide", wide))
    assert ", over 6 places: from +10.0 points" in gain_sentence(study) and "patch size 4" in gain_sentence(study)
    alone = trainings("any", KEY, {"init_scheme": ["random"], "seed": [0]}, lambda c: 0.5)
    assert question_of("any").sentence(all_studies(frames_of(tmp_path / "alone", alone))[0]) == ""


def test_columns_of_numbers_stand_to_the_right() -> None:
    assert markdown_table(["a", "bb"], [["x", "1"], ["y", "-10.5"]]) == [
        "| a  |    bb |",
        "|----|------:|",
        "| x  |     1 |",
        "| y  | -10.5 |",
    ]
    assert is_numeric(["-", "63.2 ± 2.1 (5, 1 diverged)", "+2.1 [+0.4, +3.8] (5)", "2 % (23)", "<0.001", "2.13e-01"])
    for texts in (["-", "-"], ["1", "K3"], ["0.1.0+1d62e7d"], ["2026-11-28 00:18 UTC"], [""]):
        assert not is_numeric(texts)
    assert [p_text(p) for p in (0.0123, 0.5, 1.0, 0.0004, float("nan"))] == ["0.012", "0.5", "1", "<0.001", "-"]


def test_a_wide_table_continues_below_itself(tmp_path: Path) -> None:
    head = ["width", "heads", *(f"scheme number {number}" for number in range(6))]
    rows = [[width, heads, *("80.0 ± 127.1 (2)",) * 6] for width in ("fixed", "inner 144") for heads in ("1", "9")]
    text = "\n".join(["Before.", *markdown_table(head, rows), "A sentence that is as long as it is. " * 4])
    narrow = fitted(text, 80).splitlines()
    tables = [line for line in narrow if line.startswith("|")]
    assert all(len(line) <= 80 for line in tables)
    # Every part repeats the two columns by which its rows can be told apart, and no column is lost.
    assert [line.startswith("| width     | heads |") for line in tables].count(True) == len(tables) / 6
    for number in range(6):
        assert sum(f"scheme number {number}" in line for line in tables) == 1
    assert fitted(text, 400) == text and [narrow[0], narrow[-1]] == [text.splitlines()[0], text.splitlines()[-1]]


def test_a_table_that_cannot_fit_has_a_column_at_a_time() -> None:
    lines = markdown_table(["key", "a", "b"], [["k" * 30, "x" * 30, "y" * 30]])
    parts = fitted("\n".join(lines), 20).split("\n\n")
    assert len(parts) == 2 and "x" * 30 in parts[0] and "y" * 30 in parts[1]
    assert all(part.splitlines()[2].startswith(f"| {'k' * 30} |") for part in parts)
