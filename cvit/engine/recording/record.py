"""Recording: the reports of stages go to the progress of a sweep and to its journal."""

from collections.abc import Mapping, Sequence

from cvit.engine.planning.progress import Outcome, Progress
from cvit.engine.planning.trials import Trial
from cvit.engine.recording.journal import Journal
from cvit.results import Point, Provenance, Report, StageResult, packed
from cvit.stages import Stage
from cvit.tasks import task_named
from cvit.vocabulary import (
    SECONDS_OF_PHASE,
    STATUS_FAILED,
    STATUS_PRUNED,
    TAG_CODE_VERSION,
    TAG_CPU_CAPABILITY,
    TAG_DEVICE,
    TAG_DIVERGED_STEP,
    TAG_TORCH_VERSION,
)

_UNKNOWN = "unknown"


def record_report(progress: Progress, journal: Journal, key: str, report: Report) -> None:
    """Records a stage's report for all its trials, and the end of the trials that it finishes."""
    trials = progress.plan.trials_of[key]
    journal.record_points(trials, report.points)
    progress.steps[key] = report.step
    if report.result is not None:
        del progress.steps[key]
        journal.record_points(trials, _seconds(progress.plan.stages[key], report.result))
        unfinished = [trial for trial in trials if progress.status(trial) is None]
        progress.results[key] = packed(report.result)
        progress.num_ended_here += sum(progress.status(trial) is not None for trial in unfinished)
        for trial in trials:
            _record_outcome(progress, journal, trial)


def record_known_results(progress: Progress, journal: Journal) -> None:
    """Completes the journal with results that the storage has already: from stages shared with other sweeps, and from
    stages that finished just before a driver was killed."""
    for key, result in progress.results.items():
        points = [*result.points, *_seconds(progress.plan.stages[key], result)]
        journal.record_points(progress.plan.trials_of[key], points)
    for trial in progress.plan.trials:
        _record_outcome(progress, journal, trial)


def record_pruned(progress: Progress, journal: Journal, key: str, validation_accuracy: float) -> None:
    """Records that a stage was stopped early, because it fell behind; this ends its trials."""
    note = f"stopped early, at {100 * validation_accuracy:.1f} % of the validation images"
    for trial in progress.plan.trials_of[key]:
        progress.pruned[trial.key] = validation_accuracy
        progress.num_ended_here += 1
        journal.record_end(trial, STATUS_PRUNED, {}, note)


def record_failures(progress: Progress, journal: Journal, outcomes: Mapping[str, Outcome]) -> None:
    """Records the trials that cannot be finished because one of their stages failed.

    Args:
        outcomes: the outcomes of stages, by key.
    """
    errors = {key: outcome.error for key, outcome in outcomes.items() if outcome.kind == "failed"}
    for trial in progress.plan.trials:
        lines = [errors[stage.key] for stage in trial.stages if stage.key in errors]
        if lines and progress.status(trial) is None:
            progress.failed[trial.key] = lines[0]
            journal.record_end(trial, STATUS_FAILED, {}, lines[0])


def take_up_pruned(progress: Progress, journal: Journal) -> None:
    """Marks the trials that an earlier session stopped early as pruned, if this session prunes too."""
    search = progress.plan.search
    if search is None or not search.asha:
        return
    metric = task_named(progress.plan.study.task).selection_metric
    stopped = {trial.key for trial in progress.plan.trials if journal.status(trial.key) == STATUS_PRUNED}
    values = journal.last_values(metric) if stopped and metric is not None else {}
    progress.pruned.update({key: values.get(key, 0.0) for key in stopped})


def _seconds(stage: Stage, result: StageResult) -> list[Point]:
    """The seconds that a stage took, as a measurement at its end: results of earlier versions have them too."""
    if not result.points:
        return []
    _, step, _, time_ms = result.points[-1]
    return [(f"{SECONDS_OF_PHASE}{stage.phase}", step, result.seconds, time_ms)]


def _record_outcome(progress: Progress, journal: Journal, trial: Trial) -> None:
    """Records the outcome of a trial, if it has ended."""
    status = progress.status(trial)
    if status is None or status == STATUS_PRUNED:
        return
    results = [progress.results[stage.key] for stage in trial.stages if stage.key in progress.results]
    diverged = [result.diverged_step for result in results if result.diverged_step is not None]
    tags = _trained_with(results)
    if diverged:
        tags[TAG_DIVERGED_STEP] = str(diverged[0])
    stages = " → ".join(f"{stage.phase} {stage.key} ({stage.steps} steps)" for stage in trial.stages)
    note = f"{stages}; {sum(result.seconds for result in results):.1f} s"
    journal.record_end(trial, status, tags, note + (f"; diverged at step {diverged[0]}" if diverged else ""))


def _trained_with(results: Sequence[StageResult]) -> dict[str, str]:
    """The tags that say with what a trial was trained. Several values of a tag, such as the versions of the code that
    trained the two phases, are joined by ", ". A tag of which nothing is known is left out."""
    sessions = [each for result in results for each in result.trained_with or (Provenance(device=result.device),)]
    values = {
        TAG_CODE_VERSION: [session.code_version for session in sessions],
        TAG_TORCH_VERSION: [session.torch_version for session in sessions],
        TAG_DEVICE: [session.device for session in sessions],
        TAG_CPU_CAPABILITY: [session.cpu_capability for session in sessions],
    }
    return {
        tag: ", ".join(dict.fromkeys(value or _UNKNOWN for value in of_tag))
        for tag, of_tag in values.items()
        if any(of_tag)
    }
