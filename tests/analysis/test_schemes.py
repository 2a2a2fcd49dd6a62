"""The sweeps no_warmup, init_schemes and full_grid, by hand-worked numbers."""

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text

from cvit import vocabulary as names
from cvit.analysis.answers import answer_text
from cvit.analysis.files import files_of
from cvit.analysis.questions import curves_of, no_warmup, question_of
from cvit.analysis.questions.init_schemes import gains_over
from cvit.analysis.statistics.studies import Study, read_studies
from cvit.analysis.store.frames import Frames
from cvit.analysis.store.journal import load_journal
from tests.support.fake_studies import TIME_MS, Cell, FakeStudy, Point, squeezed, trainings, write_journal

SCHEMES = ["random", "two_phase"]
KEY = "a" * 16
NONE, WARM = {"warmup_fraction": 0.0}, {"warmup_fraction": 0.1}


def frames_of(folder: Path, study: FakeStudy) -> Frames:
    return load_journal(write_journal(folder, [study]), curves_of=curves_of)


def study_of(frames: Frames, sweep: str) -> Study:
    return read_studies(frames, sweep, question_of(sweep).axes)[0]


def rows_of_csv(files: dict[str, bytes], sweep: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(files[f"{sweep}.csv"].decode())))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def stability_points(cell: Cell) -> list[Point]:
    """Two phases begin their attention at step 10, of 20. The gradients' norm is 1 + seed at the first step, 4 in the
    convolution phase; validation accuracy ends at 0.5 for random initialisation, at 0.8 for two phases."""
    is_treated = cell["init_scheme"] == "two_phase"
    measured = {
        (names.GRAD_NORM_MAX, 20): [5.0, 7.0, 100.0][cell["seed"]],
        (names.GRAD_NORM_MAX_STEP, 20): 3.0,
        (names.LOSS_SPIKES, 20): float(cell["seed"]),
        (names.EARLY_LOSS, 20): 2.0,
        (names.VAL_ACCURACY, 5): 0.1,
        (names.VAL_ACCURACY, 10): 0.75 if is_treated else 0.3,
        (names.VAL_ACCURACY, 20): 0.8 if is_treated else 0.5,
    }
    start = 10 if is_treated else 0
    if is_treated:
        measured |= {(names.EARLY_GRAD_NORM, step): 4.0 for step in range(10)}
        measured |= {(names.TRANSFER_VAL_ACCURACY, 10): 0.7}
    measured |= {(names.EARLY_GRAD_NORM, start + step): (1.0 + cell["seed"]) / (1 + step) for step in range(3)}
    return [(metric, step, value, TIME_MS) for (metric, step), value in measured.items()]


def warmup_study(**extra: Any) -> FakeStudy:
    """Without warm-up, two of random's three trials diverge at the larger learning rate, and two phases lose 0.02."""
    grid = {"warmup_fraction": [0.0, 0.1], "learning_rate": [0.01, 0.1], "init_scheme": SCHEMES, "seed": [0, 1, 2]}

    def accuracy(cell: Cell) -> float:
        if cell["warmup_fraction"] == 0 and cell["learning_rate"] == 0.1:
            if cell["init_scheme"] == "random":
                return math.nan if cell["seed"] else 0.3
            return 0.68
        return 0.7

    return trainings("no_warmup", KEY, grid, accuracy, **extra)


def test_no_warmup_by_hand(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, warmup_study(points=stability_points))
    study = study_of(frames, "no_warmup")
    at = {"learning_rate": 0.1, "init_scheme": "random"}
    assert no_warmup.divergence_rate(study, at | NONE) == pytest.approx(2 / 3)
    assert no_warmup.divergence_rate(study, at | WARM) == 0
    assert no_warmup.target_accuracy(study) == pytest.approx(0.9 * 0.8)
    differences = {
        (cell.place["learning_rate"], cell.place["init_scheme"]): cell for cell in no_warmup.without_less_with(study)
    }
    assert differences[0.1, "two_phase"].estimate.mean == pytest.approx(-0.02)
    lost = differences[0.1, "random"]
    assert (lost.estimate.mean, lost.estimate.n, lost.diverged) == (pytest.approx(-0.4), 1, 2)


