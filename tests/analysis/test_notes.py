"""Tables say how many images a share is, and with what the trials were trained, where these are not all alike."""

from pathlib import Path
from typing import Any

import pytest

from cvit import vocabulary as names
from cvit.analysis import make_tables
from cvit.analysis.answers import answer_text
from cvit.analysis.display.notes import IN_BRACKETS
from cvit.analysis.files import files_of
from cvit.analysis.store.frames import Frames, rows_of
from cvit.analysis.store.journal import load_journal
from cvit.analysis.store.mlflow import load_mlflow
from tests.support.fake_studies import FakeStudy, trainings, write_journal, write_mlflow

GRID = {"data_fraction": [0.0001, 0.001, 0.05], "init_scheme": ["random", "two_phase"], "seed": [0, 1]}
IMAGES = {0.0001: "10", 0.001: "10", 0.05: "1066"}
OLD = {names.TAG_DEVICE: "cpu"}
NEW = {
    names.TAG_CODE_VERSION: "0.1.0+bbb",
    names.TAG_TORCH_VERSION: "2.9.0+cpu",
    names.TAG_DEVICE: "cpu",
    names.TAG_CPU_CAPABILITY: "AVX512",
}


def tables(study: FakeStudy, folder: Path) -> tuple[str, str, str, str]:
    """Markdown, answer, LaTeX and CSV of the study."""
    frames = load_journal(write_journal(folder / "storage", [study]))
    files = files_of(frames, study.sweep).by_name
    markdown, latex, csv = (files[f"{study.sweep}.{kind}"].decode() for kind in ("md", "tex", "csv"))
    return markdown, answer_text(frames, study.key), latex, csv


def study(value_of: Any = lambda cell: 0.5) -> FakeStudy:
    return trainings("low_data", "a" * 16, GRID, value_of)


def test_shares_have_their_numbers_of_images_and_the_same_images_are_one_row(tmp_path: Path) -> None:
    accuracy = {0.0001: 0.25, 0.001: 0.75, 0.05: 0.5}
    # The larger share has lost a seed, which the smaller one has.
    made = study(lambda c: None if (c["data_fraction"], c["seed"]) == (0.001, 1) else accuracy[c["data_fraction"]])
    for trial in made.trials:
        trial.planned_tags[names.TAG_TRAIN_IMAGES] = IMAGES[trial.params["data_fraction"]]
    markdown, answer, latex, csv = tables(made, tmp_path)
    note = "0.01 % of the images are the same 10 images as 0.1 %."
    for text in (markdown, answer):
        assert " 0.1 % (10) |" in text and " 5 % (1,066) |" in text
        assert " 0.01 % (" not in text and {note, IN_BRACKETS} <= set(text.splitlines())
    assert "|    0.1 % (10) | random    |             50.0 |" in markdown  # (75 + 25) / 2
    assert r"  \par\footnotesize In brackets" in latex
    assert r" 0.01 \% of the images are the same 10 images as 0.1 \%." in latex
    assert csv.splitlines()[0].endswith(",train_images")
    assert {tuple(line.split(",")[i] for i in (4, -1)) for line in csv.splitlines()[1:]} == {
        ("0.001", "10"),
        ("0.05", "1066"),
    }


def test_without_the_axis_the_footer_has_the_number_of_images(tmp_path: Path) -> None:
    made = trainings("plain", "b" * 16, {"depth": [1, 2], "init_scheme": ["random"], "seed": [0]}, lambda cell: 0.5)
    for trial in made.trials:
        trial.planned_tags[names.TAG_TRAIN_IMAGES] = "1295"
    markdown, *_ = tables(made, tmp_path)
    assert "\nData set: digits, 1,295 training images.\n" in markdown


