"""Views of an experiment in MLflow's UI, made for it so that its trials compare at a click.

Without them the UI folds the trials into their study and has no chart to show. A view is what *Save as new view* makes
there: a tag of the experiment with the state of the page as JSON.
"""

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from cvit import vocabulary as v
from cvit.records import StudyRecord
from cvit.tasks import TASK_NAMES, task_named

CURVES, AXES, TABLE = "cvit-curves", "cvit-axes", "cvit-table"
"""Keys of the views: curves by group on one step axis, parallel coordinates over the sweep's axes, a table of studies
and trials."""
MODE = "Model training"
"""The mode of MLflow's UI in which an experiment opens with its runs; the browser remembers the last one."""
TAG_PREFIX = "mlflow.sharedViewState."
_SECTION = "answers"
"""The UI sorts sections by name, its own ones included; this name makes ours the first."""
_COLUMNS = ("attributes.`Source`", "attributes.`Dataset`", "attributes.`User`")
"""The columns of the table before the parameters."""


def views(study: StudyRecord) -> dict[str, str]:
    """The views of a study's trials as tags of its experiment, grouped by the parameter that its task compares; none
    for a task that this version does not know.

    An experiment has the views of the study that ran last, since trials on several data sets, say, are not to be
    averaged.
    """
    name = study.tags.get(v.TAG_TASK, v.TRAINING)
    if name not in TASK_NAMES:
        return {}
    task = task_named(name)
    axes = [axis for axis in study.cells[0] if axis != "seed"]
    group, answer = task.compared_by, task.metric
    coordinates = sorted(axes, key=lambda axis: axis == group)  # beside the answer what it is grouped by
    curves = [*(_line(metric) for metric in task.curves), _chart("BAR", answer, metricKey=answer)]
    lines = _chart("PARALLEL", "axes", selectedParams=coordinates, selectedMetrics=[answer], showAllRuns=True)
    of_trials = f"tags.`{v.TAG_ROLE}` = '{v.ROLE_TRIAL}' AND tags.`{v.TAG_STUDY_KEY}` = '{study.study_key}'"
    # By all axes: curves of other shares of the images are not averaged.
    groups = {"groupBy": _grouped_by([group, *(axis for axis in axes if axis != group)])}
    columns = [*(f"params.`{axis}`" for axis in [group, *(a for a in axes if a != group)]), f"metrics.`{answer}`"]
    states = {
        CURVES: {"searchFilter": of_trials, **groups, "useGroupedValuesInCharts": True} | _charts(curves, columns=2),
        AXES: {"searchFilter": of_trials, **groups, "useGroupedValuesInCharts": False} | _charts([lines], columns=1),
        TABLE: {"selectedColumns": [*_COLUMNS, *columns], "orderByKey": "attributes.start_time", "orderByAsc": True},
    }
    names = {CURVES: f"{answer} by {group}", AXES: f"{answer} over all axes", TABLE: f"{answer}, a table"}
    return {
        f"{TAG_PREFIX}{view}": json.dumps(
            {
                "name": names[view],
                "createdAt": study.start_time_ms,
                "updatedAt": study.start_time_ms,
                "state": json.dumps(state),
            }
        )
        for view, state in states.items()
    }


def page(experiment_id: str, view: str = CURVES) -> str:
    """The page of a view in the UI, below its server's address."""
    mode = "TABLE" if view == TABLE else "CHART"
    query = {"workflowType": "machine_learning", "compareRunsMode": mode, "viewStateShareKey": view}
    return f"/#/experiments/{experiment_id}/runs?{urlencode(query)}"


def note(study: StudyRecord, experiment_id: str) -> str:
    """The description of the experiment: the question, and the way to its curves. MLflow's UI opens an experiment by
    the mode that the browser remembers, GenAI at first, which has no page for runs."""
    lines = [study.question, f"Choose *{MODE}* at the upper left once: in the mode *GenAI* this page is empty."]
    names = {CURVES: "Curves", AXES: "All axes", TABLE: "Table"}
    links = [f"[{name}]({page(experiment_id, view).removeprefix('/')})" for view, name in names.items()]
    return "\n\n".join([*lines, " · ".join(links)] if views(study) else lines)


def _grouped_by(params: Sequence[str]) -> dict[str, Any]:
    keys = [{"mode": "param", "groupByData": param} for param in params]
    return {"aggregateFunction": "average", "groupByKeys": keys}


def _charts(charts: list[dict[str, Any]], columns: int) -> dict[str, Any]:
    section = {"uuid": _SECTION, "name": _SECTION, "display": True, "isReordered": False, "columns": columns}
    return {
        "runsHiddenMode": "SHOWALL",
        "hideEmptyCharts": True,
        "compareRunCharts": charts,
        "compareRunSections": [section],
    }


def _line(metric: str) -> dict[str, Any]:
    return _chart("LINE", metric, metricKey=metric, xAxisKey="step", yAxisKey="metric", scaleType="linear", range={})


def _chart(kind: str, name: str, **settings: Any) -> dict[str, Any]:
    chart = {"type": kind, "uuid": f"cvit-{kind}-{name}", "displayName": name, "metricSectionId": _SECTION}
    return chart | {"deleted": False, "isGenerated": False, "runsCountToCompare": 100} | settings
