"""The space of a search: winners at its edges, importances of its parameters, and the winner beside the first trial."""

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

from cvit import vocabulary as names
from cvit.analysis.answers import answer_text
from cvit.analysis.files import files_of
from cvit.analysis.questions import curves_of
from cvit.analysis.statistics.search_space import MIN_TRIALS, edges, importances, space_of
from cvit.analysis.store.journal import load_journal
from cvit.engine.declaration import Choice, Range, Search
from tests.support.fake_studies import TIME_MS, Cell, FakeStudy, Point, trainings, write_journal

KEY = "a" * 16
SPACE = {
    "learning_rate": Range(low=1e-4, high=1e-2, log=True),
    "weight_decay": Range(low=0.0, high=0.2),
    "position_encoding": Choice(values=("relative", "relative+absolute")),
}
TEXT = Search(space=SPACE, trials=4, round_size=4).space_text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"learning_rate": 1.2e-4, "weight_decay": 0.1}, {"learning_rate": "lower"}),
        # 5 % of two decades are a tenth of one; on a linear scale, 0.0005 would lie at the edge.
        ({"learning_rate": 5e-4, "weight_decay": 0.1}, {}),
        ({"learning_rate": 8.1e-3, "weight_decay": 0.1}, {"learning_rate": "upper"}),
        ({"learning_rate": 7.8e-3, "weight_decay": 0.195}, {"weight_decay": "upper"}),
        ({"learning_rate": 2e-2, "weight_decay": 0.3}, {"learning_rate": "upper", "weight_decay": "upper"}),
        ({"learning_rate": 1e-3, "weight_decay": 0.0}, {}),  # nothing lies below zero
        ({"learning_rate": 0.0}, {"learning_rate": "lower"}),
        ({"position_encoding": "relative", "schedule": 3.0}, {}),  # a category; not searched
    ],
)
def test_winners_at_the_edge_of_their_range(settings: dict[str, Any], expected: dict[str, str]) -> None:
    assert edges(space_of(TEXT), settings) == expected


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"x": {"low": 2, "high": 1, "log": false}}', '{"x": 3}'])
def test_an_unreadable_space_is_none(text: str) -> None:
    assert space_of(text) == {}


def test_importances_find_the_parameter_that_matters() -> None:
    draw = random.Random(0)
    drawn = [(10 ** draw.uniform(-4, -2), draw.uniform(0, 0.2), draw.choice(("a", "b"))) for _ in range(MIN_TRIALS)]
    trials = [
        ({"learning_rate": rate, "weight_decay": decay, "kind": kind, "fixed": 1.0}, -abs(decay - 0.1))
        for rate, decay, kind in drawn
    ]
    found = importances(trials, space_of(TEXT))
    assert next(iter(found)) == "weight_decay" and found["weight_decay"] > 0.5
    assert sum(found.values()) == pytest.approx(1) and set(found) == {"weight_decay", "learning_rate", "kind"}
    assert importances(trials, {}).keys() == found.keys()  # ranges follow from the values, too
    assert importances(trials[1:], space_of(TEXT)) == {}


def search(num_trials: int, space: str) -> FakeStudy:
    """A search over the weight decay alone, whose first trial is in the final; the last trial wins."""
    decays = [round(0.19 * number / (num_trials - 1), 4) for number in range(num_trials)]
    seeds = [0, names.FINALIST_SEED, names.FINALIST_SEED + 1]
    grids = [{"init_scheme": ["random"], "weight_decay": [decay], "seed": [0]} for decay in decays]
    grids += [{"init_scheme": ["random"], "weight_decay": [decay], "seed": seeds[1:]} for decay in (0.0, decays[-1])]
    grids.append({"init_scheme": ["random"], "weight_decay": [decays[-1]], "seed": [1, 2]})

    def points(cell: Cell) -> list[Point]:
        value = 0.5 + cell["weight_decay"] if cell["seed"] else 0.4 + 2 * abs(cell["weight_decay"] - 0.09)
        return [(names.VAL_ACCURACY, 20, value, TIME_MS)]

    study = trainings("tuned", KEY, grids, lambda cell: 0.7, points=points)
    study.params[names.FINALISTS] = 2
    study.own_tags = {names.TAG_SEARCH_SPACE: space} if space else {}
    return study


def shown(folder: Path, study: FakeStudy) -> tuple[dict[str, bytes], str]:
    frames = load_journal(write_journal(folder, [study]), curves_of=curves_of)
    return files_of(frames, "tuned").by_name, answer_text(frames, KEY)


def test_tables_and_answer_warn_and_say_what_mattered(tmp_path: Path) -> None:
    space = json.dumps({"weight_decay": {"low": 0.0, "high": 0.2, "log": False}})
    files, answer = shown(tmp_path, search(MIN_TRIALS, space))
    warning = "At the edge of the search: random, weight_decay 0.19 at the upper end of 0 to 0.2."
    texts = [files["tuned.md"].decode(), files["tuned.tex"].decode().replace("\\_", "_"), answer]
    assert all(warning in text for text in texts)
    assert f"random ({MIN_TRIALS} trials)" in texts[0]
    rows = list(csv.DictReader(io.StringIO(files["tuned.csv"].decode())))
    assert [row["at_edge"] for row in rows if row["kind"] == "winner"] == ["weight_decay"]
    assert [(row["weight_decay"], row["n"]) for row in rows if row["kind"] == "importance"] == [("1.0", "20")]
    # The winner is 2 points above the first trial in the search, on one seed, and 19 above it on those of the final.
    (row,) = [line for line in texts[0].splitlines() if "+19.0" in line]
    assert [cell.strip() for cell in row.strip("|").split("|")][1:4] == ["58.0", "60.0", "+2.0"]


def test_too_few_trials_and_an_unknown_space_are_said(tmp_path: Path) -> None:
    files, answer = shown(tmp_path, search(5, ""))
    markdown = files["tuned.md"].decode()
    assert f"Importances need at least {MIN_TRIALS} trials of a search: random 5." in markdown
    assert "The store does not say which ranges were searched" in markdown and "At the edge" not in markdown + answer
