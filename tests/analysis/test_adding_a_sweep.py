"""A sweep's tables, figure and claims are added as CONTRIBUTING says: one file, found by name; else general ones.

The recipe is followed in a copy of the package, which then makes the tables of a store as a process of its own.
"""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cvit import vocabulary as names
from cvit.analysis.statistics.verdicts import HOLDS, UNDECIDED
from tests.support.fake_studies import TIME_MS, FakeStudy, FakeTrial, squeezed, trainings, write_journal

ROOT = Path(__file__).resolve().parents[2]
SCHEMES = ["random", "two_phase"]
QUESTION = '''
"""The sweep mlp_width: accuracy by the hidden width of the MLP."""

from collections.abc import Iterator

from cvit.analysis.display.accuracy_tables import Column, Layout
from cvit.analysis.questions import POINTS, Claim, Question
from cvit.analysis.statistics.pairs import Family, differences, judged_family
from cvit.analysis.statistics.studies import BASELINE, Study
from cvit.analysis.store.axes import SCHEME


def _wider_is_better(study: Study) -> Iterator[Family]:
    narrow, *wider = study.values("mlp_ratio")
    at = {SCHEME: BASELINE}
    family = [differences(study, at | {"mlp_ratio": ratio}, at | {"mlp_ratio": narrow}) for ratio in wider]
    yield judged_family(map(str, wider), family, line=0.0)


QUESTION = Question(
    axes=("mlp_ratio", SCHEME),
    layout=Layout(
        columns=(Column("hidden units", ("hidden_units",), lambda study, at: (round(48 * at["mlp_ratio"]),)),),
        notes="Hidden units are those of one block.",
    ),
    claims=(
        Claim(
            name="wider_is_better",
            statement="A wider MLP is more accurate",
            unit=POINTS,
            judge=_wider_is_better,
            rule="The narrowest MLP is the one compared with.",
        ),
    ),
)
'''
FIGURE = '''
"""The figure of the sweep mlp_width."""

from cvit.analysis.display.figure_style import new_figure


def draw(studies):
    with new_figure(1.0) as figure:
        figure.text(0, 0.5, f"a figure of its own for {studies[0].label}")
    return figure
'''
TASK = '''
"""The task `toy`: as a third task would be, with a metric and parameters of its own."""

import dataclasses

from cvit.parameters import option, parameters_of
from cvit.tasks.expressivity import TASK as FIT


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig:
    flavour: str = option("Flavour.", "sweet")
    strength: float = option("Strength.", 1.0)
    seed: int = 0


TASK = dataclasses.replace(
    FIT, name="toy", parameters=parameters_of({"toy": ToyConfig}), metric="toy/loss", compared_by="flavour"
)
'''


def widths(sweep: str, key: str) -> FakeStudy:
    """The accuracy grows by 0.1 from a ratio of 1 to 2 and stays where it is at 4."""
    grid = {"mlp_ratio": [1.0, 2.0, 4.0], "init_scheme": SCHEMES, "seed": [0, 1, 2]}
    return trainings(sweep, key, grid, lambda c: 0.5 + (0.1 + 0.001 * c["seed"]) * (c["mlp_ratio"] > 1))


