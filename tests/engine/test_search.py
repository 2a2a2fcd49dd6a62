"""Searches: what each round tries follows from the results alone, and only validation accuracy decides."""

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from cvit.engine.declaration import Choice
from cvit.engine.execution.pack_size import pack_limits
from cvit.engine.execution.queue import StageQueue
from cvit.engine.execution.workers import this_process
from cvit.engine.planning.plan import MOST_TRIALS
from cvit.engine.planning.progress import Progress
from cvit.engine.planning.rounds import rounds
from cvit.engine.planning.search import next_plan, validation_accuracy
from cvit.engine.planning.trials import Trial
from cvit.settings import SearchResult, Winner, settings_text
from cvit.stages import depends_on
from cvit.storage import Storage
from cvit.vocabulary import FINALIST_SEED, SEARCH_SEED, TEST_ACCURACY, VAL_ACCURACY
from sweeps.tuned import SPACE, SWEEP
from tests.support.plans import make_progress, walk

TINY = (
    *("--preset", "smoke", "--search-trials", "5", "--seeds", "2", "--embed-dim", "16", "--depth", "1"),
    *("--head-dim", "4", "--batch-size", "16", "--epochs", "0", "--min-steps", "8", "--evaluations", "2"),
    *("--max-test-images", "20"),
)
SCHEMES = ("random", "two_phase")
TRIED = [2, 4, 5, 5, 5]
"""Trials of the search per scheme in each round: three of the search, the final, the winners."""
FINAL_SEEDS = [FINALIST_SEED, FINALIST_SEED + 1]


def search(folder: Path, stop_after: int | None = None, options: tuple[str, ...] = TINY) -> list[Progress]:
    """The progress in each round of a search from its start, each run to its end; the last one is not, where the search
    is stopped after so many."""
    progress, seen = make_progress(folder, *options, sweep=SWEEP), []
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


def searched(progress: Progress, scheme: str) -> list[Trial]:
    return [t for t in progress.plan.trials if t.cell["init_scheme"] == scheme and t.cell["seed"] == SEARCH_SEED]


def accuracy(progress: Progress, trial: Trial) -> float:
    points = progress.results[trial.stages[-1].key].points
    return [value for metric, _, value, _ in points if metric == VAL_ACCURACY][-1]


def test_every_scheme_gets_the_same_number_of_trials_in_rounds(seen: list[Progress]) -> None:
    counts = [{scheme: len(searched(progress, scheme)) for scheme in SCHEMES} for progress in seen]
    assert counts == [{"random": n, "two_phase": n} for n in TRIED]


def test_what_is_tried_lies_in_the_space_and_differs(seen: list[Progress]) -> None:
    tried = [trial for trial in seen[-1].plan.trials if trial.cell["seed"] == SEARCH_SEED]
    for scheme in SCHEMES:
        for trial in searched(seen[-1], scheme)[1:]:
            for name, within in SPACE.items():
                value = trial.cell[name]
                if not depends_on(scheme, name):
                    assert value == {"attention_sharpness": 4.0, "convolution_learning_rate": None}.get(name, value)
                elif isinstance(within, Choice):
                    assert value in within.values
                else:
                    assert within.low <= value <= within.high
    ignored = {name for name in SPACE if not depends_on("random", name)}
    assert ignored >= {"attention_sharpness", "convolution_learning_rate", "transferred_learning_rate_factor"}
    assert all(len({t.cell[name] for t in searched(seen[-1], "random")}) == 1 for name in ignored)
    assert len({tuple(trial.cell.values()) for trial in tried}) == len(tried) == 10


def test_the_first_trial_has_the_settings_that_the_scheme_has_already(seen: list[Progress], tmp_path: Path) -> None:
    preset = SWEEP.presets["smoke"]
    for scheme in SCHEMES:
        own = preset.scheme_settings.get(scheme, {})
        first = searched(seen[0], scheme)[0]
        defaults = {
            "learning_rate": 1e-3,
            "weight_decay": 0.05,
            "position_encoding": "relative",
            "schedule": "per_phase",
        }
        assert {name: first.cell[name] for name in defaults} == defaults | {n: own[n] for n in own if n in defaults}
        assert own or scheme == "two_phase", "the file of the presets has settings for it"
    known = {"learning_rate": 0.5, "optimizer_state": "carried"}  # the rate is beyond the space
    result = SearchResult(dataset="digits", schemes={"two_phase": Winner(settings=known)})
    (tmp_path / "known.json").write_text(settings_text([result]))
    options = (*TINY, "--settings-from", str(tmp_path / "known.json"))
    progress = make_progress(tmp_path, *options, sweep=SWEEP)
    first = searched(progress, "two_phase")[0]
    assert {name: first.cell[name] for name in known} == known
    walk(progress, tmp_path)
    plan = next_plan(progress)
    assert plan is not None, "what lies beyond the space is no obstacle"
    assert all(trial.cell["learning_rate"] < 0.1 for trial in plan.trials[len(progress.plan.trials) :])


