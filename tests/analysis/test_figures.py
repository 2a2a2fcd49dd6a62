"""Figures: intervals, chance, titles, gains, panels that are left out, and files without dates."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from cvit import vocabulary as names
from cvit.analysis.display.figure_style import draw_accuracy, draw_chance, draw_heading, image_bytes, new_figure
from cvit.analysis.questions import curves_of, draw_figure, studies_of
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import FRACTION
from cvit.analysis.store.journal import load_journal
from tests.support.fake_studies import TIME_MS, Cell, Cells, trainings, write_journal

KEY = "a" * 16
GRID: Cells = {"data_fraction": [0.02, 0.1], "init_scheme": ["random", "two_phase"], "seed": [0, 1]}


def accuracy(cell: Cell) -> float:
    """Two phases gain 4 and 6 points at 2 %, and 0 and 2 points at 10 %."""
    base = 0.5 if cell["data_fraction"] == 0.02 else 0.6
    gain = (0.05 if cell["data_fraction"] == 0.02 else 0.01) + (0.01 if cell["seed"] else -0.01)
    return base + (gain if cell["init_scheme"] == "two_phase" else 0.0)


def study_of(folder: Path, sweep: str = "low_data", grid: Cells = GRID, value: Any = accuracy, **params: Any) -> Study:
    made_up = trainings(sweep, KEY, grid, value, **params)
    return studies_of(load_journal(write_journal(folder, [made_up]), curves_of=curves_of), sweep)[0]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def intervals(axes: Axes) -> list[list[float]]:
    """Lower and upper ends of all intervals with both, in percent."""
    paths = [np.asarray(path.vertices)[:, 1] for bars in axes.collections for path in bars.get_paths()]
    return [[low, high] for low, high in paths if math.isfinite(low + high)]


def test_low_data_shows_the_gain_on_the_same_seeds(tmp_path: Path) -> None:
    accuracies, gains, _ = draw_figure("low_data", [study_of(tmp_path)]).axes
    assert gains.get_ylabel() == "gain over random (points)"
    assert np.asarray(gains.lines[0].get_xydata()) == pytest.approx(np.array([[0.02, 5.0], [0.1, 1.0]]))
    half = 12.7062 * 1.41421 / 2**0.5  # t(0.975, 1) · s / √2 of two gains, two points apart
    assert np.array(intervals(gains)) == pytest.approx(np.array([[5 - half, 5 + half], [1 - half, 1 + half]]), abs=1e-3)
    assert len(intervals(accuracies)) == 4  # one per mean


def test_a_title_is_in_words_and_the_hash_is_below_it(tmp_path: Path) -> None:
    axes = draw_figure("low_data", [study_of(tmp_path, depth=4, embed_dim=48)]).axes[0]
    assert axes.get_title(loc="left") == "digits, ViT 4×48, n = 2"
    assert texts(axes)[0] == f"study {KEY[:8]}"


def test_single_trials_have_no_intervals_and_the_figure_says_so(tmp_path: Path) -> None:
    study = study_of(tmp_path, grid=GRID | {"seed": [0]})
    axes = draw_figure("low_data", [study]).axes[0]
    assert intervals(axes) == [] and texts(axes)[0].endswith("; one seed, so no intervals")


@pytest.mark.parametrize(("num_classes", "is_line"), [(10, False), (2, True), (None, False)])
def test_chance_is_a_line_where_there_is_room_else_a_remark(
    tmp_path: Path, num_classes: int | None, is_line: bool
) -> None:
    study = study_of(tmp_path, value=lambda cell: accuracy(cell) + 0.02)
    study = replace(study, trials=[{**trial, "num_classes": num_classes} for trial in study.trials])
    with new_figure(2.0) as figure:
        axes = figure.subplots()
        draw_accuracy(axes, study, FRACTION, {})
        lines = len(axes.lines)
        draw_chance(axes, study)
        draw_heading(axes, study)
    assert len(axes.lines) == lines + is_line
    assert texts(axes)[:-1] == ([] if num_classes is None else ["chance"] if is_line else ["↓ chance: 10 %"])
    if is_line:
        assert np.unique(axes.lines[-1].get_ydata()).tolist() == [50.0] and axes.get_ylim()[0] < 50


@pytest.mark.parametrize("diverged", [False, True])
def test_no_panel_is_zero_throughout(tmp_path: Path, diverged: bool) -> None:
    grid: Cells = {"learning_rate": [0.1, 1.0], "warmup_fraction": [0.0, 0.1]} | {
        "init_scheme": ["random", "two_phase"],
        "seed": [0, 1],
    }
    study = study_of(
        tmp_path, "no_warmup", grid, lambda cell: math.nan if diverged and cell["learning_rate"] == 1.0 else 0.5
    )
    labels = [axes.get_ylabel() for axes in draw_figure("no_warmup", [study]).axes]
    assert labels.count("diverged (% of trials)") == diverged


@pytest.mark.parametrize("kind", ["svg", "pdf", "png"])
def test_files_have_no_dates(tmp_path: Path, kind: str) -> None:
    study = study_of(tmp_path)
    first, second = (image_bytes(draw_figure("low_data", [study]), kind) for _ in range(2))
    assert first == second and not re.search(rb"CreationDate|dc:date|20\d\d-\d\d", first)


def test_curves_of_many_schemes_are_those_of_the_smallest_share(tmp_path: Path) -> None:
    schemes = ["random", "two_phase", "mimetic", "local", "impulse"]

    def points(cell: Cell) -> list[Any]:
        return [(names.VAL_ACCURACY, step, 0.1 * step, TIME_MS) for step in (1, 2, 3)]

    study = study_of(tmp_path, grid=GRID | {"init_scheme": schemes}, points=points)
    curves = draw_figure("low_data", [study]).axes[2]
    assert texts(curves)[0] == "2 % of the images"
    assert len([line for line in curves.lines if np.size(line.get_xdata()) == 3]) == len(schemes)
