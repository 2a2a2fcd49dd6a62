"""The plans of sweeps as JSON, for programs: `--dry-run --json`. docs/COMMAND.md describes the fields."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cvit.engine.execution.cost import flops_of, step_seconds
from cvit.engine.execution.forecast import Forecast
from cvit.engine.execution.pack_size import pack_limits
from cvit.engine.execution.workers import planned_workers
from cvit.engine.planning.plan import Plan
from cvit.engine.planning.progress import Progress
from cvit.engine.planning.request import Request
from cvit.engine.planning.trials import Trial
from cvit.provenance import code_version

FORMAT = 1
"""The version of the fields: a field may be added to it, none is renamed or removed."""


def plans_text(plans: Sequence[tuple[Progress, Request, Forecast]]) -> str:
    """The plans of sweeps that run together, as one JSON document."""
    sweeps = [_plan(progress, request, forecast) for progress, request, forecast in plans]
    document = {"format": FORMAT, "version": code_version(), "sweeps": sweeps}
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)


def _plan(progress: Progress, request: Request, forecast: Forecast) -> dict[str, Any]:
    plan, todo = progress.plan, progress.todo
    study = plan.study
    return {
        "sweep": study.sweep,
        "question": study.question,
        "task": study.task,
        "preset": request.preset,
        "command": request.command,
        "storage": request.storage,
        "tracking_uri": request.tracking_uri,
        "study": study.key,
        "grid": {axis: list(values) for axis, values in study.grid.items()},
        "settings": dict(study.params),
        "scheme_settings": {scheme: dict(settings) for scheme, settings in study.settings_of.items()},
        "notes": [*(study.info.notes if study.info is not None else ()), *study.notes],
        "num_trials": len(plan.trials),
        "num_trials_done": progress.num_done,
        "num_stages": len(plan.stages),
        "num_stages_to_train": len(todo),
        "steps_to_train": progress.num_steps_to_train,
        "num_stages_kept": progress.num_stages_kept,
        "steps_kept": progress.num_steps_kept,
        "steps_saved_by_sharing": sum(stage.steps for stage in plan.shared),
        "cost": _cost(progress, request, forecast) if todo else None,
        "search": _search(plan),
        "dropped": [{"place": dict(cell), "reason": reason} for cell, reason in plan.dropped],
        "left_out": [
            {"data_fractions": list(same.left_out), "same_images_as": same.kept, "num_images": same.num_images}
            for same in plan.merged
        ],
        "trials": [_trial(trial, progress.status(trial)) for trial in plan.trials],
        "stages": [
            {
                "key": key,
                "phase": stage.phase,
                "parent": stage.parent.key if stage.parent is not None else None,
                "steps": stage.steps,
                "num_trials": len(plan.trials_of[key]),
                "is_done": key in progress.results,
            }
            for key, stage in plan.stages.items()
        ],
    }


def _cost(progress: Progress, request: Request, forecast: Forecast) -> Mapping[str, Any]:
    todo, workers = progress.todo, planned_workers(request)
    seconds = step_seconds(todo, pack_limits(todo, workers, request.max_pack), workers).of(todo)
    return {
        "estimated_seconds": forecast.left_s(),
        "flops": flops_of(todo),
        "worker_seconds": None if math.isnan(seconds) else seconds,
        "device": workers.device,
        "num_workers": workers.count,
    }


def _search(plan: Plan) -> Mapping[str, Any] | None:
    if plan.search is None:
        return None
    return {
        "trials_per_scheme": plan.search.trials,
        "round_size": plan.search.round_size,
        "finalists": plan.search.finalists,
        "finalist_seeds": plan.search.finalist_seeds,
    }


def _trial(trial: Trial, status: str | None) -> Mapping[str, Any]:
    images = None
    if trial.images is not None:
        images = {"train": trial.images.train, "validation": trial.images.validation, "test": trial.images.test}
    return {
        "key": trial.key,
        "place": dict(trial.cell),
        "steps": trial.steps,
        "images": images,
        "stages": [stage.key for stage in trial.stages],
        "status": status,
    }