def test_no_settings_are_tried_twice(seen: list[Progress], tmp_path: Path) -> None:
    """As when the winner of a search, which proposes the same again, has become the settings of the preset."""
    winner = searched(seen[0], "two_phase")[1]
    settings = {name: winner.cell[name] for name in SPACE}
    result = SearchResult(dataset="digits", schemes={"two_phase": Winner(settings=settings)})
    (tmp_path / "won.json").write_text(settings_text([result]))
    progress = make_progress(tmp_path, *TINY, "--settings-from", str(tmp_path / "won.json"), sweep=SWEEP)
    first, second = searched(progress, "two_phase")
    assert {name: first.cell[name] for name in SPACE} == settings
    assert {name: second.cell[name] for name in SPACE} != settings


def test_the_final_is_among_the_best_on_other_seeds_and_their_mean_decides(seen: list[Progress]) -> None:
    progress = seen[-1]
    for scheme in SCHEMES:
        tried = searched(progress, scheme)
        accuracies = {trial.key: accuracy(progress, trial) for trial in tried}
        assert accuracies == {trial.key: validation_accuracy(progress, trial) for trial in tried}
        best = sorted(tried, key=lambda trial: -accuracies[trial.key])[:2]
        others = [t for t in progress.plan.trials if t.cell["init_scheme"] == scheme and t not in tried]
        final = [trial for trial in others if trial.cell["seed"] in FINAL_SEEDS]
        of_best = {t.key: [o for o in final if {**o.cell, "seed": 0} == t.cell] for t in best}
        assert [[o.cell["seed"] for o in of_best[t.key]] for t in best] == [FINAL_SEEDS] * 2
        assert len(final) == 4
        means = [fmean(accuracy(progress, trial) for trial in of_best[t.key]) for t in best]
        winner = best[means.index(max(means))]
        fresh = [trial for trial in others if trial not in final]
        assert [t.cell["seed"] for t in fresh] == [1, 2], "neither the search's nor the final's"
        assert all({**t.cell, "seed": 0} == winner.cell for t in fresh)
    assert FINALIST_SEED >= MOST_TRIALS, "seeds count from 0, so no sweep has so many fresh ones"


def with_values(progress: Progress, metric: str, change: Callable[[float], float]) -> Progress:
    """The progress as it would be, had a metric had other values."""
    results = {
        key: dataclasses.replace(
            result,
            points=[(name, step, change(v) if name == metric else v, ms) for name, step, v, ms in result.points],
        )
        for key, result in progress.results.items()
    }
    return replace(progress, results=results)


def test_test_images_play_no_part(seen: list[Progress]) -> None:
    """With every test accuracy turned upside down, each round follows as before; with validation, none does."""
    for before, after in itertools.pairwise(seen):
        assert any(name == TEST_ACCURACY for result in before.results.values() for name, *_ in result.points)
        plan = next_plan(with_values(before, TEST_ACCURACY, lambda value: 1 - value))
        assert plan is not None and [t.key for t in plan.trials] == [t.key for t in after.plan.trials]
    for number in (-3, -2):  # what decides on finalists, and on winners
        plan = next_plan(with_values(seen[number], VAL_ACCURACY, lambda value: 1 - value))
        assert plan is not None and [t.key for t in plan.trials] != [t.key for t in seen[number + 1].plan.trials]


def test_an_interrupted_search_tries_the_same_as_one_that_was_not(
    seen: list[Progress], folder: Path, tmp_path: Path
) -> None:
    assert len(search(tmp_path, stop_after=4)) == 4, "it stops before the final"
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
    old = [trial.key for trial in seen[2].plan.trials]
    assert {trial.key for trial in progress.plan.trials} >= set(old[: 2 * 4]), "whole rounds are the same"
    assert progress.plan.study.key == seen[-1].plan.study.key


def test_one_trial_needs_no_final(tmp_path: Path) -> None:
    seen = search(tmp_path, options=tuple({"5": "1"}.get(option, option) for option in TINY))
    assert [[t.cell["seed"] for t in progress.plan.trials] for progress in seen] == [[0, 0], [0, 0, 1, 1, 2, 2]]


def test_a_round_trains_in_as_few_packs_as_there_are_shapes(tmp_path: Path) -> None:
    """So a GPU is given all proposals of a round at once; both schemes' proposals differ in every searched value."""
    progress = make_progress(tmp_path, "--preset", "laptop", sweep=SWEEP)
    queue = StageQueue(progress, pack_limits(progress.todo, this_process("cpu"), 64))
    packs = []
    while (pack := queue.next_pack(str(len(packs)))) is not None:
        packs.append(pack)
    # Attention over all steps (random, conv_structured) and the twin's phase, each with and without an embedding.
    assert len(packs) == len({stage.shape for pack in packs for stage in pack}) <= 4
    assert sum(map(len, packs)) == 3 * 8
