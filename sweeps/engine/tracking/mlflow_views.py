"""Views of an experiment in MLflow's UI, made for it so that its trials compare at a click.

Without them the UI folds the trials into their study and has no chart to show. A view is what *Save as new view* makes
there: a tag of the experiment with the state of the page as JSON.
"""

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from cvit import vocabulary as v

SCHEME, NUM_HEADS = "init_scheme", "num_heads"
"""What trials are grouped by: those of a training, and fits."""
CURVES, AXES = "cvit-curves", "cvit-axes"
"""Keys of the views: curves by group on one step axis, parallel coordinates over the sweep's axes."""
TAG_PREFIX = "mlflow.sharedViewState."
_SECTION = "answers"
"""Sections stand in the order of the alphabet, those that the UI makes itself included: this is the first."""
_COLUMNS = {CURVES: 2, AXES: 1}


def views(study_key: str, axes: Sequence[str], time_ms: int) -> dict[str, str]:
    """The views of a study's trials as tags of its experiment: of the study that ran last, since trials on several data
    sets, say, are not to be averaged.

    Args:
        axes: those of the sweep, the seed not among them.
    """
    group, answer = (SCHEME, v.TEST_ACCURACY) if SCHEME in axes else (NUM_HEADS, v.EXPRESSIVITY_ERROR)
    curves = [v.VAL_ACCURACY, v.TRAIN_LOSS] if SCHEME in axes else [v.EXPRESSIVITY_ERROR]
    coordinates = sorted(axes, key=lambda axis: axis == group)  # beside the answer what it is grouped by
    charts = {
        CURVES: [*(_line(metric) for metric in curves), _chart("BAR", answer, metricKey=answer)],
        AXES: [_chart("PARALLEL", "axes", selectedParams=coordinates, selectedMetrics=[answer], showAllRuns=True)],
    }
    names = {CURVES: f"{answer} by {group}", AXES: f"{answer} over all axes"}
    return {
        f"{TAG_PREFIX}{view}": json.dumps(
            {
                "name": names[view],
                "createdAt": time_ms,
                "updatedAt": time_ms,
                "state": json.dumps(_state(study_key, group, charts[view], view)),
            }
        )
        for view in (CURVES, AXES)
    }


def page(experiment_id: str, view: str = CURVES) -> str:
    """Where the UI shows a view, below its server's address."""
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
