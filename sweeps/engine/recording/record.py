"""From a stage's reports to the plan's results and the journal."""

from cvit.results import Report
from cvit.vocabulary import TAG_DEVICE, TAG_DIVERGED_STEP
from sweeps.engine.planning.plan import Plan
from sweeps.engine.planning.trials import Trial
from sweeps.engine.recording.journal import Journal


def record(plan: Plan, journal: Journal, key: str, report: Report) -> None:
    """Records a stage's report for all trials that the stage belongs to, and the end of those that it finishes."""
    trials = plan.trials_of[key]
    journal.record_points(trials, report.points)
    if report.result is not None:
        plan.results[key] = report.result
        for trial in trials:
            _record_outcome(plan, journal, trial)


def _record_outcome(plan: Plan, journal: Journal, trial: Trial) -> None:
    """Records how a trial ended, if it has."""
    status = plan.status(trial)
    if status is None:
        return
    results = [plan.results[stage.key] for stage in trial.stages if stage.key in plan.results]
    diverged = [result.diverged_step for result in results if result.diverged_step is not None]
    tags = {TAG_DEVICE: results[-1].device}
    if diverged:
        tags[TAG_DIVERGED_STEP] = str(diverged[0])
    stages = " → ".join(f"{stage.phase} {stage.key} ({stage.steps} steps)" for stage in trial.stages)
    note = f"{stages}; {sum(result.seconds for result in results):.1f} s"
    journal.record_end(trial, status, tags, note + (f"; diverged at step {diverged[0]}" if diverged else ""))
