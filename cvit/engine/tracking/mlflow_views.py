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
from cvit.results import Point
from cvit.tasks import TASK_NAMES, task_named

CURVES, AXES, TABLE = "cvit-curves", "cvit-axes", "cvit-table"
"""Keys of the views: curves of all trials on one step axis, parallel coordinates over the sweep's axes, a table of
studies and trials."""
MODE = "Model training"
"""The mode of MLflow's UI in which an experiment opens with its runs; the browser remembers the last one."""
TAG_PREFIX = "mlflow.sharedViewState."
_SECTION = "1 comparison"
"""The UI sorts sections by name; this one comes before `answer`, which is empty without studies."""
_COLUMNS = ("attributes.`Dataset`",)
"""The columns of the table before the answers, for which there must be room."""
_MOST_MEANS = 12
_BESIDE_MEANS = (" ci_low", " ci_high", " n", " restarts")


def views(study: StudyRecord, means: Sequence[str] = ()) -> dict[str, str]:
    """The views of a study as tags of its experiment; none for a task that this version does not know.

    An experiment has the views of the study that ran last, since trials on several data sets, say, are not to be
    compared. Trials are not grouped: groups have colours of the browser's, single runs those of their tags, and a group
    by scheme would average over the other axes.

    Args:
        means: the metrics of studies that the table shows.
    """
    name = study.tags.get(v.TAG_TASK, v.TRAINING)
    if name not in TASK_NAMES:
        return {}
    task = task_named(name)
    group, answer = task.compared_by, task.metric
    axes = [group, *sorted(axis for axis in study.cells[0] if axis not in (group, "seed"))]
    curves = [*(_line(metric) for metric in task.curves), _chart("BAR", answer, metricKey=answer)]
    # Beside the answer what is compared.
    lines = _chart("PARALLEL", "axes", selectedParams=axes[::-1], selectedMetrics=[answer], showAllRuns=True)
    trials = {
        "searchFilter": f"tags.`{v.TAG_ROLE}` = '{v.ROLE_TRIAL}' AND tags.`{v.TAG_STUDY_KEY}` = '{study.study_key}'",
        # Any order but that by time, which would put the trials below their study, and not show them. The first page
        # then has all places of the grid.
        "orderByKey": "params.`seed`",
        "orderByAsc": True,
        "selectedColumns": [*(f"params.`{axis}`" for axis in (*axes, "seed")), f"metrics.`{answer}`"],
    }
    states = {CURVES: trials | _charts(curves, columns=2), AXES: trials | _charts([lines], columns=1)}
    states[TABLE] = {"selectedColumns": [*_COLUMNS, *(f"metrics.`{metric}`" for metric in means)]}
    names = {CURVES: f"{answer} by {group}", AXES: f"{answer} over all axes", TABLE: "answers, a row per study"}
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


def means_of(points: Sequence[Point]) -> list[str]:
    """The metrics with the means of a study's answer, as many as a table has room for."""
    names = [name for name, *_ in points if name.startswith(v.ANSWER) and not name.endswith(_BESIDE_MEANS)]
    return names[:_MOST_MEANS]


def page(experiment_id: str, view: str = CURVES) -> str:
    """The page of a view in the UI, below its server's address."""
    mode = "TABLE" if view == TABLE else "CHART"
    query = {"workflowType": "machine_learning", "compareRunsMode": mode, "viewStateShareKey": view}
    return f"/#/experiments/{experiment_id}/runs?{urlencode(query)}"


def note(study: StudyRecord, experiment_id: str) -> str:
    """The description of the experiment: the question, and the way to its curves. MLflow's UI opens an experiment by
    the mode that the browser remembers, GenAI at first, which has no page for runs."""
    where = f"Choose *{MODE}* at the upper left, once: in the mode *GenAI* an experiment shows no runs."
    lines = [study.question, where]
    names = {CURVES: "Curves", AXES: "All axes", TABLE: "Table"}
    links = [f"[{name}]({page(experiment_id, view).removeprefix('/')})" for view, name in names.items()]
    return "\n\n".join([*lines, " · ".join(links)] if views(study) else lines)


def _charts(charts: list[dict[str, Any]], columns: int) -> dict[str, Any]:
    section = {"uuid": _SECTION, "name": _SECTION, "display": True, "isReordered": False, "columns": columns}
    return {
        "runsHiddenMode": "SHOW_ALL",
        "hideEmptyCharts": True,
        "compareRunCharts": charts,
        "compareRunSections": [section],
    }


def _line(metric: str) -> dict[str, Any]:
    return _chart("LINE", metric, metricKey=metric, xAxisKey="step", yAxisKey="metric", scaleType="linear", range={})


def _chart(kind: str, name: str, **settings: Any) -> dict[str, Any]:
    chart = {"type": kind, "uuid": f"cvit-{kind}-{name}", "displayName": name, "metricSectionId": _SECTION}
    return chart | {"deleted": False, "isGenerated": False, "runsCountToCompare": 100} | settings
