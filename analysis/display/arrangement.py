"""The arrangement of the general figure: which axis of a study runs along x, which parts lines, which parts panels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.display.wording import in_caption, metric_text
from analysis.statistics.studies import Study
from analysis.store.axes import SCHEME
from cvit.tasks import TASK_NAMES, task_named

PANELS_SHOWN = 12
"""The panels of a study that the general figure shows, at most."""


@dataclass(frozen=True)
class Arrangement:
    """The axes of a study in the general figure; `lines` is None where there is a single line."""

    x: str
    lines: str | None
    panels: tuple[str, ...]

    def places(self, study: Study) -> list[dict[str, Any]]:
        """The places of the panels on their axes, those that the study has, ascending."""
        rows = (tuple(row[axis] for axis in self.panels) for row in study.rows)
        return [dict(zip(self.panels, row, strict=True)) for row in dict.fromkeys(rows)]


def arrangement(study: Study) -> Arrangement:
    """Lines by the parameter that the task compares by, along x the first numeric axis that varies besides."""
    compared_by = task_named(study.task).compared_by if study.task in TASK_NAMES else SCHEME
    others = [axis for axis in study.axes if axis != compared_by]
    varied = [axis for axis in others if len(study.values(axis)) > 1] or others
    x = next((axis for axis in varied if _is_numeric(study, axis)), None) or next(iter(varied), None)
    if x is None:
        return Arrangement(compared_by if compared_by in study.axes else SCHEME, None, ())
    lines = compared_by if compared_by in (*study.axes, SCHEME) else None
    return Arrangement(x, lines, tuple(axis for axis in others if axis != x))


def caption(study: Study) -> str:
    """The caption of the general figure, as the most recent study has it arranged."""
    arranged = arrangement(study)
    parts = [f"{metric_text(study.metric).capitalize()} against {in_caption(arranged.x)}"]
    if arranged.lines is not None:
        parts.append(f"a line per {in_caption(arranged.lines)}")
    *panels, last = ["", *(in_caption(axis) for axis in arranged.panels if len(study.values(axis)) > 1)]
    if last:
        limit = f", the first {PANELS_SHOWN} of them" if len(arranged.places(study)) > PANELS_SHOWN else ""
        parts.append(f"a panel per {' and '.join(filter(None, [', '.join(panels[1:]), last]))}{limit}")
    return f"{', '.join(parts)}. Means over seeds, bands 95 % intervals."


def values(study: Study, axis: str) -> list[Any]:
    """The values of an axis, init scheme included, in their order."""
    return list(study.schemes) if axis == SCHEME else study.values(axis)


def is_spread(numbers: Sequence[float], ratio: float) -> bool:
    """True if positive numbers differ by more than this ratio, so that a logarithmic scale shows them better."""
    return len(numbers) > 0 and min(numbers) > 0 and max(numbers) > ratio * min(numbers)


def _is_numeric(study: Study, axis: str) -> bool:
    return all(isinstance(value, int | float) for value in study.values(axis))
