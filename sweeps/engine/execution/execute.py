"""Runs the stages that are left through one Tuner, and records every result as it comes in."""

import logging
import os
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune.error import TuneError
from ray.tune.execution import class_cache
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler

from cvit.data.datasets import Dataset
from cvit.storage import StorageError
from cvit.vocabulary import STATUS_FAILED, STATUS_PRUNED
from sweeps.engine.execution.cluster import Workers, scratch_folder
from sweeps.engine.execution.faults import fault_of
from sweeps.engine.execution.pack_size import Limits
from sweeps.engine.execution.pruning import AshaPerScheme
from sweeps.engine.execution.searcher import PlanSearcher
from sweeps.engine.execution.timing import Timing
from sweeps.engine.execution.worker import BUSY_S, REPORTS, WAITED_S, PackTrainer
from sweeps.engine.planning.plan import Plan
from sweeps.engine.recording.journal import Journal
from sweeps.engine.recording.record import record
from sweeps.engine.terminal.display import Display

# Of a fault a person sees one line, by the display; Tune would print a traceback each time, and a list at the end.
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)
# Tune hands the driver's AWS keys to its workers, and Ray writes what it hands over into a log. Workers started here
# have them from their environment, those of a cluster have a role or keys of their own.
class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
    {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}
)
# Without an environment of their own for PyTorch Lightning's sake, trials use the processes that Ray starts beforehand.
class_cache.DEFAULT_ENV_VARS.clear()


def execute(
    plan: Plan,
    dataset: Dataset | None,
    storage_url: str,
    workers: Workers,
    limits: Limits,
    journal: Journal,
    display: Display,
    timing: Timing,
) -> None:
    """Trains what `plan.todo` lists; results go to `plan.results`, the journal and the display, and what failed for
    good to `plan.failed`.

    Raises:
        StorageError: the storage cannot be written any more; nothing that was reported is lost.
    """
    pruning = plan.search is not None and plan.search.asha
    settings = {"storage": storage_url, "device": workers.device, "report_every_evaluation": pruning}
    # A member of a pack cannot be stopped on its own.
    searcher = PlanSearcher(plan, settings, {} if pruning else limits, workers.count)
    recorder = _Recorder(plan, searcher, journal, display, timing)
    trainable = tune.with_resources(tune.with_parameters(PackTrainer, dataset=dataset), workers.resources)
    with scratch_folder() as folder:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                reuse_actors=True,
                scheduler=AshaPerScheme(plan, recorder.prune) if pruning else _InOrder(),
            ),
            run_config=tune.RunConfig(
                name=plan.study.sweep,
                storage_path=folder,
                callbacks=[recorder],
                # The state of a stage is in the storage. Tune's own checkpoint at a trial's end would go to this
                # machine's scratch folder, which a worker on another machine cannot write: every trial would fail.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=0),  # the searcher decides what is tried again
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except TuneError as error:
            raise _storage_error_behind(error) or error from None
    for trial in plan.trials:
        lost = [stage.key for stage in trial.stages if stage.key in searcher.failed]
        if lost and plan.status(trial) is None:
            plan.failed[trial.key] = searcher.failed[lost[0]]
            journal.record_end(trial, STATUS_FAILED, {}, plan.failed[trial.key])
    if searcher.storage_fault is not None:
        raise StorageError(f"storage {storage_url!r} cannot be written: {searcher.storage_fault}")


class _InOrder(FIFOScheduler):
    """Tune's own looks through all trials that ever were, at every step of its loop: of ten thousand, milliseconds."""

    def choose_trial_to_run(self, tune_controller: TuneController) -> TuneTrial | None:
        return next((trial for trial in tune_controller.get_live_trials() if trial.status == TuneTrial.PENDING), None)


class _Recorder(tune.Callback):
    """Takes results from Tune's loop to the plan, the journal and the display."""

    def __init__(self, plan: Plan, searcher: PlanSearcher, journal: Journal, display: Display, timing: Timing) -> None:
        self._plan, self._searcher, self._journal, self._display = plan, searcher, journal, display
        self._timing = timing

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks into snapshots that this project never reads.
        return {}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._display.started(trial.trial_id, self._searcher.pack_of(trial.trial_id))

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        if REPORTS not in result:
            return
        self._timing.add(result[BUSY_S], result[WAITED_S])
        for key, report in result[REPORTS]:
            record(self._plan, self._journal, key, report)
            self._searcher.stage_advanced(key)
            if report.result is not None:
                self._searcher.stage_done(key)
            self._display.reported(trial.trial_id, key, report)

    def prune(self, key: str, validation_accuracy: float) -> None:
        """A stage was stopped because it fell behind; so its trials are over."""
        for trial in self._plan.trials_of[key]:
            self._plan.pruned[trial.key] = validation_accuracy
            note = f"stopped early, at {100 * validation_accuracy:.1f} % of the validation images"
            self._journal.record_end(trial, STATUS_PRUNED, {}, note)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._display.ended(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        lines = self._searcher.trial_failed(trial.trial_id, fault_of(*_error_of(trial)))
        self._display.ended(trial.trial_id, lines)


def _storage_error_behind(error: BaseException | None) -> StorageError | None:
    """Tune wraps what its callbacks raise, such as the journal's errors."""
    while error is not None and not isinstance(error, StorageError):
        error = error.__cause__ or error.__context__
    return error


def _error_of(trial: TuneTrial) -> tuple[BaseException | None, str]:
    """The last error of a Tune trial, and all of them as text. Tune's own methods look where Tune copies a trial's
    files to later, if at all."""
    error = None
    if trial.pickled_error_file is not None:
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    return error, Path(trial.error_file).read_text() if trial.error_file is not None else ""
