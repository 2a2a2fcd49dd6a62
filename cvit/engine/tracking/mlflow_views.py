"""Views of an experiment in MLflow's UI, made for it so that its trials compare at a click.

Without them the UI folds the trials into their study and has no chart to show. A view is what *Save as new view* makes
there: a tag of the experiment with the state of the page as JSON.
"""

import json
from typing import Any
from urllib.parse import urlencode

from cvit import vocabulary as v
from cvit.records import StudyRecord
from cvit.tasks import TASK_NAMES, task_named

CURVES, AXES = "cvit-curves", "cvit-axes"
"""Keys of the views: curves by group on one step axis, parallel coordinates over the sweep's axes."""
TAG_PREFIX = "mlflow.sharedViewState."
_SECTION = "answers"
"""The UI sorts sections by name, its own ones included; this name makes ours the first."""
_COLUMNS = {CURVES: 2, AXES: 1}


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
    charts = {
        CURVES: [*(_line(metric) for metric in task.curves), _chart("BAR", answer, metricKey=answer)],
        AXES: [_chart("PARALLEL", "axes", selectedParams=coordinates, selectedMetrics=[answer], showAllRuns=True)],
    }
    names = {CURVES: f"{answer} by {group}", AXES: f"{answer} over all axes"}
    return {
        f"{TAG_PREFIX}{view}": json.dumps(
            {
                "name": names[view],
                "createdAt": study.start_time_ms,
                "updatedAt": study.start_time_ms,
                "state": json.dumps(_state(study.study_key, group, charts[view], view)),
            }
        )
        for view in (CURVES, AXES)
    }


def page(experiment_id: str, view: str = CURVES) -> str:
    """The page of a view in the UI, below its server's address."""
    query = {"workflowType": "machine_learning", "compareRunsMode": "CHART", "viewStateShareKey": view}
    return f"/#/experiments/{experiment_id}/runs?{urlencode(query)}"


def _state(study_key: str, group: str, charts: list[dict[str, Any]], view: str) -> dict[str, Any]:
    return {
        "searchFilter": f"tags.`{v.TAG_ROLE}` = '{v.ROLE_TRIAL}' AND tags.`{v.TAG_STUDY_KEY}` = '{study_key}'",
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": group}]},
        "useGroupedValuesInCharts": view == CURVES,
        "runsHiddenMode": "SHOWALL",
        "hideEmptyCharts": True,
        "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": _SECTION, "name": _SECTION, "display": True, "isReordered": False, "columns": _COLUMNS[view]}
        ],
    }


def _line(metric: str) -> dict[str, Any]:
    return _chart("LINE", metric, metricKey=metric, xAxisKey="step", yAxisKey="metric", scaleType="linear", range={})


def _chart(kind: str, name: str, **settings: Any) -> dict[str, Any]:
    chart = {"type": kind, "uuid": f"cvit-{kind}-{name}", "displayName": name, "metricSectionId": _SECTION}
    return chart | {"deleted": False, "isGenerated": False, "runsCountToCompare": 100} | settings
