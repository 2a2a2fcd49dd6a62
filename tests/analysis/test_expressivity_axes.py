"""The sweep expressivity over dimensions, strides, dilations, causal kernels and windows: its tables and verdicts."""

from pathlib import Path
from typing import Any

import pytest

from cvit import vocabulary as names
from cvit.analysis.answers import answer_text
from cvit.analysis.claims import verdicts
from cvit.analysis.files import files_of
from cvit.analysis.questions import studies_of
from cvit.analysis.questions.figures.expressivity import draw
from cvit.analysis.statistics.fits import Case
from cvit.analysis.statistics.studies import TableError
from cvit.analysis.statistics.verdicts import FAILS, HOLDS, UNDECIDED
from cvit.analysis.store.frames import Frames
from cvit.analysis.store.journal import load_journal
from cvit.analysis.store.mlflow import load_mlflow
from cvit.fits import ExpressivityConfig
from cvit.storage import Storage
from tests.support.fake_studies import TIME_MS, FakeStudy, FakeTrial, write_journal, write_mlflow

KEY = "f" * 16


def study(errors: dict[int, tuple[float, float]], shared: dict[str, Any] | None = None, **axes: list[Any]) -> FakeStudy:
    """Fits on patches of 2: with so many heads the bound and the reached error of the convolutions that need more, and
    zero with those that do not."""
    trials = []
    grid = {"kernel_size": [3], "patch_size": [2], "num_heads": list(errors), "seed": [0]} | axes
    cells: list[dict[str, Any]] = [{}]
    for axis, values in grid.items():
        cells = [cell | {axis: value} for cell in cells for value in values]
    for number, cell in enumerate(cells):
        place = {name: value for name, value in (cell | (shared or {})).items() if name in Case._fields}
        bound, error = errors[cell["num_heads"]] if cell["num_heads"] < Case(**place).heads else (0.0, 1e-8)
        flat = ExpressivityConfig.from_flat(cell | (shared or {})).flat()
        points = [(names.EXPRESSIVITY_ERROR, 9, error, TIME_MS), (names.EXPRESSIVITY_BOUND, 9, bound, TIME_MS)]
        trials.append(FakeTrial(f"{number}", flat, points))
    constant = ExpressivityConfig.from_flat({"patch_size": 2} | (shared or {})).flat()
    constant = {name: value for name, value in constant.items() if name not in grid}
    return FakeStudy(KEY, "expressivity", [grid], trials, constant, task=names.EXPRESSIVITY)


def frames_of(folder: Path, fake: FakeStudy) -> Frames:
    write_journal(folder / "storage", [fake])
    return load_journal(Storage.open(str(folder / "storage")))


def verdict_of(frames: Frames) -> dict[str, str]:
    return {found.claim: found.verdict for found in verdicts(frames) if "/" in found.claim}


MISSED = {1: (0.6, 0.6), 2: (0.4, 0.4), 3: (0.3, 0.3), 4: (0.2, 0.2), 8: (0.1, 0.1), 9: (0.1, 0.1), 27: (0.1, 0.1)}


@pytest.mark.parametrize("backend", ["journal", "mlflow"])
def test_tables_have_a_column_for_what_varies_and_files_are_alike_from_either_store(
    tmp_path: Path, backend: str
) -> None:
    fake = study(MISSED, dimensions=[1, 2, 3], causal=[False, True])
    frames = frames_of(tmp_path, fake)
    if backend == "mlflow":
        write_mlflow(f"sqlite:///{tmp_path}/mlflow.db", [fake])
        frames = load_mlflow(f"sqlite:///{tmp_path}/mlflow.db")
    rows = files_of(frames, "expressivity").by_name["expressivity.csv"].decode().splitlines()
    assert rows[0] == "kernel_size,patch_size,dimensions,causal,num_heads,bound,reached,restarts"
    assert rows[1] == "3,2,1,False,1,0.6,0.6,1" and rows[-1] == "3,2,3,True,27,0.0,1e-08,1"
    cells = [[cell.strip() for cell in row.split("|")] for row in answer_text(frames, KEY).splitlines()]
    counts = {tuple(row[3:5]): row[5] for row in cells if row[1:3] == ["3", "2"]}
    assert counts == {
        ("1", "False"): "3", ("2", "False"): "9", ("3", "False"): "27",
        ("1", "True"): "2", ("2", "True"): "4", ("3", "True"): "8",
    }  # fmt: skip


