"""A run as the tracker sees it: the part that the journal has and the store does not have yet."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cvit.engine.tracking.run_facts import DataUse
from cvit.records import Grid
from cvit.results import Point


@dataclass
class TrackedRun:
    """The part of one run that the journal has and the store does not have yet.

    Attributes:
        study_key: empty as long as the journal's record of the trial or study itself is missing.
        tags: to be written; forgotten once the store has them.
        status: the trial's, once it has ended.
        cells: the study's grids.
        is_open: the store has the run as RUNNING.
        was_copied_before: an earlier session has copied a part of it.
        steps_copied_before: the steps of that part by metric, once they are asked for.
        planned_tags: those of the trial's record.
        data: the images that it uses, unless the store has them.
    """

    key: str
    study_key: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    start_time_ms: int | None = None
    points: list[Point] = field(default_factory=list)
    status: str | None = None
    end_time_ms: int | None = None
    cells: list[Grid] = field(default_factory=list)
    run_id: str | None = None
    is_open: bool = False
    changed: bool = False
    was_copied_before: bool = False
    steps_copied_before: dict[str, set[int]] = field(default_factory=dict)
    data: DataUse | None = None
    planned_tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_study(self) -> bool:
        return self.key == self.study_key

    def settle(self) -> None:
        """Forgets what the store has now."""
        self.points, self.params, self.tags, self.data, self.changed = [], {}, {}, None, False