def test_a_table_says_with_what_all_its_trials_were_trained(tmp_path: Path) -> None:
    made = study()
    for trial in made.trials:
        trial.tags |= NEW
    markdown, answer, latex, _ = tables(made, tmp_path)
    assert "\nTrained with: code version 0.1.0+bbb, torch 2.9.0+cpu, device cpu, CPU capability AVX512.\n" in markdown
    assert "more than one" not in markdown + answer + latex


def test_a_table_that_mixes_them_says_so_below(tmp_path: Path) -> None:
    """Four trials of a version before, seven of a new one on the same device, one whose phases differ in both."""
    made = study()
    for number, trial in enumerate(made.trials):
        trial.tags |= OLD if number < 4 else NEW
    made.trials[4].tags |= {names.TAG_CODE_VERSION: "0.1.0+aaa, 0.1.0+bbb", names.TAG_DEVICE: "cpu, NVIDIA H100"}
    markdown, answer, latex, _ = tables(made, tmp_path)
    notes = [
        "Trained with more than one code version: unknown (4 trials); 0.1.0+aaa and 0.1.0+bbb (1 trial); "
        "0.1.0+bbb (7 trials).",
        "Trained with more than one torch: unknown (4 trials); 2.9.0+cpu (8 trials).",
        "Trained with more than one device: cpu (11 trials); cpu and NVIDIA H100 (1 trial).",
        "Trained with more than one CPU capability: unknown (4 trials); AVX512 (8 trials).",
    ]
    for text in (markdown, answer):
        assert [line for line in text.splitlines() if line.startswith("Trained with")] == notes
    assert markdown.index(notes[0]) > markdown.rindex("two_phase - random")
    assert all(note in latex for note in notes)


def test_one_trial_of_two_versions_is_a_mixture(tmp_path: Path) -> None:
    made = trainings("plain", "b" * 16, {"depth": [1], "init_scheme": ["two_phase"], "seed": [0]}, lambda cell: 0.5)
    made.trials[0].tags |= NEW | {names.TAG_TORCH_VERSION: "2.8.0, 2.9.0"}
    markdown, *_ = tables(made, tmp_path)
    assert "Trained with more than one torch: 2.8.0 and 2.9.0 (1 trial)." in markdown


@pytest.fixture(scope="module", params=["journal", "mlflow"])
def frames(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Frames:
    """A study planned by one version and, from its second trial on, trained by another."""
    folder, made = tmp_path_factory.mktemp("stores"), study()
    made.code_version = "0.1.0+aaa"
    for trial in made.trials[1:]:
        trial.tags |= NEW
    if request.param == "journal":
        return load_journal(write_journal(folder, [made]))
    write_mlflow(f"sqlite:///{folder}/mlflow.db", [made])
    return load_mlflow(f"sqlite:///{folder}/mlflow.db")


def test_the_code_version_is_that_of_the_training(frames: Frames) -> None:
    columns = ["code_version", "torch_version", "device", "cpu_capability"]
    rows = [tuple(row[column] for column in columns) for row in rows_of(frames.trials)]
    assert rows[0] == ("0.1.0+aaa", None, None, None)
    assert set(rows[1:]) == {("0.1.0+bbb", "2.9.0+cpu", "cpu", "AVX512")}


def test_the_report_says_it_too(tmp_path: Path) -> None:
    made = study()
    for number, trial in enumerate(made.trials):
        trial.tags |= NEW if number else NEW | {names.TAG_TORCH_VERSION: "2.8.0"}
    write_journal(tmp_path / "storage", [made])
    assert make_tables.main(["--storage", str(tmp_path / "storage"), "--out", str(tmp_path / "out")]) == 0
    provenance = (tmp_path / "out" / "report.html").read_text().partition('<section id="provenance">')[2]
    note = "Trained with more than one torch: 2.8.0 (1 trial); 2.9.0+cpu (11 trials)."
    note = f"low_data, digits, n = 2 (study aaaaaaaa): {note}"
    for said in ("0.1.0+bbb", "2.8.0, 2.9.0+cpu", "AVX512", note):
        assert said in provenance
