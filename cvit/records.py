"""The records of a sweep's journal. The engine writes them; the tracker and the analysis read them.

    study    a grid of trials that is compared in one table, or its extension
    trial    one trial of a study
    points   measurements of a trial
    end      how a trial ended

A record is one line of JSON (see `cvit.storage`): its fields, and its `type`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cvit.results import Point, as_point
from cvit.vocabulary import RECORD_END, RECORD_POINTS, RECORD_STUDY, RECORD_TRIAL

Grid = Mapping[str, Sequence[Any]]
"""The values of every axis by name, seed included; the cells are the values' product."""


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """A study, or its extension: `cells` are the new grids, `params` the parameters that all trials share."""

    type: ClassVar[str] = RECORD_STUDY

    study_key: str
    sweep: str
    question: str
    command: str
    start_time_ms: int
    params: Mapping[str, Any]
    cells: Sequence[Grid]
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A trial of a study, with all its flat parameters."""

    type: ClassVar[str] = RECORD_TRIAL

    trial_key: str
    study_key: str
    params: Mapping[str, Any]
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PointsRecord:
    """Measurements of a trial."""

    type: ClassVar[str] = RECORD_POINTS

    trial_key: str
    points: Sequence[Point]


@dataclass(frozen=True, kw_only=True)
class EndRecord:
    """The end of a trial: its status, and a note for people. The last one of a trial counts."""

    type: ClassVar[str] = RECORD_END

    trial_key: str
    status: str
    note: str
    time_ms: int
    tags: Mapping[str, str] = field(default_factory=dict)


Record = StudyRecord | TrialRecord | PointsRecord | EndRecord

_CLASSES: Mapping[str, type[Record]] = {c.type: c for c in (StudyRecord, TrialRecord, PointsRecord, EndRecord)}


def to_json(record: Record) -> dict[str, Any]:
    """The record as a flat JSON object."""
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    return {"type": record.type, **fields}


def from_json(values: Mapping[str, Any]) -> Record | None:
    """The record in a JSON object; None if its type is unknown. Unknown fields are ignored.

    Raises:
        TypeError: a field is missing.
    """
    record_class = _CLASSES.get(values.get("type", ""))
    if record_class is None:
        return None
    known = {f.name: values[f.name] for f in dataclasses.fields(record_class) if f.name in values}
    if "points" in known:
        known["points"] = [as_point(point) for point in known["points"]]
    return record_class(**known)
