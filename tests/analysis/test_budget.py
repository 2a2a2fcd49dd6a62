"""The sweep budget, by hand-worked numbers: the crossover, its verdicts, the table and the figure."""

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest

from cvit import vocabulary as names
from cvit.analysis.answers import answer_text
from cvit.analysis.claims import verdicts
from cvit.analysis.files import files_of
from cvit.analysis.questions import budget, curves_of, studies_of
from cvit.analysis.statistics.studies import Study
from cvit.analysis.statistics.verdicts import FAILS, HOLDS
from cvit.analysis.store.frames import Frames
from cvit.analysis.store.journal import load_journal
from tests.support.fake_studies import Cell, FakeStudy, squeezed, trainings, write_journal

KEY = "a" * 16
BUDGETS = [100, 200, 400, 800]
GAINS = {100: -0.04, 200: -0.01, 400: 0.03, 800: 0.05}
"""Two phases over random initialisation; the twin is 0.02 better than that."""


def budget_study(gains: dict[int, float] = GAINS, epochs: int = 0) -> FakeStudy:
    grid = {"min_steps": list(gains), "init_scheme": ["random", "two_phase", "convolution"], "seed": [0, 1, 2]}

    def accuracy(cell: Cell) -> float:
        ahead = {"random": 0.0, "two_phase": gains[cell["min_steps"]], "convolution": 0.02}[cell["init_scheme"]]
        return 0.5 + ahead + 0.001 * cell["seed"] * (cell["init_scheme"] == "two_phase")

    study = trainings("budget", KEY, grid, accuracy, epochs=epochs, image_size=8, patch_size=2)
    for trial in study.trials:
        trial.planned_tags = {names.TAG_TRAIN_IMAGES: "60"}
    return study


def frames_of(folder: Path, study: FakeStudy) -> Frames:
    return load_journal(write_journal(folder, [study]), curves_of=curves_of)


def study_of(folder: Path, study: FakeStudy) -> Study:
    return studies_of(frames_of(folder, study), "budget")[0]


def test_the_crossover_is_where_the_difference_changes_sign(tmp_path: Path) -> None:
    over_random, over_twin = budget.crossovers(study_of(tmp_path, budget_study()))
    # The means are 0.001 above GAINS: -0.009 at 200 and 0.031 at 400, so 9/40 of the way on the logarithm.
    assert (over_random.other, over_twin.other) == ("random", "convolution")
    assert over_random.steps == pytest.approx(200 * 2 ** (9 / 40))
    assert (over_random.beyond, over_random.loses_until, over_random.gains_from) == ("", 200, 400)
    # Less the twin: -0.059, -0.029, 0.011, 0.031.
    assert over_twin.steps == pytest.approx(200 * 2 ** (29 / 40))


@pytest.mark.parametrize(
    ("gains", "beyond"),
    [
        ({100: 0.05, 200: 0.06}, "below 100"),
        ({100: 0.05, 200: -0.06}, "above 200"),
        ({100: -0.05, 200: -0.06}, "above 200"),
    ],
)
def test_a_crossover_outside_the_grid_is_said_to_be(tmp_path: Path, gains: dict[int, float], beyond: str) -> None:
    first = budget.crossovers(study_of(tmp_path, budget_study(gains)))[0]
    assert first.beyond == beyond and math.isnan(first.steps)


def test_of_several_changes_the_last_one_counts(tmp_path: Path) -> None:
    first = budget.crossovers(study_of(tmp_path, budget_study({100: -0.05, 200: 0.03, 400: -0.021, 800: 0.019})))[0]
    assert first.steps == pytest.approx(400 * 2**0.5)


def test_verdicts_by_budget(tmp_path: Path) -> None:
    found = {v.claim: v for v in verdicts(frames_of(tmp_path, budget_study()))}
    pay = {name: v.verdict for name, v in found.items() if name.startswith("two_phases_pay/")}
    assert pay == {f"two_phases_pay/{steps}": HOLDS if steps >= 400 else FAILS for steps in BUDGETS}
    adds = found["attention_adds_to_the_twin/800"]
    assert (adds.verdict, adds.estimate, adds.n) == (HOLDS, pytest.approx(0.031), 3)


def test_a_trial_s_own_steps_are_its_budget(tmp_path: Path) -> None:
    """Ten epochs of 60 images in batches of 50 are at least 12 steps, whatever `min_steps` says."""
    study = study_of(tmp_path, budget_study({5: 0.1, 800: 0.1}, epochs=10))
    steps = [budget.steps_at(study, value) for value in (5, 800)]
    assert steps[0] >= 12 and steps[1] == 800
    (family,) = budget.QUESTION.claims[0].judge(study)
    assert [place for place, _ in family] == [str(value) for value in steps]


def test_table_csv_and_answer(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, budget_study())
    files = files_of(frames, "budget").by_name
    assert "### The budget from which on two phases pay" in files["budget.md"].decode()
    rows = list(csv.DictReader(io.StringIO(files["budget.csv"].decode())))
    crossings = [row for row in rows if row["kind"] == "crossover_steps"]
    assert [row["init_scheme"] for row in crossings] == ["two_phase-random", "two_phase-convolution"]
    assert float(crossings[0]["mean"]) == pytest.approx(200 * 2 ** (9 / 40))
    twin = [row for row in rows if row["kind"] == "less_the_twin" and row["init_scheme"] == "two_phase"]
    assert [float(row["mean"]) for row in twin] == pytest.approx([-0.059, -0.029, 0.011, 0.031])
    answer = answer_text(frames, KEY)
    assert "| random | 234 | 200 | 400 |" in squeezed(answer)


def test_the_figure_shows_steps_and_operations(tmp_path: Path) -> None:
    from cvit.analysis.questions.figures.budget import draw

    left, right = draw([study_of(tmp_path, budget_study())]).axes
    assert [np.asarray(line.get_xdata()).tolist() for line in left.lines] == [BUDGETS] * 3
    random, two_phase, twin = (np.asarray(line.get_xdata()) for line in right.lines)
    # Operations grow with the steps; those of two phases are half the one's and half the other's.
    assert random / random[0] == pytest.approx(np.array(BUDGETS) / 100)
    assert two_phase == pytest.approx((random + twin) / 2)
    assert twin[0] < random[0]
    assert np.asarray(left.lines[1].get_ydata()).tolist() == pytest.approx([46.1, 49.1, 53.1, 55.1])


def test_a_sweep_that_has_only_begun_is_shown(tmp_path: Path) -> None:
    study = budget_study()
    study.trials = []
    assert len(files_of(frames_of(tmp_path / "none", study), "budget").by_name) == 6
    study.cells = [{name: values[:1] for name, values in study.cells[0].items()}]
    assert len(files_of(frames_of(tmp_path / "one", study), "budget").by_name) == 6
