"""ASHA: who is stopped, and that a stopped trial is over, whatever happens next."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler

from cvit import vocabulary as v
from cvit.engine.execution.pruning import STEP, may_prune
from cvit.engine.execution.queue import StageQueue
from cvit.engine.execution.schedulers import AshaPerScheme
from cvit.engine.planning.plan import Plan
from cvit.engine.planning.progress import Outcome, Progress
from cvit.engine.planning.search import validation_accuracy
from sweeps.tuned import SWEEP
from tests.support.plans import make_progress
from tests.support.scripts import journal, mlflow_runs, sweep, sweep_with_ray

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    return make_progress(tmp_path, "--preset", "smoke", "--asha", "--init-scheme", "random", "two_phase", sweep=SWEEP)


@pytest.fixture
def plan(progress: Progress) -> Plan:
    return progress.plan


class Driven:
    """The scheduler as Tune drives it: results of real Tune trials, without a cluster."""

    def __init__(self, plan: Plan) -> None:
        self.pruned: dict[str, float] = {}
        self._plan, self._scheduler = plan, AshaPerScheme(plan, self.pruned.__setitem__)
        self._trials: dict[str, TuneTrial] = {}

    def result(self, scheme: str, number: int, step: int, accuracy: float | None) -> str:
        own = [trial for trial in self._plan.trials if trial.cell["init_scheme"] == scheme]
        stage = own[number].stages[0]
        if stage.key not in self._trials:
            self._trials[stage.key] = TuneTrial("pack", config={"pack": (stage,)}, stub=True)
        measured: dict[str, Any] = {} if accuracy is None else {STEP: step, v.VAL_ACCURACY: accuracy}
        return self._scheduler.on_trial_result(None, self._trials[stage.key], measured)


def test_a_trial_behind_others_of_its_scheme_is_stopped_from_the_first_rung_on(progress: Progress) -> None:
    """Trials have 40 steps, so the first rung is at 10."""
    driven = Driven(progress.plan)
    assert driven.result("random", 0, 5, 0.9) == CONTINUE
    assert driven.result("random", 1, 5, 0.1) == CONTINUE
    assert driven.result("random", 0, 10, 0.9) == CONTINUE
    assert driven.result("random", 1, 10, None) == CONTINUE, "nothing measured, nothing to judge"
    assert driven.result("two_phase", 0, 10, 0.2) == CONTINUE, "other schemes do not count"
    assert driven.pruned == {}
    assert driven.result("random", 1, 10, 0.1) == STOP
    (behind,) = (
        t.stages[0].key
        for t in progress.plan.trials
        if t.cell["init_scheme"] == "random" and t.stages[0].key in driven.pruned
    )
    assert driven.pruned == {behind: 0.1}


def test_finalists_and_winners_are_trained_to_their_ends(progress: Progress) -> None:
    """However far they fall behind: what ASHA spared would be compared with what it has judged."""
    assert may_prune(progress)
    study = progress.plan.study
    final = [study.trial_at({**trial.cell, "seed": v.FINALIST_SEED}) for trial in progress.plan.trials]
    progress.plan = replace(progress.plan, trials=tuple(final))
    driven = Driven(progress.plan)
    for number, accuracy in ((0, 0.9), (1, 0.1)):
        assert driven.result("random", number, 10, accuracy) == CONTINUE
    assert driven.pruned == {} and not may_prune(progress)


def test_the_best_is_never_stopped_not_even_at_its_end(progress: Progress) -> None:
    driven = Driven(progress.plan)
    for step in (10, 20, 40):
        driven.result("random", 1, step, 0.3)
        assert driven.result("random", 0, step, 0.5) == CONTINUE


def test_a_pruned_trial_is_over_and_so_are_its_later_phases(progress: Progress) -> None:
    trial = next(trial for trial in progress.plan.trials if trial.cell["init_scheme"] == "two_phase")
    queue = StageQueue(progress, {})
    suggested: list[str] = []
    while (pack := queue.next_pack(str(len(suggested)))) is not None:
        suggested += [stage.key for stage in pack]
    progress.pruned[trial.key] = 0.25
    for number in range(len(suggested)):
        queue.pack_ended(str(number))
    assert trial.stages[0].key in suggested and trial.stages[1].key not in suggested
    assert progress.status(trial) == v.STATUS_PRUNED
    assert validation_accuracy(progress, trial) == 0.25
    outcomes = queue.outcomes()
    assert outcomes[trial.stages[0].key] == Outcome("pruned")
    assert "failed" not in {outcome.kind for outcome in outcomes.values()}


def test_a_search_with_asha_stops_some_and_trains_nothing_again(tmp_path: Path, ray_address: str) -> None:
    tiny = ("--embed-dim", "16", "--head-dim", "4", "--batch-size", "16", "--min-steps", "32", "--evaluations", "4")
    options = ("--preset", "smoke", "--asha", "--search-trials", "2", "--init-scheme", "random", "two_phase", *tiny)
    sweep_with_ray(tmp_path, *options, "--address", ray_address, script="sweeps/tuned.py")
    ends = {r["trial_key"]: r["status"] for r in journal(tmp_path, "tuned") if r["type"] == v.RECORD_END}
    assert set(ends.values()) <= {v.STATUS_OK, v.STATUS_PRUNED, v.STATUS_DIVERGED}
    runs = mlflow_runs(tmp_path, v.ROLE_TRIAL, "tuned")
    assert {run.data.tags[v.TAG_TRIAL_KEY]: run.data.tags[v.TAG_STATUS] for run in runs} == ends
    seeds = {run.data.tags[v.TAG_TRIAL_KEY]: int(run.data.params["seed"]) for run in runs}
    searched = [ends[key] for key, seed in seeds.items() if seed == v.SEARCH_SEED]
    final = [ends[key] for key, seed in seeds.items() if seed >= v.FINALIST_SEED]
    assert len(searched) == 2 * 2 and len(final) == 2 * (len(searched) - searched.count(v.STATUS_PRUNED))
    assert len(ends) == len(searched) + len(final) + 2, "and a winner of each scheme"
    others = {ends[key] for key, seed in seeds.items() if seed != v.SEARCH_SEED}
    assert others <= {v.STATUS_OK, v.STATUS_DIVERGED}, "none is stopped early"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "storage/stages").rglob("*.*")}
    sweep(tmp_path, *options, "--address", ray_address, script="sweeps/tuned.py")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "storage/stages").rglob("*.*")} == before
