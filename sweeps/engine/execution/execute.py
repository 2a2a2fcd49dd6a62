"""Training with Ray: one Tuner trains the stages that are left, and every result is recorded as it comes in."""

import logging
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune.error import TuneError
from ray.tune.execution import class_cache
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler

from cvit.provenance import code_version, source_hash
from cvit.storage import StorageError
from sweeps.engine.execution.cluster import scratch_folder
from sweeps.engine.execution.faults import fault_of_trial
from sweeps.engine.execution.follower import Follower
from sweeps.engine.execution.pruning import AshaPerScheme
from sweeps.engine.execution.queue import StageQueue
from sweeps.engine.execution.recorder import Recorder
from sweeps.engine.execution.searcher import PlanSearcher
from sweeps.engine.execution.site import Site
from sweeps.engine.execution.timing import Timing
from sweeps.engine.execution.worker import BUSY_S, REPORTS, WAITED_S, PackTrainer
from sweeps.engine.planning.progress import Outcome, Progress
from sweeps.engine.recording.journal import Journal

# The display prints one line per fault; without this, Tune prints a traceback for each.
logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)
# Tune hands the driver's AWS keys to its workers, and Ray writes them into a log. Workers on this machine inherit the
# keys from the environment; those of a cluster have a role or keys of their own.
class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
    {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}
)
# Tune gives trials an environment of their own, for PyTorch Lightning. Without it, they use the processes that Ray
# starts beforehand.
class_cache.DEFAULT_ENV_VARS.clear()


def train_stages(progress: Progress, journal: Journal, follower: Follower, site: Site) -> dict[str, Outcome]:
    """Trains the stages that the plan still needs, and records every result as it comes in.

    Returns:
        The outcome of each of these stages, by key.

    Raises:
        StorageError: the storage cannot be written any more; nothing that was reported is lost.
    """
    search = progress.plan.search
    prunes = search is not None and search.asha
    # A member of a pack cannot be stopped on its own.
    queue = StageQueue(progress, {} if prunes else site.limits, site.workers.count, site.claims)
    recorder = Recorder(progress, journal, queue, follower)
    settings = {"storage": site.storage.url, "device": site.workers.device, "report_every_evaluation": prunes}
    settings["code"] = (source_hash(), code_version())
    trainable = tune.with_parameters(PackTrainer, dataset=site.dataset)
    with scratch_folder() as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, site.workers.resources),
            tune_config=tune.TuneConfig(
                search_alg=PlanSearcher(queue, settings, recorder.waiting),
                num_samples=-1,
                reuse_actors=True,
                scheduler=AshaPerScheme(progress.plan, recorder.pruned) if prunes else _InOrder(),
            ),
            run_config=tune.RunConfig(
                name=progress.plan.study.sweep,
                storage_path=folder,
                callbacks=[_TuneCallback(recorder, site.timing)],
                # The state of a stage is in the storage. Tune's own checkpoint at a trial's end would go to the scratch
                # folder of this machine, which a worker on another one cannot write: every trial would fail.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=0),  # the queue decides what is retried
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except TuneError as error:
            raise _storage_error_behind(error) or error from None
    if queue.storage_fault is not None:
        raise StorageError(f"storage {site.storage.url!r} cannot be written: {queue.storage_fault}")
    return queue.outcomes()


class _InOrder(FIFOScheduler):
    """Starts trials in the order of their arrival. Tune's own scheduler goes through all trials, ended ones too, at
    every step of its loop: with ten thousand, that takes milliseconds."""

    def choose_trial_to_run(self, tune_controller: TuneController) -> TuneTrial | None:
        return next((trial for trial in tune_controller.get_live_trials() if trial.status == TuneTrial.PENDING), None)


class _TuneCallback(tune.Callback):
    """Passes the workers' reports from Tune's loop to the recorder; a pack's name is the id of its Tune trial."""

    def __init__(self, recorder: Recorder, timing: Timing) -> None:
        self._recorder, self._timing = recorder, timing

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._recorder.started(trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        if REPORTS in result:
            self._timing.add(result[BUSY_S], result[WAITED_S])
            self._recorder.reported(trial.trial_id, result[REPORTS])

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._recorder.ended(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._recorder.failed(trial.trial_id, fault_of_trial(*_error_of(trial)))


def _storage_error_behind(error: BaseException | None) -> StorageError | None:
    """The journal's error, which Tune wraps like everything that its callbacks raise."""
    while error is not None and not isinstance(error, StorageError):
        error = error.__cause__ or error.__context__
    return error


def _error_of(trial: TuneTrial) -> tuple[BaseException | None, str]:
    """The last error of a Tune trial, and all of them as text. They are read from the trial's files: Tune's own methods
    look in the folder to which Tune copies these files later, if at all."""
    error = None
    if trial.pickled_error_file is not None:
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    return error, Path(trial.error_file).read_text() if trial.error_file is not None else ""
