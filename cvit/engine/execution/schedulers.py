"""The schedulers with which Tune trains packs."""

from collections.abc import Callable
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from cvit.engine.execution.pruning import STEP, Asha
from cvit.engine.planning.plan import Plan
from cvit.vocabulary import VAL_ACCURACY


class InOrder(FIFOScheduler):
    """Starts trials in the order of their arrival. Tune's own scheduler goes through all trials, ended ones too, at
    every step of its loop: with ten thousand, that takes milliseconds."""

    def choose_trial_to_run(self, tune_controller: TuneController) -> TuneTrial | None:
        """The first trial that waits; None if none does."""
        return next((trial for trial in tune_controller.get_live_trials() if trial.status == TuneTrial.PENDING), None)


class AshaPerScheme(FIFOScheduler):
    """Stops the trials that ASHA stops."""

    def __init__(self, plan: Plan, prune: Callable[[str, float], None]) -> None:
        """
        Args:
            prune: called with the key of a stage that is stopped and its validation accuracy.
        """
        super().__init__()
        self._asha = Asha(plan, prune)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Stops or continues a trial. A result without a validation accuracy cannot be judged."""
        if VAL_ACCURACY not in result:
            return TrialScheduler.CONTINUE
        pack = trial.config["pack"]
        stops = self._asha.stops(trial.trial_id, pack, result[STEP], result[VAL_ACCURACY])
        return TrialScheduler.STOP if stops else TrialScheduler.CONTINUE
