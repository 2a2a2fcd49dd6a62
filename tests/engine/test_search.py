"""Searches: what each round tries follows from the results alone, and only validation accuracy decides."""

from dataclasses import replace
from pathlib import Path

import pytest

from cvit.stages import depends_on
from cvit.storage import Storage
from cvit.vocabulary import SEARCH_SEED, VAL_ACCURACY
from sweeps.engine.planning.progress import Progress
from sweeps.engine.planning.rounds import rounds
from sweeps.engine.planning.search import validation_accuracy
from sweeps.tuned import SPACE, SWEEP
from tests.support.plans import make_progress, walk

TINY = (
    *("--preset", "smoke", "--search-trials", "5", "--seeds", "2", "--embed-dim", "16", "--depth", "1"),
    *("--head-dim", "4", "--batch-size", "16", "--epochs", "0", "--min-steps", "8", "--evaluations", "2"),
)
ROUNDS = [2, 4, 5]
"""Trials per scheme after each round of two."""


def search(folder: Path, stop_after: int | None = None) -> list[Progress]:
    """The progress in each round of a search from its start, each run to its end; the last one is not, where the search
    is stopped after so many."""
    progress, seen = make_progress(folder, *TINY, sweep=SWEEP), []
    for number in rounds(progress, Storage.open(str(folder))):
        seen.append(replace(progress))
        if number + 1 == stop_after:
            return seen
        walk(progress, folder)
        seen[-1] = replace(progress)
    return seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[Progress]:
    return search(folder)


def test_every_scheme_gets_the_same_number_of_trials_in_rounds(seen: list[Progress]) -> None:
    counts = [
        {s: sum(t.cell["init_scheme"] == s and t.cell["seed"] == SEARCH_SEED for t in plan.trials) for s in schemes}
        for plan in [progress.plan for progress in seen]
        for schemes in [("random", "two_phase")]
    ]
    assert counts == [{"random": n, "two_phase": n} for n in (*ROUNDS, ROUNDS[-1])]


def test_what_is_tried_lies_in_the_space_and_differs(seen: list[Progress]) -> None:
    tried = [trial for trial in seen[-1].plan.trials if trial.cell["seed"] == SEARCH_SEED]
    for trial in tried:
        for name, within in SPACE.items():
            if depends_on(trial.cell["init_scheme"], name):
                assert within.low <= trial.cell[name] <= within.high
            else:
                assert trial.cell[name] == 4.0, "attention_sharpness of random keeps its default"
    assert len({tuple(trial.cell.values()) for trial in tried}) == len(tried) == 10


def test_the_best_on_validation_images_are_trained_on_fresh_seeds(seen: list[Progress]) -> None:
    progress = seen[-1]
    plan = progress.plan
    for scheme in ("random", "two_phase"):
        own = [t for t in plan.trials if t.cell["init_scheme"] == scheme]
        searched = [t for t in own if t.cell["seed"] == SEARCH_SEED]
        accuracies = []
        for trial in searched:
            points = progress.results[trial.stages[-1].key].points
            accuracies.append([value for metric, _, value, _ in points if metric == VAL_ACCURACY][-1])
        assert accuracies == [validation_accuracy(progress, trial) for trial in searched]
        winner = searched[accuracies.index(max(accuracies))]
        fresh = [t for t in own if t.cell["seed"] != SEARCH_SEED]
        assert [t.cell["seed"] for t in fresh] == [1, 2]
        assert all({**t.cell, "seed": 0} == winner.cell for t in fresh)


def test_an_interrupted_search_tries_the_same_as_one_that_was_not(
    seen: list[Progress], folder: Path, tmp_path: Path
) -> None:
    assert len(search(tmp_path, stop_after=3)) == 3
    resumed = search(tmp_path)
    assert [trial.key for trial in resumed[-1].plan.trials] == [trial.key for trial in seen[-1].plan.trials]
    again = search(folder)
    assert [trial.key for trial in again[-1].plan.trials] == [trial.key for trial in seen[-1].plan.trials]
    assert not again[0].num_ended_here and not again[-1].num_ended_here, "nothing is trained twice"


def test_more_trials_go_on_from_those_that_there_are(seen: list[Progress], folder: Path) -> None:
    six = [{"5": "6"}.get(option, option) for option in TINY]
    progress = make_progress(folder, *six, sweep=SWEEP)
    for _ in rounds(progress, Storage.open(str(folder))):
        if progress.todo:
            break
    old = [trial.key for trial in seen[-2].plan.trials]
    assert {trial.key for trial in progress.plan.trials} >= set(old[: 2 * 4]), "whole rounds are the same"
    assert progress.plan.study.key == seen[-1].plan.study.key
