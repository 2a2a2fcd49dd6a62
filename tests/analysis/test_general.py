"""The general tables, figure and caption: for any sweep of any task, however little of it there is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba, to_rgba_array

from cvit import vocabulary as names
from cvit.analysis.answers import answer_text
from cvit.analysis.display.arrangement import Arrangement, arrangement, caption
from cvit.analysis.display.general_figure import draw
from cvit.analysis.files import file_stem, files_of
from cvit.analysis.statistics.studies import Study, read_studies
from cvit.analysis.store.frames import Frames
from cvit.analysis.store.journal import load_journal
from cvit.tasks.expressivity import ExpressivityConfig
from tests.support.fake_studies import TIME_MS, Cells, FakeStudy, FakeTrial, trainings, write_journal

KEY = "a" * 16
SCHEMES = ["random", "two_phase"]


def frames_of(folder: Path, study: FakeStudy) -> Frames:
    return load_journal(write_journal(folder, [study]))


def study_of(folder: Path, study: FakeStudy) -> Study:
    return read_studies(frames_of(folder, study), study.sweep)[0]


def fits(grid: Cells) -> FakeStudy:
    """The error of every fit is 0.1 to the power of its heads, times 1 or 3 for seed 0 or 1."""
    trials = []
    for heads in grid["num_heads"]:
        for size in grid["kernel_size"]:
            for seed in grid["seed"]:
                flat = ExpressivityConfig.from_flat({"num_heads": heads, "kernel_size": size, "seed": seed}).flat()
                error = 0.1**heads * (1 + 2 * seed)
                trials.append(
                    FakeTrial(f"{heads}-{size}-{seed}", flat, [(names.EXPRESSIVITY_ERROR, 9, error, TIME_MS)])
                )
    return FakeStudy(KEY, "more_fits", [grid], trials, task=names.EXPRESSIVITY, question="How close?")


FITS: Cells = {"num_heads": [1, 2, 3], "kernel_size": [3, 5], "seed": [0, 1]}


def test_the_axes_of_a_study_are_arranged_by_its_task(tmp_path: Path) -> None:
    grid: Cells = {
        "augmentation": ["none", "shift"], "depth": [1], "num_heads": [1, 9], "init_scheme": SCHEMES, "seed": [0]
    }  # fmt: skip
    study = study_of(tmp_path / "trainings", trainings("other", KEY, grid, lambda c: 0.5))
    # Depth does not vary, and augmentation is no number.
    assert arrangement(study) == Arrangement("num_heads", "init_scheme", ("augmentation", "depth"))
    assert caption(study) == (
        "Test accuracy against number of heads, a line per init scheme, a panel per augmentation. Means over seeds "
        "with 95 % intervals."
    )
    study = study_of(tmp_path / "fits", fits(FITS))
    assert arrangement(study) == Arrangement("kernel_size", "num_heads", ())
    assert caption(study).startswith("Expressivity error against kernel size, a line per number of heads. ")


def test_the_figure_shows_means_and_intervals_of_either_task(tmp_path: Path) -> None:
    grid: Cells = {"num_heads": [1, 9], "depth": [1, 2, 4], "init_scheme": SCHEMES, "seed": [0, 1]}
    made_up = trainings("other", KEY, grid, lambda c: 0.1 * c["depth"] + 0.02 * c["seed"] + 0.01 * c["num_heads"])
    one, nine = draw([study_of(tmp_path / "trainings", made_up)]).axes
    assert [panel.get_title(loc="left") for panel in (one, nine)] == ["digits, n = 2", ""]
    assert [panel.texts[0].get_text() for panel in (one, nine)] == [f"study {KEY[:8]}; 1 head", "9 heads"]
    random, two_phase = nine.lines[:2]
    assert np.asarray(random.get_xydata()).tolist() == pytest.approx(np.array([[1, 20], [2, 30], [4, 50]]))
    assert to_rgba(random.get_color()) != to_rgba(two_phase.get_color())
    (intervals,) = [
        bars
        for bars in nine.collections
        if isinstance(bars, LineCollection) and to_rgba(random.get_color()) == tuple(to_rgba_array(bars.get_color())[0])
    ]
    ends = [np.asarray(path.vertices)[:, 1].max() for path in intervals.get_paths()]
    assert max(ends) == pytest.approx(50 + 100 * 12.7062 * 0.0141421 / 2**0.5, abs=1e-3)
    assert (one.get_ylabel(), nine.get_ylabel()) == ("test accuracy (%)", "")
    (axes,) = draw([study_of(tmp_path / "fits", fits(FITS))]).axes
    assert [np.asarray(line.get_ydata()).tolist() for line in axes.lines] == [
        pytest.approx([2 * 0.1**heads] * 2) for heads in (1, 2, 3)
    ]
    assert (axes.get_yscale(), axes.get_ylabel()) == ("linear", "expressivity error")
    many = fits(FITS | {"num_heads": [1, 2, 3, 4, 5]})
    assert draw([study_of(tmp_path / "many", many)]).axes[0].get_yscale() == "log"


@pytest.mark.parametrize(
    "grid",
    [
        {"seed": [0, 1]},
        {"init_scheme": SCHEMES, "seed": [0]},
        {"augmentation": ["none", "shift"], "seed": [0]},
        {"learning_rate": [0.001 * 2**i for i in range(10)], "seed": [0]},
        {"depth": list(range(1, 12)), "seed": [0]},
        {"depth": [1, 2], "num_heads": list(range(1, 15)), "init_scheme": SCHEMES, "seed": [0]},
    ],
    ids=["no axis", "schemes alone", "words", "many rates", "many depths", "many panels"],
)
@pytest.mark.parametrize("accuracy", [0.5, None], ids=["done", "not started"])
def test_every_grid_is_shown_without_a_warning(tmp_path: Path, grid: Cells, accuracy: float | None) -> None:
    frames = frames_of(tmp_path, trainings("other", KEY, grid, lambda c: accuracy, image_size=32))
    files = files_of(frames, "other")
    assert set(files.by_name) == {f"other.{kind}" for kind in ("md", "csv", "tex", "pdf", "png", "svg")}
    assert files.caption.startswith("Test accuracy against ")
    assert ("the first 12 of them" in files.caption) == (len(grid.get("num_heads", [])) > 12)


def test_fits_of_another_sweep_have_numbers_not_percentages(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, fits(FITS))
    files = files_of(frames, "more_fits")
    first = next(line for line in files.markdown.splitlines() if line.lstrip("| ").startswith("3"))
    # Errors 0.1 and 0.3: s = 0.141421, t(0.975, 1) = 12.7062, half of the interval 1.27062.
    assert [cell.strip() for cell in first.strip("|").split("|")] == [
        "3",
        "1",
        "0.2",
        "[-1.07, 1.47]",
        "2",
        "2",
        "0",
        "0",
    ]
    assert "%" not in files.markdown.replace("95 %", "")
    answer = answer_text(frames, KEY)
    assert answer.splitlines()[-1] == "Mean over seeds with the 95 % interval." and "accuracy" not in answer
    assert r"\caption{Expressivity error, more\_fits, n = 2 (study " in files.by_name["more_fits.tex"].decode()


def test_fits_that_have_not_begun_are_missing(tmp_path: Path) -> None:
    begun = fits(FITS)
    begun.trials = []
    frames = frames_of(tmp_path, begun)
    assert answer_text(frames, KEY).splitlines()[-1] == "Missing: 12 of 12 trials."
    assert len(files_of(frames, "more_fits").by_name) == 6


def test_trials_of_a_task_of_a_later_version_are_shown_as_they_are(tmp_path: Path) -> None:
    params: dict[str, Any] = {"depth": 3, "temperature": 0.5, "seed": 0}
    trial = FakeTrial("t", params, [(names.TEST_ACCURACY, 9, 0.25, TIME_MS)])
    grid: Cells = {"temperature": [0.5], "seed": [0]}
    frames = frames_of(tmp_path, FakeStudy(KEY, "unheard_of", [grid], [trial], {"depth": 3}, task="dreaming"))
    assert "25.0" in files_of(frames, "unheard_of").markdown


@pytest.mark.parametrize(
    ("sweep", "stem"),
    [
        ("low_data", "low_data"),
        ("../../etc/passwd", "sweep-------etc-passwd"),
        ("claims", "sweep-claims"),
        ("a b.md", "sweep-a-b-md"),
    ],
)
def test_files_have_safe_names_of_their_own(sweep: str, stem: str) -> None:
    assert file_stem(sweep) == stem
