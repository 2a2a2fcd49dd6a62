"""The arrangement of the general figure: which axis of a study is x, which separates lines, which separate panels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cvit.analysis.display.wording import in_caption, metric_text
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import SCHEME
from cvit.tasks import TASK_NAMES, task_named

PANELS_SHOWN = 12
"""The largest number of panels that the general figure shows of a study."""


@dataclass(frozen=True)
class Arrangement:
    """The axes of a study in the general figure; `lines` is None for a single line."""

    x: str
    lines: str | None
    panels: tuple[str, ...]

    def places(self, study: Study) -> list[dict[str, Any]]:
        """The places of the study's panels on their axes, ascending."""
        rows = (tuple(row[axis] for axis in self.panels) for row in study.rows)
        return [dict(zip(self.panels, row, strict=True)) for row in dict.fromkeys(rows)]


def arrangement(study: Study) -> Arrangement:
    """The arrangement for a study: a line per value of the task's `compared_by`, along x the first other numeric axis
    that varies."""
    compared_by = task_named(study.task).compared_by if study.task in TASK_NAMES else SCHEME
    others = [axis for axis in study.axes if axis != compared_by]
    varied = [axis for axis in others if len(study.values(axis)) > 1] or others
    x = next((axis for axis in varied if _is_numeric(study, axis)), None) or next(iter(varied), None)
    if x is None:
        return Arrangement(compared_by if compared_by in study.axes else SCHEME, None, ())
    lines = compared_by if compared_by in (*study.axes, SCHEME) else None
    return Arrangement(x, lines, tuple(axis for axis in others if axis != x))


def caption(study: Study) -> str:
    """The caption of the general figure, by the arrangement of the most recent study."""
    arranged = arrangement(study)
    parts = [f"{metric_text(study.metric).capitalize()} against {in_caption(arranged.x)}"]
    if arranged.lines is not None:
        parts.append(f"a line per {in_caption(arranged.lines)}")
    *panels, last = ["", *(in_caption(axis) for axis in arranged.panels if len(study.values(axis)) > 1)]
    if last:
        limit = f", the first {PANELS_SHOWN} of them" if len(arranged.places(study)) > PANELS_SHOWN else ""
        parts.append(f"a panel per {' and '.join(filter(None, [', '.join(panels[1:]), last]))}{limit}")
    return f"{', '.join(parts)}. Means over seeds with 95 % intervals."


def values(study: Study, axis: str) -> list[Any]:
    """The values of an axis, which may be the init scheme, in their order."""
    return list(study.schemes) if axis == SCHEME else study.values(axis)


def is_spread(numbers: Sequence[float], ratio: float) -> bool:
    """True if all numbers are positive and differ by more than a ratio: a logarithmic scale then shows them better."""
    return len(numbers) > 0 and min(numbers) > 0 and max(numbers) > ratio * min(numbers)


def _is_numeric(study: Study, axis: str) -> bool:
    return all(isinstance(value, int | float) for value in study.values(axis))
