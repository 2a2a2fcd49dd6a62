"""Training with Ray: one Tuner trains the stages that are left, and every result is recorded as it comes in."""

import functools
import logging
from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.error import TuneError
from ray.tune.execution import class_cache
from ray.tune.schedulers import TrialScheduler

from cvit.engine.execution.actors import patient_tune
from cvit.engine.execution.callback import TuneCallback
from cvit.engine.execution.cluster import scratch_folder
from cvit.engine.execution.faults import TrainingError
from cvit.engine.execution.follower import Follower
from cvit.engine.execution.nodes import Nodes
from cvit.engine.execution.pruning import may_prune
from cvit.engine.execution.queue import StageQueue
from cvit.engine.execution.recorder import Recorder
from cvit.engine.execution.schedulers import AshaPerScheme, InOrder
from cvit.engine.execution.searcher import PlanSearcher
from cvit.engine.execution.site import Site
from cvit.engine.execution.worker import PackTrainer
from cvit.engine.planning.progress import Outcome, Progress
from cvit.engine.recording.journal import Journal
from cvit.provenance import code_version, source_hash
from cvit.storage import StorageError

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

MOST_FAILURES = 3
"""After so many failures of Ray Tune in a row, without a report in between, the training is given up."""
AVOIDED = "avoided"
"""The key under which the configuration of a Tune trial holds the nodes on which it must not run."""
NODE_LABEL = "ray.io/node-id"
"""The label that Ray gives every node: its id."""


def train_stages(progress: Progress, journal: Journal, follower: Follower, site: Site) -> dict[str, Outcome]:
    """Trains the stages that the plan still needs, and records every result as it comes in.

    Returns:
        The outcome of each of these stages, by key.

    Raises:
        StorageError: the storage cannot be written any more; nothing that was reported is lost.
        TrainingError: Ray fails again and again, or no node is left; the same.
    """
    prunes = may_prune(progress)
    # A member of a pack cannot be stopped on its own.
    queue = StageQueue(progress, {} if prunes else site.limits, site.workers.count, site.claims)
    recorder = Recorder(progress, journal, queue, follower)
    nodes = Nodes()
    num_failures = 0
    while not queue.is_finished:
        num_reports = recorder.num_reports
        callback = TuneCallback(recorder, queue, site, nodes)
        scheduler = AshaPerScheme(progress.plan, recorder.pruned) if prunes else InOrder()
        try:
            settings = _settings(progress, site, prunes)
            _fit(_searcher(queue, nodes, recorder, site, settings), scheduler, callback, site)
            break
        except KeyboardInterrupt:
            callback.end_workers()  # else they would go on while the closing text says what is kept
            raise
        # Tune does not survive every error of Ray's. The queue and the storage hold all that matters.
        except Exception as error:  # noqa: BLE001
            if own_error := _own_error_behind(error):
                raise own_error from None
            num_failures = 1 if recorder.num_reports > num_reports else num_failures + 1
            if num_failures == MOST_FAILURES:
                raise TrainingError(_reason(error)) from None
            recorder.noticed(f"{_reason(error)}; the stages that are left are trained by a new start of Ray Tune")
            callback.abandon_all(_reason(error))
    if queue.storage_fault is not None:
        raise StorageError(f"storage {site.storage.url!r} cannot be used: {queue.storage_fault}")
    return queue.outcomes()


def _settings(progress: Progress, site: Site, prunes: bool) -> dict[str, Any]:
    """The entries that the configuration of every worker holds beside its pack."""
    return {
        "sweep": progress.plan.study.sweep,
        "storage": site.storage.url,
        "device": site.workers.device,
        "threads": site.workers.threads,
        "report_every_evaluation": prunes,
        "code": (source_hash(), code_version()),
    }


def _searcher(
    queue: StageQueue, nodes: Nodes, recorder: Recorder, site: Site, settings: Mapping[str, Any]
) -> PlanSearcher:
    def with_avoided() -> dict[str, Any]:
        return {**settings, AVOIDED: nodes.avoided}

    return PlanSearcher(queue, site.workers.most, with_avoided, recorder.waiting)


def _fit(searcher: PlanSearcher, scheduler: TrialScheduler, callback: TuneCallback, site: Site) -> None:
    """Lets Tune train packs until the queue is finished."""
    trainable = tune.with_parameters(PackTrainer, dataset=site.dataset)
    placed = tune.with_resources(trainable, functools.partial(_placement, site.workers.resources))
    placed.__qualname__ = PackTrainer.__qualname__  # Ray names actors by it; Tune leaves a name of its own there
    with scratch_folder() as folder, patient_tune(callback.starts):
        tune.Tuner(
            placed,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                reuse_actors=True,
                scheduler=scheduler,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=folder,
                callbacks=[callback],
                # The state of a stage is in the storage. Tune's own checkpoint at a trial's end would go to the scratch
                # folder of this machine, which a worker on another one cannot write: every trial would fail.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=0),  # the queue decides what is retried
                verbose=0,
            ),
        ).fit()


def _placement(resources: Mapping[str, float], config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """The resources of a worker, on any node but those that are avoided."""
    if not config[AVOIDED]:
        return tune.PlacementGroupFactory([dict(resources)])
    others = {NODE_LABEL: f"!in({','.join(config[AVOIDED])})"}
    return tune.PlacementGroupFactory([dict(resources)], bundle_label_selector=[others])


def _own_error_behind(error: BaseException | None) -> StorageError | TrainingError | None:
    """An error that ends the sweep. Tune wraps it, like everything that its callbacks raise."""
    while error is not None and not isinstance(error, (StorageError, TrainingError)):
        error = error.__cause__ or error.__context__
    return error


def _reason(error: BaseException) -> str:
    """An error of Ray's in one line; the text of a TuneError is a whole traceback."""
    last_line = (str(error).strip().splitlines() or [""])[-1].strip()
    return f"Ray failed: {last_line if isinstance(error, TuneError) else f'{type(error).__name__}: {last_line}'}"
