"""The costs of trials, and claims by cost, by hand-worked numbers, from a journal and from MLflow."""

import csv
import io
import math
from pathlib import Path
from typing import Any

import pytest

from cvit import vocabulary as names
from cvit.analysis.claims import verdicts
from cvit.analysis.files import files_of
from cvit.analysis.questions import curves_of
from cvit.analysis.statistics.verdicts import HOLDS, UNDECIDED
from cvit.analysis.store.frames import Frames
from cvit.analysis.store.journal import load_journal
from cvit.analysis.store.mlflow import load_mlflow
from cvit.config import TrialConfig
from cvit.stages import stages_of
from tests.support.fake_studies import TIME_MS, Cell, FakeStudy, Point, squeezed, trainings, write_journal, write_mlflow

KEY, OTHER_KEY = "a" * 16, "b" * 16
SETTINGS: dict[str, Any] = {"epochs": 0, "min_steps": 20, "learning_rate": 0.01, "warmup_fraction": 0.1}
SECONDS = {"random": {"attention": 40.0}, "two_phase": {"convolution": 5.0, "attention": 25.0}}
STEPS_TO_TARGET = 14


def points(cell: Cell) -> list[Point]:
    """Accuracy rises straight to 0.8, at the same step for both schemes but for a little by seed."""
    end = STEPS_TO_TARGET / 0.9 + 0.01 * int(cell["seed"])
    curve = {step: 0.1 + 0.7 * min(1.0, step / end) for step in range(1, 21)}
    seconds = {} if cell["seed"] == 2 else SECONDS[cell["init_scheme"]]
    return [
        *((names.VAL_ACCURACY, step, value, TIME_MS) for step, value in curve.items()),
        *((f"seconds/{phase}", 20, value + int(cell["seed"]), TIME_MS) for phase, value in seconds.items()),
    ]


def low_data(key: str = KEY, units: tuple[str, ...] = (), **settings: Any) -> FakeStudy:
    """Two phases win 10 points at equal steps and 20 at equal FLOPs. Without units it is a study of before."""
    grid: dict[str, list[Any]] = {"data_fraction": [0.1], "init_scheme": ["random", "two_phase"], "seed": [0, 1, 2]}
    grid |= {"budget_unit": list(units)} if units else {}

    def accuracy(cell: Cell) -> float:
        gain = 0.2 if cell.get("budget_unit") == "flops" else 0.1
        return 0.5 + 0.001 * int(cell["seed"]) + (gain + 0.001 * int(cell["seed"])) * (cell["init_scheme"] != "random")

    made = trainings("low_data", key, grid, accuracy, points=points, **SETTINGS, **settings)
    for trial in made.trials:
        trial.planned_tags[names.TAG_TRAIN_IMAGES] = "115"
    return made


def frames_of(folder: Path, *studies: FakeStudy) -> Frames:
    return load_journal(write_journal(folder / "storage", studies), curves_of=curves_of)


def test_costs_are_in_the_tables_from_either_source(tmp_path: Path) -> None:
    made = low_data()
    write_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", [made])
    stored = load_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", curves_of)
    files = files_of(frames_of(tmp_path, made), "low_data")
    assert files.by_name == files_of(stored, "low_data").by_name
    flat = {k: v for k, v in made.trials[0].params.items() if k != "init_scheme"}
    random, convolution, attention = (
        stage
        for scheme in ("random", "two_phase")
        for stage in stages_of(TrialConfig.from_flat(flat | {"init_scheme": scheme}), 115)
    )
    flops = [stage.steps * (stage.step_flops or 0) for stage in (random, convolution, attention)]
    rows = list(csv.DictReader(io.StringIO(files.by_name["low_data.csv"].decode())))
    costs = [row for row in rows if row["kind"] == "cost"]
    assert [(row["init_scheme"], row["phase"], row["steps"], row["n"]) for row in costs] == [
        *(("random", "attention", "20", "2"), ("two_phase", "convolution", "10", "2")),
        ("two_phase", "attention", "10", "2"),
    ]
    assert [float(row["flops"]) for row in costs] == flops
    # A warm-up of 2 steps has 1.5 peaks in the sum, the cosine of the other 18 has 9.5; or 1 of 10, and 9.
    assert [float(row["learning_rate_sum"]) for row in costs] == pytest.approx([0.11, 0.06, 0.06])
    assert [float(row["seconds"]) for row in costs] == [40.5, 5.5, 25.5]
    assert {row["train_images"] for row in rows} == {"115"}
    assert {row["phase"] for row in rows if row["kind"] != "cost"} == {""}
    assert f"| random | attention | 20 | 0.11 | {flops[0]:.2e} | 40.5 | 2 |" in squeezed(files.markdown)
    assert "No influence on steps, S and FLOPs: training data." in files.markdown