def test_the_table_of_no_warmup_says_how_stable_the_trials_were(tmp_path: Path) -> None:
    files = files_of(frames_of(tmp_path, warmup_study(points=stability_points)), "no_warmup").by_name
    rows = [
        row for row in rows_of_csv(files, "no_warmup") if row["kind"] == "accuracy" and row["learning_rate"] == "0.1"
    ]
    added = ["divergence_rate", "diverged_step", "grad_norm_max", "grad_norm_max_step", "loss_spikes", "early_loss"]
    added += ["steps_to_accuracy"]
    assert [[row[name] for name in ("warmup_fraction", "init_scheme", *added)] for row in rows] == [
        # Medians of three; the mean of 0, 1 and 2 spikes. Random never reaches 0.72; at step 10 only the twin does.
        ["0.0", "random", "0.6666666666666666", "7.0", "7.0", "3.0", "1.0", "2.0", ""],
        ["0.0", "two_phase", "0.0", "", "7.0", "3.0", "1.0", "2.0", "20.0"],
        ["0.1", "random", "0.0", "", "7.0", "3.0", "1.0", "2.0", ""],
        ["0.1", "two_phase", "0.0", "", "7.0", "3.0", "1.0", "2.0", "20.0"],
    ]


def titles_of(axes: Axes, begin: str) -> list[str]:
    """The texts of a panel that name its place."""
    return [text.get_text() for text in axes.findobj(Text) if isinstance(text, Text) and begin in text.get_text()]


def test_first_gradients_are_those_of_the_attention_phase(tmp_path: Path) -> None:
    from cvit.analysis.questions.figures.no_warmup import draw

    study = study_of(frames_of(tmp_path, warmup_study(points=stability_points)), "no_warmup")
    treated = [trial for trial in study.trials if trial["init_scheme"] == "two_phase" and trial["seed"] == 1]
    assert no_warmup.early_gradients(study, treated[0]) == {0: 2.0, 1: 1.0, 2: pytest.approx(2 / 3)}
    (block,) = draw([study]).subfigs
    _, diverged, _, gradients = (part.axes for part in block.subfigs)
    assert [titles_of(axes, "learning rate") for axes in gradients] == [
        ["learning rate 0.01"], ["learning rate 0.1"], [], [],
    ]  # fmt: skip
    # No warm-up first; the median of seeds 0 to 2.
    _, two_phase = gradients[1].lines
    assert np.asarray(two_phase.get_ydata()).tolist() == pytest.approx([2.0, 1.0, 2 / 3])
    assert np.asarray(diverged[0].lines[0].get_ydata()).tolist() == pytest.approx([0, 200 / 3])


def test_trials_from_before_stability_was_measured_have_dashes(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, warmup_study())
    files = files_of(frames, "no_warmup").by_name
    line = next(line for line in squeezed(files["no_warmup.md"].decode()).splitlines() if line.startswith("| 0.01"))
    assert cells(line)[-5:] == ["0, -", "-, -", "-", "-", "-, -"]
    assert len(files) == 6
    answer = answer_text(frames, KEY)
    assert "Without warm-up less with the longest one" in answer and "spikes" not in answer


def scheme_study() -> FakeStudy:
    """Gains over random: 0.1 for two phases, 0.02 for mimetic, 0.2 for the reference; alternating by 0.01 per seed."""
    by_scheme = {"random": 0.0, "two_phase": 0.1, "mimetic": 0.02, "convolution": 0.2}
    grid = {"init_scheme": list(by_scheme), "data_fraction": [0.05, 0.2], "seed": [0, 1]}

    def accuracy(cell: Cell) -> float | None:
        if cell == {"init_scheme": "mimetic", "data_fraction": 0.2, "seed": 1}:
            return None
        spread = 0.01 * cell["seed"] if cell["init_scheme"] != "random" else 0.0
        return 0.5 + cell["data_fraction"] + by_scheme[cell["init_scheme"]] + spread

    return trainings("init_schemes", KEY, grid, accuracy)


