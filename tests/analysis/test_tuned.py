"""The sweep tuned, by hand-worked numbers: who is in the final, who wins, and the file of the winners."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from cvit import vocabulary as names
from cvit.analysis.answers import answer_text
from cvit.analysis.files import files_of
from cvit.analysis.questions import curves_of, tuned
from cvit.analysis.statistics.studies import read_studies
from cvit.analysis.store.frames import Frames
from cvit.analysis.store.journal import load_journal
from cvit.settings import read_settings
from cvit.vocabulary import FINALIST_SEED
from tests.support.fake_studies import TIME_MS, Cell, FakeStudy, Point, trainings, write_journal

SCHEMES = ["random", "two_phase"]
KEY = "a" * 16


def frames_of(folder: Path, *studies: FakeStudy) -> Frames:
    return load_journal(write_journal(folder, studies), curves_of=curves_of)


def rows_of_csv(files: dict[str, bytes]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(files["tuned.csv"].decode())))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tuned_study() -> FakeStudy:
    """Per scheme three searched learning rates; the best on validation diverges for two phases. An earlier winner has
    been tested too. The third fresh seed of two phases has not been started."""
    tried = {"random": [0.004, 0.001, 0.002], "two_phase": [0.003, 0.001, 0.005]}
    on_validation = {"random": [0.5, 0.6, 0.55], "two_phase": [0.7, 0.65, 0.9]}
    fresh = {("random", 1): 0.6, ("random", 2): 0.61, ("two_phase", 1): 0.7, ("two_phase", 2): 0.73}
    rest = {"weight_decay": [0.1], "warmup_fraction": [0.05], "attention_sharpness": [4.0]}
    grids = []
    for i in range(3):  # the rounds of the search
        grids += [{"init_scheme": [s], "learning_rate": [tried[s][i]], **rest, "seed": [0]} for s in SCHEMES]
    grids.append({"init_scheme": ["random"], "learning_rate": [0.004], **rest, "seed": [1, 2]})
    grids.append({"init_scheme": ["random"], "learning_rate": [0.001], **rest, "seed": [1, 2]})
    grids.append({"init_scheme": ["two_phase"], "learning_rate": [0.003], **rest, "seed": [1, 2, 3]})

    def accuracy(cell: Cell) -> float | None:
        if (cell["init_scheme"], cell["learning_rate"]) == ("two_phase", 0.005):
            return math.nan
        if cell["learning_rate"] == 0.004:
            return 0.99
        return 0.1 if cell["seed"] == 0 else fresh.get((cell["init_scheme"], cell["seed"]))

    def points(cell: Cell) -> list[Point]:
        place = tried[cell["init_scheme"]].index(cell["learning_rate"])
        return [(names.VAL_ACCURACY, 20, on_validation[cell["init_scheme"]][place], TIME_MS)]

    return trainings("tuned", KEY, grids, accuracy, points=points)


def test_winners_are_chosen_on_validation_and_tested_on_fresh_seeds(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, tuned_study())
    (study,) = read_studies(frames, "tuned")
    random, two_phase = tuned.searches(study)
    assert [result.value for result in random.tried] == [0.5, 0.6, 0.55]  # as searched, not by learning rate
    assert [result.value for result in two_phase.tried] == [0.7, 0.65, 0.0]  # the best diverged: the worst
    assert random.winner and random.winner.place["learning_rate"] == 0.001
    assert two_phase.winner and two_phase.winner.place["learning_rate"] == 0.003
    assert [result.value for result in random.fresh] == [0.6, 0.61]
    gain = tuned.gain([random, two_phase])
    assert gain is not None and gain.estimate.n == 2
    assert gain.estimate.mean == pytest.approx(0.11)


def test_a_pruned_trial_is_tried_does_not_win_and_is_not_missing(tmp_path: Path) -> None:
    study = tuned_study()
    best = next(t for t in study.trials if t.params["init_scheme"] == "random" and t.params["learning_rate"] == 0.001)
    assert best.params["seed"] == 0
    best.status = names.STATUS_PRUNED
    (shown,) = read_studies(frames_of(tmp_path, study), "tuned")
    random, _ = tuned.searches(shown)
    assert [result.value for result in random.tried] == [0.5, 0.0, 0.55]
    assert random.winner and random.winner.place["learning_rate"] == 0.002
    assert best.params["learning_rate"] not in [r.place["learning_rate"] for r in shown.missing if r.seed == 0]


def test_tables_and_figure_of_tuned(tmp_path: Path) -> None:
    from cvit.analysis.questions.figures.tuned import draw

    frames = frames_of(tmp_path, tuned_study())
    files = files_of(frames, "tuned").by_name
    assert set(files) == {f"tuned.{kind}" for kind in ("md", "csv", "tex", "pdf", "png", "svg", "json")}
    rows = rows_of_csv(files)
    assert [row["kind"] for row in rows] == ["search"] * 3 + ["winner"] + ["search"] * 3 + ["winner", "paired_gain"]
    assert (rows[7]["init_scheme"], rows[7]["tried"], rows[7]["validation_accuracy"]) == ("two_phase", "3", "0.7")
    assert (rows[7]["n"], rows[7]["expected"], rows[8]["n"]) == ("2", "3", "2")
    answer = answer_text(frames, KEY).splitlines()
    assert [cells(line)[:5] for line in answer[2:4]] == [
        ["random", "3", "0", "-", "60.0"],
        ["two_phase", "3", "1", "-", "70.0"],
    ]
    assert [cells(line) for line in answer[5:6] + answer[7:]][:3] == [
        ["setting of the winner", "random", "two_phase"],
        ["attention_sharpness", "-", "4"],
        ["learning_rate", "0.001", "0.003"],
    ]
    assert answer[-1] == "Missing: 1 of 13 trials."
    markdown = files["tuned.md"].decode()
    assert "- two_phase, settings of trial 1, seed 3: not started" in markdown and markdown.count("Missing") == 1
    searched, fresh, course = draw(read_studies(frames, "tuned")).axes
    tried, first, _ = searched.lines[:3]
    assert np.asarray(tried.get_xdata()).tolist() == pytest.approx([50, 60, 55])
    assert np.asarray(first.get_xdata()).tolist() == pytest.approx([50])
    assert np.asarray(course.lines[0].get_ydata()).tolist() == pytest.approx([50, 60, 60])
    assert np.asarray(fresh.lines[0].get_xdata()).tolist() == pytest.approx([60, 61])


def study_with_a_final() -> FakeStudy:
    """The three best learning rates of random on one seed, of which two are in the final: the second wins there. For
    two phases, one of the final's trials diverged and one has not ended."""
    seeds = [FINALIST_SEED, FINALIST_SEED + 1]
    final = {
        ("random", 0.002, 0): 0.7, ("random", 0.002, 1): 0.6, ("random", 0.001, 0): 0.7, ("random", 0.001, 1): 0.66,
        ("two_phase", 0.002, 0): 0.9, ("two_phase", 0.002, 1): 0.9, ("two_phase", 0.001, 0): 0.7,
        ("two_phase", 0.001, 1): 0.7,
    }  # fmt: skip
    tried = {0.003: 0.5, 0.002: 0.8, 0.001: 0.75, 0.004: 0.1}
    rates = [0.002, 0.001]
    rest = {"convolution_learning_rate": [None, 0.01], "position_encoding": ["relative"]}
    grids = [{"init_scheme": [*SCHEMES], "learning_rate": list(tried), **rest, "seed": [0]}]
    grids[0]["convolution_learning_rate"] = [None]
    grids.append(grids[0] | {"learning_rate": rates, "seed": [0, *seeds]})
    grids.append(grids[0] | {"learning_rate": [0.001], "seed": [0, 1, 2]})

    def accuracy(cell: Cell) -> float | None:
        place = (cell["init_scheme"], cell["learning_rate"], cell["seed"] - FINALIST_SEED)
        if place == ("two_phase", 0.002, 1):
            return math.nan
        return 0.5 if cell["seed"] in (1, 2) else 0.99

    def points(cell: Cell) -> list[Point]:
        value = tried[cell["learning_rate"]]
        if cell["seed"] >= FINALIST_SEED:
            value = final[cell["init_scheme"], cell["learning_rate"], cell["seed"] - FINALIST_SEED]
        return [(names.VAL_ACCURACY, 20, value, TIME_MS)]

    study = trainings("tuned", KEY, grids, accuracy, points=points, data_fraction=0.05, data_fingerprint="abc")
    study.params["finalists"] = 2
    study.code_version = "0.1.0+abc"
    for trial in study.trials:
        trial.tags[names.TAG_CODE_VERSION] = "0.1.0+abc"
    return study