def test_each_dimension_and_causality_has_its_verdicts(tmp_path: Path) -> None:
    found = verdict_of(frames_of(tmp_path, study(MISSED, dimensions=[1, 2], causal=[False, True])))
    for place in ("K3-P2", "K3-P2-1D", "K3-P2-causal", "K3-P2-1D-causal"):
        assert found[f"heads_enough/{place}"] == found[f"heads_necessary/{place}"] == HOLDS
    for place in ("K3-P2", "K3-P2-causal"):
        assert found[f"dimensions_multiply_heads/{place}"] == HOLDS
    for place in ("K3-P2-causal", "K3-P2-1D-causal"):
        assert found[f"causal_kernels_save_heads/{place}"] == HOLDS
    assert len(found) == 12


def test_a_gap_in_the_grid_leaves_the_number_of_heads_undecided(tmp_path: Path) -> None:
    errors = {heads: MISSED[heads] for heads in (1, 3, 9)}
    found = verdict_of(frames_of(tmp_path, study(errors, dimensions=[1, 2])))
    assert found["dimensions_multiply_heads/K3-P2"] == UNDECIDED, "2 heads along an axis, or 3"
    assert found["heads_enough/K3-P2-1D"] == HOLDS


def test_strides_and_dilations_have_their_verdicts(tmp_path: Path) -> None:
    found = verdict_of(frames_of(tmp_path, study(MISSED, stride=[1, 2], dilation=[1, 2])))
    assert found["strides_save_heads/K3-P2-S2"] == HOLDS
    assert found["dilation_adds_no_heads/K3-P2-D2"] == HOLDS
    assert "dilation_adds_no_heads/K3-P2" not in found


def test_what_all_trials_share_names_their_place_too(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, study(MISSED, shared={"stride": 2}))
    assert set(verdict_of(frames)) == {"heads_enough/K3-P2-S2", "heads_necessary/K3-P2-S2"}
    text = files_of(frames, "expressivity").by_name["expressivity.md"].decode()
    assert "### K = 3, P = 2, stride 2" in text and "The theorem counts 4 heads" in text


@pytest.mark.parametrize(("floor", "verdict"), [((0.4, 0.4001), HOLDS), ((0.4, 0.45), UNDECIDED), ((0.4, 0.39), FAILS)])
def test_windows_lose_what_crosses_and_nothing_else(tmp_path: Path, floor: tuple[float, float], verdict: str) -> None:
    """A layer in windows has no zero error, and the claims about heads that reach it are not judged there."""
    fake = study(MISSED, window_size=[None, 2])
    for trial in fake.trials:
        if trial.params["window_size"] == 2 and trial.params["num_heads"] >= 9:
            bound, error = floor
            trial.points[:] = [
                (names.EXPRESSIVITY_ERROR, 9, error, TIME_MS),
                (names.EXPRESSIVITY_BOUND, 9, bound, TIME_MS),
            ]
    frames = frames_of(tmp_path, fake)
    found = verdict_of(frames)
    assert found == {
        "heads_enough/K3-P2": HOLDS, "heads_necessary/K3-P2": HOLDS, "windows_lose_what_crosses/K3-P2-W2": verdict
    }  # fmt: skip
    lines = files_of(frames, "expressivity").by_name["expressivity.csv"].decode().splitlines()
    assert lines[0].split(",")[2] == "window_size" and {line.split(",")[2] for line in lines[1:]} == {"auto", "2"}


def test_the_figure_has_a_row_of_dimensions(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, study(MISSED, dimensions=[1, 2, 3], causal=[False, True]))
    panels = draw(studies_of(frames, "expressivity")).axes
    titles = [panel.texts[0].get_text().partition("K = ")[2].partition("; ")[0] for panel in panels]
    along, causal = ("1-D", "2-D", "3-D"), ", causal"
    assert titles == [*(f"3, P = 2, {text}" for text in along), *(f"3, P = 2, {text}{causal}" for text in along)]


def test_another_axis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TableError, match="varies fit_steps, kernel_size, num_heads, patch_size; this table shows kernel_size"
    ):
        studies_of(frames_of(tmp_path, study(MISSED, fit_steps=[100, 200])), "expressivity")


@pytest.mark.parametrize(
    ("case", "heads"),
    [
        (Case(3, 16), 9),
        (Case(3, 16, dimensions=3), 27),
        (Case(3, 2, stride=2), 4),
        (Case(7, 4, stride=2), 9),
        (Case(3, 4, dimensions=1, dilation=16), 3),
        (Case(3, 2, dimensions=1, causal=True), 2),
        (Case(5, 1, window_size=2), 9),
        (Case(3, 2, window_size=1), 1),
    ],
)
def test_heads_of_a_case(case: Case, heads: int) -> None:
    """The issue's own numbers; in windows of w only offsets below w occur."""
    assert case.heads == heads
