"""ASHA (Li et al. 2020) for searches: trials that fall behind others of their init scheme are stopped early.

It is off by default. The trials that it stops depend on the order in which results come in, so two runs of the same
search may differ; without it, a search depends on its results alone. Finalists and winners are trained to their ends.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from cvit.engine.execution.queue import StagePack
from cvit.engine.planning.plan import Plan
from cvit.engine.planning.progress import Progress
from cvit.vocabulary import SEARCH_SEED, VAL_ACCURACY

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial
    from ray.tune.schedulers import AsyncHyperBandScheduler

REDUCTION_FACTOR = 2
FIRST_RUNG = 0.25
"""The share of a trial's steps after which it can be stopped."""
STEP = "step"
"""The key under which a Tune result holds the optimiser steps of the trial, both phases together."""


def may_prune(progress: Progress) -> bool:
    """True if the stages to train belong to trials that ASHA may stop."""
    search = progress.plan.search
    if search is None or not search.asha:
        return False
    return any(_is_of_search(progress.plan, stage.key) for stage in progress.todo)


def _is_of_search(plan: Plan, key: str) -> bool:
    """True if a stage belongs to a trial of the search, and not to one of a finalist or a winner."""
    return plan.trials_of[key][0].cell["seed"] == SEARCH_SEED


class Asha:
    """One ASHA per init scheme, so that a scheme that learns late is not judged by one that learns early. It is Ray
    Tune's, which needs no running Ray.

    Trials are compared with those of the same round.
    """

    def __init__(self, plan: Plan, prune: Callable[[str, float], None]) -> None:
        """
        Args:
            prune: called with the key of a stage that is stopped and its validation accuracy.
        """
        self._plan, self._prune = plan, prune
        self._by_scheme: dict[str, AsyncHyperBandScheduler] = {}
        self._trials: dict[str, TuneTrial] = {}

    def stops(self, name: str, pack: StagePack, step: int, accuracy: float) -> bool:
        """True if a pack, of one stage, has fallen behind at a step."""
        from ray.tune.schedulers import TrialScheduler  # takes a second, which other sweeps are spared

        if not _is_of_search(self._plan, pack[0].key):
            return False
        scheduler = self._scheduler_of(pack)
        if name not in self._trials:
            self._trials[name] = cast("Any", SimpleNamespace(trial_id=name))  # all that the scheduler reads
            scheduler.on_trial_add(cast("Any", None), self._trials[name])
        result = {STEP: step, VAL_ACCURACY: accuracy}
        decision = scheduler.on_trial_result(cast("Any", None), self._trials[name], result)
        if decision != TrialScheduler.STOP:
            return False
        self._prune(pack[0].key, accuracy)
        return True

    def _scheduler_of(self, pack: StagePack) -> "AsyncHyperBandScheduler":
        from ray.tune.schedulers import AsyncHyperBandScheduler

        owner = self._plan.trials_of[pack[0].key][0]
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