def test_the_mean_of_the_final_decides_and_not_the_one_seed_of_the_search(tmp_path: Path) -> None:
    (study,) = read_studies(frames_of(tmp_path, study_with_a_final()), "tuned")
    random, two_phase = tuned.searches(study)
    assert [(f.tried.place["learning_rate"], f.mean) for f in random.finalists] == [
        (0.002, pytest.approx(0.65)),
        (0.001, pytest.approx(0.68)),
    ]
    assert random.winner and random.winner.place["learning_rate"] == 0.001 and random.validation == pytest.approx(0.68)
    assert [finalist.mean for finalist in two_phase.finalists] == pytest.approx([0.45, 0.7]), "a diverged trial is 0"
    assert two_phase.winner and two_phase.winner.place["learning_rate"] == 0.001
    assert [result.value for result in random.fresh] == [0.5, 0.5], "the final's trials are none of the fresh ones"


def test_an_unfinished_finalist_has_not_lost_and_does_not_win(tmp_path: Path) -> None:
    made = study_with_a_final()
    unfinished = next(
        t for t in made.trials if t.params["seed"] == FINALIST_SEED and t.params["learning_rate"] == 0.001
    )
    assert unfinished.params["init_scheme"] == "random"
    unfinished.status = None
    (study,) = read_studies(frames_of(tmp_path, made), "tuned")
    random, _ = tuned.searches(study)
    assert math.isnan(random.finalists[1].mean)
    assert random.winner and random.winner.place["learning_rate"] == 0.002 and random.validation == pytest.approx(0.65)