def toys() -> FakeStudy:
    grid = {"flavour": ["sweet", "sour"], "strength": [0.1, 1.0, 10.0], "seed": [0, 1]}
    trials = []
    for flavour in grid["flavour"]:
        for strength in grid["strength"]:
            for seed in grid["seed"]:
                params = {"flavour": flavour, "strength": strength, "seed": seed}
                loss = (1 + seed) * strength * (2 if flavour == "sour" else 1)
                trials.append(FakeTrial(str(params), params, [("toy/loss", 5, loss, TIME_MS)]))
    return FakeStudy("d" * 16, "toys", [grid], trials, task="toy", question="Which flavour?")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a store, made by a copy of the package in which the recipe is followed."""
    tree = tmp_path_factory.mktemp("tree")
    for package in ("analysis", "cvit"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "cvit/analysis/questions/mlp_width.py").write_text(QUESTION.lstrip())
    (tree / "cvit/analysis/questions/figures/mlp_drawn.py").write_text(FIGURE.lstrip())
    (tree / "cvit" / "tasks" / "toy.py").write_text(TASK.lstrip())
    tasks = tree / "cvit" / "tasks" / "__init__.py"
    tasks.write_text(tasks.read_text().replace('TASK_NAMES = ("training", ', 'TASK_NAMES = ("toy", "training", '))
    sweeps = ("mlp_width", "mlp_plain", "mlp_drawn", "mlp width")
    write_journal(
        tree / "storage", [*(widths(sweep, key * 16) for sweep, key in zip(sweeps, "abce", strict=True)), toys()]
    )
    command = [sys.executable, str(tree / "analysis" / "make_tables.py"), "--storage", "storage", "--out", "out"]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    # The journals have a record of a type that no version has so far.
    said = [line.rpartition(" has ")[2] for line in done.stderr.splitlines()]
    passed_over = "records of type 'of a later version', written by a later version; they are passed over"
    assert (done.returncode, said) == (0, [passed_over] * 5)
    return tree / "out"


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_one_file_gives_a_sweep_its_columns_and_its_claim(out: Path) -> None:
    text = (out / "mlp_width.md").read_text()
    assert "Hidden units are those of one block." in text
    head = next(line for line in text.splitlines() if line.startswith("| mlp ratio"))
    assert head.split("|")[-2].strip() == "hidden units"
    assert [row["hidden_units"] for row in rows(out / "mlp_width.csv")[:3]] == ["48", "48", "96"]
    verdicts = {row["claim"]: row for row in rows(out / "claims.csv")}
    assert list(verdicts)[-2:] == ["wider_is_better/2.0", "wider_is_better/4.0"]  # behind those that have an order
    first = verdicts["wider_is_better/2.0"]
    assert (first["verdict"], float(first["estimate"]), first["source"]) == (
        HOLDS, pytest.approx(0.101), "mlp_width/digits-aaaaaaaa"
    )  # fmt: skip
    assert verdicts["low_data_gain"]["verdict"] == UNDECIDED
    page, claims = (out / "report.html").read_text(), (out / "claims.md").read_text()
    for said in ("A wider MLP is more accurate", "The narrowest MLP is the one compared with."):
        assert said in page and said in claims


def test_a_sweep_without_a_file_has_the_general_table_figure_and_caption(out: Path) -> None:
    text = (out / "mlp_plain.md").read_text()
    assert text.startswith("# mlp_plain\n") and "| 2 | two_phase | 60.1" in squeezed(text)
    assert "hidden units" not in text
    assert [row["mean"] for row in rows(out / "mlp_plain.csv") if row["kind"] == "paired_gain"] == ["0.0"] * 3
    assert {path.suffix for path in out.glob("mlp_plain.*")} == {".md", ".csv", ".tex", ".pdf", ".png", ".svg"}
    caption = "Test accuracy against mlp ratio, a line per init scheme. Means over seeds with 95 % intervals."
    assert (out / "report.html").read_text().count(f"<figcaption>{caption}</figcaption>") == 4


def test_a_figure_of_its_own_is_found_by_name(out: Path) -> None:
    drawn, general = ((out / f"{name}.svg").read_text() for name in ("mlp_drawn", "mlp_plain"))
    assert drawn.count("a figure of its own") == 1 and "test accuracy" not in drawn
    assert "test accuracy" in general


def test_the_trials_of_another_task_are_shown_by_its_metric(out: Path) -> None:
    lines = (out / "toys.md").read_text().splitlines()
    head = next(line for line in lines if line.startswith("| flavour"))
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        "flavour", "strength", "toy loss", "95 % interval", "n", "expected", "diverged", "missing"
    ]  # fmt: skip
    table = rows(out / "toys.csv")
    assert [(row["flavour"], row["strength"], row["mean"]) for row in table[:3]] == [
        ("sour", "0.1", "0.30000000000000004"), ("sour", "1.0", "3.0"), ("sour", "10.0", "30.0")
    ]  # fmt: skip
    assert "init_scheme" not in table[0] and {row["kind"] for row in table} == {"toy/loss"}
    assert "Toy loss against strength, a line per flavour." in (out / "report.html").read_text()
    assert names.TEST_ACCURACY not in (out / "toys.csv").read_text()


def test_no_file_is_called_by_a_name_that_is_no_file_name(out: Path) -> None:
    assert (out / "sweep-mlp-width.md").read_text().startswith("# mlp width\n")
    assert not [path.name for path in out.iterdir() if " " in path.name]
