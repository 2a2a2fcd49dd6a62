"""The cost of a plan's phases on the screen, and the seconds of a stage in the journal."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from cvit.engine.planning.progress import Progress
from cvit.engine.terminal.phases import phase_lines
from cvit.results import load_result
from cvit.storage import Storage
from cvit.vocabulary import SECONDS_OF_PHASE
from sweeps.head_count import EXPRESSIVITY
from tests.support.plans import SMALL, make_plan, make_progress
from tests.support.scripts import TINY, journal, mlflow_runs, sweep

CHANGES = {"--epochs": "16", "--min-steps": "0"}
VARIED = tuple(CHANGES.get(before, option) for before, option in pairwise(("", *SMALL)))
BOTH_UNITS = (*SMALL[:-1], "steps", "flops")


def cells(line: str) -> list[str]:
    return re.split(r"  +", line.strip())


def test_a_line_has_a_phase_of_a_scheme_and_a_range_where_places_differ(tmp_path: Path) -> None:
    head, *lines = phase_lines(make_progress(tmp_path, *VARIED))
    assert cells(head) == ["phases", "scheme, phase", "steps", "S (sum of learning rates)", "FLOPs", "seconds"]
    # 23 and 58 images in batches of 16.
    random, convolution, attention = map(cells, lines)
    assert random[:2] == ["random, attention", "23 to 58"] and random[4] == "-"
    assert convolution[:2] == ["two_phase, convolution", "12 to 29"] and attention[1] == "11 to 29"
    low, high = map(float, random[3].split(" to "))
    assert high / low == pytest.approx(58 / 23, rel=0.01)


def test_a_narrow_terminal_shows_fewer_columns(tmp_path: Path) -> None:
    progress = make_progress(tmp_path, *VARIED)
    assert phase_lines(progress, width=120) == phase_lines(progress)
    heads = {width: cells(phase_lines(progress, width=width)[0])[1:] for width in (90, 70)}
    assert heads[90] == ["scheme, phase", "steps", "FLOPs", "seconds"]
    assert heads[70] == ["scheme, phase", "steps", "seconds"]
    assert all(len(line) <= width for width in heads for line in phase_lines(progress, width=width))


def test_seconds_are_those_that_stages_took_else_those_expected(tmp_path: Path) -> None:
    progress = make_progress(tmp_path, *SMALL)
    expected = phase_lines(progress, lambda stage: 2.0 * stage.steps)
    assert [cells(line)[-1] for line in expected[1:]] == ["about 48", "about 24", "about 24"]
    _, *lines = phase_lines(Progress(progress.plan, {}))
    assert {cells(line)[-1] for line in lines} == {"-"}


def test_a_task_without_learning_rates_to_sum_has_no_lines(tmp_path: Path) -> None:
    assert phase_lines(make_progress(tmp_path, "--num-heads", "9", "--seeds", "1", sweep=EXPRESSIVITY)) == []


def test_trials_of_attention_alone_are_trained_once_for_both_units(tmp_path: Path) -> None:
    plan, alone = make_plan(tmp_path, *BOTH_UNITS), make_plan(tmp_path, *SMALL)
    assert (len(plan.trials), len(alone.trials)) == (16, 8)
    # Of two fractions, two schemes, two seeds: the four stages of random are shared, the eight of two phases are not.
    assert (len(alone.stages), len(plan.stages), len(plan.shared)) == (12, 20, 4)
    assert {trial.cell["init_scheme"] for stage in plan.shared for trial in plan.trials_of[stage.key]} == {"random"}
    assert alone.stages.keys() < plan.stages.keys()


def test_seconds_reach_the_journal_and_mlflow_those_of_earlier_results_too(tmp_path: Path) -> None:
    options = (*TINY, "--min-steps", "8", "--data-fraction", "0.05", "--init-scheme", "two_phase", "--seeds", "1")
    output = sweep(tmp_path, *options)
    assert re.search(r"two_phase, convolution +4 +0\.\d+ +\S+ +-", output)
    plan = make_plan(tmp_path, *options)
    storage = Storage.open(str(tmp_path / "storage"))
    seconds = {}
    for stage in plan.trials[0].stages:
        result = load_result(storage, stage.key)
        assert result is not None
        seconds[f"{SECONDS_OF_PHASE}{stage.phase}"] = result.seconds
    (run,) = mlflow_runs(tmp_path, "trial")
    assert {name: run.data.metrics[name] for name in seconds} == seconds
    points = [point for record in journal(tmp_path) if record["type"] == "points" for point in record["points"]]
    assert {name: value for name, _, value, _ in points if name in seconds} == seconds
    (segment,) = (tmp_path / "storage/journal/low_data").iterdir()
    segment.unlink()  # as of a sweep that has not been run with these results yet
    again = sweep(tmp_path, *options, "--tracking-uri", "none")
    assert "Nothing to train" in again and re.search(r"two_phase, attention +4 +0\.\d+ +\S+ +0?\.?\d", again)
    points = [point for record in journal(tmp_path) if record["type"] == "points" for point in record["points"]]
    assert {name: value for name, _, value, _ in points if name in seconds} == seconds
