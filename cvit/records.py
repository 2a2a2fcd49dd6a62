"""The records of a sweep's journal. The engine writes them; the tracker and the analysis read them.

    study    a grid of trials that is compared in one table, or its extension
    trial    one trial of a study
    points   measurements of a trial
    end      how a trial ended
    session  the software and hardware with which a driver ran a study
    system   the load of a machine that trains a study

A record is one line of JSON (see `cvit.storage`): its fields, its `type` and its `format`. Of a later version in the
same format, this one passes over the types and fields that it does not know, with a line of the log; a later format is
refused.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_origin, get_type_hints

from cvit.errors import one_line
from cvit.results import Point, as_point
from cvit.storage import Storage, check_format, each_record, later_version
from cvit.vocabulary import RECORD_END, RECORD_POINTS, RECORD_SESSION, RECORD_STUDY, RECORD_SYSTEM, RECORD_TRIAL

_log = logging.getLogger(__name__)
_said: set[tuple[str, str, str]] = set()

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


@dataclass(frozen=True, kw_only=True)
class SessionRecord:
    """The environment of a driver that ran a study: its Python packages (`name==version`) and its hardware by name. The
    last one of a study counts."""

    type: ClassVar[str] = RECORD_SESSION

    study_key: str
    packages: Sequence[str]
    hardware: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SystemRecord:
    """The load of a machine while it trained trials of a study. The step of a point is the second since the epoch."""

    type: ClassVar[str] = RECORD_SYSTEM

    study_key: str
    node: str
    points: Sequence[Point]


Record = StudyRecord | TrialRecord | PointsRecord | EndRecord | SessionRecord | SystemRecord

_CLASSES: Mapping[str, type[Record]] = {
    c.type: c for c in (StudyRecord, TrialRecord, PointsRecord, EndRecord, SessionRecord, SystemRecord)
}


def to_json(record: Record) -> dict[str, Any]:
    """The record as a flat JSON object."""
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    return {"type": record.type, **fields}


def from_json(values: Mapping[str, Any]) -> Record | None:
    """The record in a JSON object; None if its type is unknown. Unknown fields are ignored.

    Raises:
        TypeError, ValueError, AttributeError, OverflowError: a field is missing, or its value is of another kind.
    """
    record_class = _CLASSES.get(str(values.get("type")))
    if record_class is None:
        return None
    known = {name: values[name] for name in _field_types(record_class) if name in values}
    for name, value in known.items():
        if not isinstance(value, _field_types(record_class)[name]):
            raise TypeError(f"{name} is {type(value).__name__}")
    if "points" in known:
        known["points"] = [as_point(point) for point in known["points"]]
    if "cells" in known and not all(isinstance(v, list) for grid in known["cells"] for v in grid.values()):
        raise TypeError("cells are not lists of values")
    return record_class(**known)


def read_segment(storage: Storage, path: str) -> Iterator[Record]:
    """The records in a file of a journal. Torn and altered lines are left out.

    Raises:
        Refused: the file is of a later version, or is none.
        OSError: it cannot be read.
    """
    for values in each_record(storage.read(path)):
        check_format(values, path)
        try:
            record = from_json(values)
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise later_version(path, f"a record that cannot be read: {one_line(error)}") from error
        if record is None:
            _say_once(storage.url, path, f"records of type {values.get('type')!r}")
            continue
        if unknown := sorted(values.keys() - _field_types(type(record)).keys() - {"type", "format"}):
            _say_once(storage.url, path, f"fields {', '.join(map(repr, unknown))}")
        yield record


@functools.cache
def _field_types(record_class: type[Record]) -> Mapping[str, type]:
    """The type of each field of a record, as JSON has it."""
    hints = get_type_hints(record_class)
    origins = {f.name: get_origin(hints[f.name]) or hints[f.name] for f in dataclasses.fields(record_class)}
    return {name: list if origin is Sequence else origin for name, origin in origins.items()}


def _say_once(url: str, path: str, what: str) -> None:
    """Says that something in a journal is passed over, once for all its files."""
    about = (url, path.rpartition("/")[0], what)
    if about not in _said:
        _said.add(about)
        _log.warning("storage %r: %s has %s, written by a later version; they are passed over", url, path, what)