def test_the_winners_are_a_file_that_sweeps_take(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, study_with_a_final())
    path = tmp_path / "tuned.json"
    path.write_bytes(files_of(frames, "tuned").by_name["tuned.json"])
    (search,) = read_settings(path).searches
    assert (search.dataset, search.data_fingerprint, search.data_fraction) == ("digits", "abc", 0.05)
    assert (search.model["embed_dim"], search.training["batch_size"]) == (48, 50)
    assert (search.command, search.code_version) == ("python sweeps/tuned.py --dataset digits --seeds 3", "0.1.0+abc")
    random, two_phase = search.schemes["random"], search.schemes["two_phase"]
    assert random.settings == {"position_encoding": "relative", "learning_rate": 0.001}, "only what matters for it"
    assert two_phase.settings == {**random.settings, "convolution_learning_rate": None}, "not set, not 0"
    assert (random.validation_accuracy, random.seeds, random.trials) == (pytest.approx(0.68), 2, 4)


def test_searches_over_different_parameters_stand_in_one_table(tmp_path: Path) -> None:
    """As in a store of an earlier version, whose searches had four parameters."""
    old, new = tuned_study(), study_with_a_final()
    old.key = f"{KEY}-old"
    for trial in old.trials:
        trial.key = f"old-{trial.key}"
    files = files_of(frames_of(tmp_path, old, new), "tuned").by_name
    header = files["tuned.csv"].decode().splitlines()[0].split(",")
    assert {"weight_decay", "position_encoding", "convolution_learning_rate"} <= set(header)
    assert files["tuned.md"].decode().count("| setting of the winner") == 2
    assert len(json.loads(files["tuned.json"])["searches"]) == 2


def test_a_search_that_has_only_begun_is_shown_without_a_warning(tmp_path: Path) -> None:
    study = tuned_study()
    study.trials = []
    assert len(files_of(frames_of(tmp_path / "none", study), "tuned").by_name) == 6, "without winners, no file of them"
    study.cells = [{name: values[:1] for name, values in study.cells[0].items()}]
    assert len(files_of(frames_of(tmp_path / "one", study), "tuned").by_name) == 6
