"""Results of finished stages. Reading them needs no torch, so that planning a sweep is fast."""

import re
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, overload

from cvit.errors import one_line
from cvit.storage import Storage, check_format, checksum, decode_records, later_version
from cvit.vocabulary import STAGES_FOLDER

Point = tuple[str, int, float, int]
"""(metric, optimiser step of the trial, value, time of the measurement in milliseconds since the epoch)."""

WEIGHTS, MOMENTS = "weights", "moments"
"""The parts of a finished stage beside its result, each in a file `<part>.safetensors`."""

CHECKPOINT_FILE = re.compile(r"(?P<name>step-\d{8,})\.(?P<kind>json|safetensors)")
"""The names of a checkpoint's two files in the folder of its stage."""


@dataclass(frozen=True)
class Provenance:
    """The software and hardware that trained a stage in one session; None where an older version did not record it."""

    code_version: str | None = None
    torch_version: str | None = None
    device: str | None = None
    cpu_capability: str | None = None


@dataclass(frozen=True)
class StageResult:
    """The result of a finished stage.

    Attributes:
        status: `ok` or `diverged`.
        initial_loss: training loss of the trial's first step.
        seconds: time spent training and evaluating the stage.
        device: the device of the last session.
        points: all measurements.
        diverged_step: the step at which it diverged, counted over the trial.
        trained_with: of every session that trained it, without repetition; empty in results of earlier versions.
    """

    status: str
    initial_loss: float
    seconds: float
    device: str
    points: Sequence[Point]
    diverged_step: int | None = None
    trained_with: tuple[Provenance, ...] = ()


class PackedPoints(Sequence[Point]):
    """Points in a seventh of the memory that a list of them takes: a driver keeps those of all its stages."""

    def __init__(self, points: Iterable[Point]) -> None:
        points = list(points)
        names = dict.fromkeys(name for name, *_ in points)
        numbers = {name: number for number, name in enumerate(names)}
        self._names = tuple(map(sys.intern, names))
        self._numbers = array("H", (numbers[name] for name, *_ in points))
        self._steps = array("q", (step for _, step, _, _ in points))
        self._times = array("q", (time_ms for *_, time_ms in points))
        self._values = array("d", (value for _, _, value, _ in points))

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> Point: ...
    @overload
    def __getitem__(self, place: slice) -> list[Point]: ...
    def __getitem__(self, place: int | slice) -> Point | list[Point]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        return self._names[self._numbers[place]], self._steps[place], self._values[place], self._times[place]


def packed(result: StageResult) -> StageResult:
    """The same result in less memory."""
    return replace(result, points=PackedPoints(result.points))


@dataclass(frozen=True)
class Report:
    """The measurements of a stage since its last report; all of them are already saved in the storage.

    `step` is counted within the stage. The last report of a stage has its result.
    """

    points: Sequence[Point]
    step: int
    result: StageResult | None = None


Reports = list[tuple[str, Report]]
"""(stage key, report) for the stages of a pack that report at the same time."""


def stage_folder(key: str) -> str:
    """The folder of a stage below the storage."""
    return f"{STAGES_FOLDER}/{key}"


def checkpoint_names(storage: Storage, key: str) -> list[str]:
    """The names of a stage's checkpoints, oldest first, each without the suffix of its two files."""
    matches = map(CHECKPOINT_FILE.fullmatch, storage.names(stage_folder(key)))
    return [match["name"] for match in matches if match and match["kind"] == "json"]


def checkpoint_step(storage: Storage, key: str) -> int:
    """The optimiser steps of a stage that its newest checkpoint holds; 0 without one."""
    names = checkpoint_names(storage, key)
    return int(names[-1].removeprefix("step-")) if names else 0


def load_result(storage: Storage, key: str) -> StageResult | None:
    """The result of a stage; None while it is not done.

    Raises:
        Refused: a later version wrote it, in a format that this one does not know.
    """
    path = f"{stage_folder(key)}/result.json"
    record = read_record(storage, path)
    if record is None:
        return None
    try:
        values = known_fields(StageResult, record)
        values["points"] = [as_point(p) for p in record["points"]]
        trained_with = record.get("trained_with", ())
        values["trained_with"] = tuple(Provenance(**known_fields(Provenance, p)) for p in trained_with)
        return StageResult(**values)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise later_version(path, one_line(error)) from error


def read_part(storage: Storage, key: str, part: str) -> bytes | None:
    """The weights or the moments of a finished stage, as saved; None if they or the result are missing or altered."""
    record = read_record(storage, f"{stage_folder(key)}/result.json")
    if record is None or part not in record:
        return None
    try:
        data = storage.read(f"{stage_folder(key)}/{part}.safetensors")
    except FileNotFoundError:
        return None
    return data if record[part] == checksum(data) else None


def read_record(storage: Storage, path: str) -> dict[str, Any] | None:
    """The single record of a file; None if it is missing, torn or altered.

    Raises:
        Refused: it is of a later version.
    """
    try:
        records = decode_records(storage.read(path))
    except FileNotFoundError:
        return None
    if len(records) != 1:
        return None
    check_format(records[0], path)
    return records[0]


def known_fields(record_class: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a dataclass's fields in a record; what a later version added is left out."""
    return {field.name: values[field.name] for field in fields(record_class) if field.name in values}


def last_value(points: Sequence[Point], metric: str) -> float | None:
    """The last measured value of a metric; None if it was never measured."""
    return next((value for name, _, value, _ in reversed(points) if name == metric), None)


def as_point(values: list[Any]) -> Point:
    """A point from the list that JSON makes of it."""
    metric, step, value, time_ms = values
    return sys.intern(str(metric)), int(step), float(value), int(time_ms)