def test_what_an_earlier_store_does_not_say_is_a_dash_or_left_out(tmp_path: Path) -> None:
    made = low_data()
    for trial in made.trials:
        trial.points = [point for point in trial.points if not point[0].startswith("seconds/")]
    markdown = files_of(frames_of(tmp_path / "a", made), "low_data").markdown
    assert "| attention | 20 | 0.11 | " in squeezed(markdown) and " | - | 0 |" in squeezed(markdown)
    for trial in made.trials:
        trial.planned_tags.clear()
    files = files_of(frames_of(tmp_path / "b", made), "low_data")
    assert "Cost of a trial" not in files.markdown
    assert b",phase," not in files.by_name["low_data.csv"]
    judged = {v.claim: v for v in verdicts(frames_of(tmp_path / "c", made))}
    assert judged["trains_faster/0.1"].n == 3
    assert judged["trains_faster_in_flops/0.1"].n == judged["trains_faster_in_seconds/0.1"].n == 0


def test_an_axis_with_influence_on_costs_is_a_column(tmp_path: Path) -> None:
    grid = {"patch_size": [2, 4], "data_fraction": [0.1, 0.2], "init_scheme": ["random"], "seed": [0]}
    made = trainings("plain", KEY, grid, lambda cell: 0.5, **SETTINGS)
    for trial in made.trials:
        trial.planned_tags[names.TAG_TRAIN_IMAGES] = "115"
    markdown = files_of(frames_of(tmp_path, made), "plain").markdown
    assert "| patch size | scheme | phase | steps | S | FLOPs | seconds | n |" in squeezed(markdown)
    assert "No influence on steps, S and FLOPs: training data." in markdown


def test_speed_in_flops_and_in_seconds(tmp_path: Path) -> None:
    """Both schemes reach the target at the same step, 14 of 20, so two phases save what their first 10 steps cost
    less."""
    found = {v.claim: v for v in verdicts(frames_of(tmp_path, low_data()))}
    assert found["trains_faster/0.1"].estimate == pytest.approx(0, abs=1e-9)
    flat = low_data().trials[0].params
    convolution, attention = stages_of(TrialConfig.from_flat(flat | {"init_scheme": "two_phase"}), 115)
    share = (convolution.step_flops or 0) / (attention.step_flops or 0)
    in_flops = found["trains_faster_in_flops/0.1"]
    assert (in_flops.verdict, in_flops.n) == (HOLDS, 3)
    assert in_flops.estimate == pytest.approx(10 * (1 - share) / STEPS_TO_TARGET, abs=2e-3)
    # 5 s and four steps of 2.5 s against 14 of 2 s: 15 of 28; by seed 1, 6 + 4 * 2.6 against 14 * 2.05.
    in_seconds = found["trains_faster_in_seconds/0.1"]
    assert (in_seconds.verdict, in_seconds.n) == (UNDECIDED, 2)
    assert in_seconds.estimate == pytest.approx(1 - math.sqrt(15 / 28 * 16.4 / 28.7), abs=5e-3)


def test_the_gain_at_equal_flops_is_judged_where_a_study_has_it(tmp_path: Path) -> None:
    old, new = low_data(), low_data(OTHER_KEY, ("steps", "flops"))
    new.start_time_ms += 1
    frames = frames_of(tmp_path, old, new)
    found = {v.claim: v for v in verdicts(frames)}
    gain, at_equal_flops = found["low_data_gain/0.1"], found["low_data_gain_at_equal_flops/0.1"]
    assert (gain.verdict, gain.n, gain.source) == (HOLDS, 3, "low_data/digits-bbbbbbbb")
    assert (at_equal_flops.verdict, at_equal_flops.n) == (HOLDS, 3)
    assert (gain.estimate, at_equal_flops.estimate) == (pytest.approx(0.101), pytest.approx(0.201))
    markdown = files_of(frames, "low_data").markdown
    _, of_new, of_old = squeezed(markdown).split("\n## ")
    assert "| two_phase, equal flops | 70.2 " in of_new and "random, equal flops" not in markdown
    assert "equal flops" not in of_old and "| two_phase | 60.2 " in of_old


def test_a_study_whose_setting_is_equal_flops_is_judged_as_that(tmp_path: Path) -> None:
    made = low_data(budget_unit="flops")
    found = {v.claim: v for v in verdicts(frames_of(tmp_path, made))}
    assert found["low_data_gain_at_equal_flops/0.1"].estimate == pytest.approx(0.101)
    assert found["low_data_gain"].verdict == UNDECIDED and found["trains_faster"].n == 0


def test_a_study_of_before_is_judged_as_before(tmp_path: Path) -> None:
    found = {v.claim: v for v in verdicts(frames_of(tmp_path, low_data()))}
    assert (found["low_data_gain/0.1"].verdict, found["low_data_gain/0.1"].n) == (HOLDS, 3)
    missing = found["low_data_gain_at_equal_flops"]
    assert (missing.verdict, missing.source) == (UNDECIDED, "nothing to compare in low_data/digits-aaaaaaaa")
