"""ASHA (Li et al. 2020) for searches: trials that fall behind others of their init scheme are stopped early.

It is off by default. The trials that it stops depend on the order in which results come in, so two runs of the same
search may differ; without it, a search depends on its results alone. Finalists and winners are trained to their ends.
"""

from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from cvit.engine.execution.worker import STEP
from cvit.engine.planning.plan import Plan
from cvit.engine.planning.progress import Progress
from cvit.vocabulary import SEARCH_SEED, VAL_ACCURACY

REDUCTION_FACTOR = 2
FIRST_RUNG = 0.25
"""The share of a trial's steps after which it can be stopped."""


def may_prune(progress: Progress) -> bool:
    """True if the stages to train belong to trials that ASHA may stop."""
    search = progress.plan.search
    if search is None or not search.asha:
        return False
    return any(_is_of_search(progress.plan, stage.key) for stage in progress.todo)


def _is_of_search(plan: Plan, key: str) -> bool:
    """True if a stage belongs to a trial of the search, and not to one of a finalist or a winner."""
    return plan.trials_of[key][0].cell["seed"] == SEARCH_SEED


class AshaPerScheme(FIFOScheduler):
    """One ASHA per init scheme, so that a scheme that learns late is not judged by one that learns early.

    Trials are compared with those of the same round.
    """

    def __init__(self, plan: Plan, prune: Callable[[str, float], None]) -> None:
        """
        Args:
            prune: called with the key of a stage that is stopped and its validation accuracy.
        """
        super().__init__()
        self._plan, self._prune = plan, prune
        self._by_scheme: dict[str, AsyncHyperBandScheduler] = {}

    def _scheduler_of(self, trial: TuneTrial) -> AsyncHyperBandScheduler:
        owner = self._plan.trials_of[trial.config["pack"][0].key][0]
        scheme = owner.cell["init_scheme"]
        if scheme not in self._by_scheme:
            self._by_scheme[scheme] = AsyncHyperBandScheduler(
                time_attr=STEP,
                metric=VAL_ACCURACY,
                mode="max",
                max_t=owner.steps,
                grace_period=max(1, round(FIRST_RUNG * owner.steps)),
                reduction_factor=REDUCTION_FACTOR,
                stop_last_trials=False,
            )
        return self._by_scheme[scheme]

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._scheduler_of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        if VAL_ACCURACY not in result or not _is_of_search(self._plan, trial.config["pack"][0].key):
            return TrialScheduler.CONTINUE
        decision = self._scheduler_of(trial).on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP:
            for stage in trial.config["pack"]:
                self._prune(stage.key, result[VAL_ACCURACY])
        return decision