def test_every_scheme_is_compared_with_random_and_references_are_marked(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, scheme_study())
    gains = {
        (g.place["data_fraction"], g.place["init_scheme"]): g
        for g in gains_over(study_of(frames, "init_schemes"))
        for g in gains_over(study_of(frames, "init_schemes"))
    }
    assert [scheme for fraction, scheme in gains if fraction == 0.05] == ["two_phase", "mimetic", "convolution"]
    assert gains[0.05, "mimetic"].estimate.mean == pytest.approx(0.025)
    assert (gains[0.2, "mimetic"].estimate.n, gains[0.2, "mimetic"].missing) == (1, 1)
    files = files_of(frames, "init_schemes").by_name
    text = files["init_schemes.md"].decode()
    assert "| 5 % | convolution (reference) | +20.5 |" in squeezed(text)
    kinds = {(row["kind"], row["init_scheme"]) for row in rows_of_csv(files, "init_schemes")}
    assert ("gain_over_random", "convolution") in kinds and ("gain_over_random", "random") not in kinds
    # In short texts a scheme is a row and a fraction a column.
    head, _, first, *_ = answer_text(frames, KEY).splitlines()
    assert cells(head) == ["scheme", "5 %", "20 %"] and cells(first) == ["random", "55.0 ± 0.0 (2)", "70.0 ± 0.0 (2)"]
    assert r"convolution (reference) & $" in files["init_schemes.tex"].decode()


def test_the_figure_of_init_schemes_tells_them_apart(tmp_path: Path) -> None:
    from cvit.analysis.questions.figures.init_schemes import draw

    left, right = draw([study_of(frames_of(tmp_path, scheme_study()), "init_schemes")]).axes
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in left.lines}
    assert len(looks) == 4 and sum(style == ":" for _, _, style in looks) == 1
    assert np.asarray(right.lines[0].get_ydata()).tolist() == pytest.approx([10.5, 10.5])


def grid_study() -> FakeStudy:
    """16 heads do not fit patches of 4 pixels: the grid is a union."""
    common = {"data_fraction": [0.05, 0.2], "init_scheme": SCHEMES, "seed": [0, 1]}
    grids = [{"patch_size": [2], "num_heads": [4, 16], **common}, {"patch_size": [4], "num_heads": [4], **common}]
    return trainings("full_grid", KEY, grids, lambda cell: 0.5 + 0.01 * cell["num_heads"], image_size=16)


def test_full_grid_shows_what_can_be(tmp_path: Path) -> None:
    from cvit.analysis.questions.figures.full_grid import draw

    frames = frames_of(tmp_path, grid_study())
    files = files_of(frames, "full_grid").by_name
    places = [
        (row["patch_size"], row["num_heads"])
        for row in rows_of_csv(files, "full_grid")
        if row["kind"] == "paired_gain" and row["data_fraction"] == "0.05"
    ]
    assert sorted(places) == [("2", "16"), ("2", "4"), ("4", "4")]
    assert "Missing" not in files["full_grid.md"].decode()
    panels = draw([study_of(frames, "full_grid")]).axes
    assert [titles_of(axes, "patch size")[0].rpartition("; ")[2] for axes in panels] == [
        "patch size 2, 5 % of the images", "patch size 2, 20 % of the images",
        "patch size 4, 5 % of the images", "patch size 4, 20 % of the images",
    ]  # fmt: skip
    assert [len(np.asarray(axes.lines[0].get_xdata())) for axes in panels] == [2, 2, 1, 1]


@pytest.mark.parametrize("sweep", ["no_warmup", "init_schemes", "full_grid"])
def test_a_sweep_that_has_only_begun_is_shown_without_a_warning(tmp_path: Path, sweep: str) -> None:
    study = {"no_warmup": warmup_study, "init_schemes": scheme_study, "full_grid": grid_study}[sweep]()
    study.trials = []
    assert len(files_of(frames_of(tmp_path / "none", study), sweep).by_name) == 6
    study.cells = [{name: values[:1] for name, values in study.cells[0].items()}]
    assert len(files_of(frames_of(tmp_path / "one", study), sweep).by_name) == 6
