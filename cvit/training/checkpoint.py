"""Checkpoints and results of stages: tensors in safetensors, progress in JSON beside them, a checksum over both.

    STORAGE/stages/<key>/step-00000120.safetensors   weights and optimiser moments
                         step-00000120.json          progress, with the checksum of the tensors; written last
                         weights.safetensors         the trained weights
                         result.json                 the result; its presence, whole, means that the stage is done

Each file is written atomically. The two newest checkpoints are kept: one that turns out torn or altered is passed over
and the one before it used. Nothing read from the storage is unpickled.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors.torch
from torch import Tensor

from cvit.storage import Storage, checksum, decode_records, encode_record
from cvit.vocabulary import STAGES_FOLDER

Point = tuple[str, int, float, int]
"""(metric, optimiser step of the trial, value, time of the measurement in milliseconds since the epoch)."""

_KEPT = 2


@dataclass
class Progress:
    """How far a stage has come. All of it is saved with each checkpoint.

    Attributes:
        step: optimiser steps of this stage done.
        initial_loss: training loss of the trial's first step.
        seconds: time spent training and evaluating this stage, over all sessions.
        points: every measurement of this stage so far.
    """

    step: int = 0
    initial_loss: float | None = None
    seconds: float = 0.0
    points: list[Point] = field(default_factory=list)


@dataclass(frozen=True)
class StageResult:
    """A finished stage: status `ok` or `diverged` (then with its step, counted over the trial) and all points."""

    status: str
    initial_loss: float
    seconds: float
    device: str
    points: list[Point]
    diverged_step: int | None = None


def _folder(key: str) -> str:
    return f"{STAGES_FOLDER}/{key}"


def save_checkpoint(storage: Storage, key: str, tensors: dict[str, Tensor], progress: Progress) -> None:
    """Writes a checkpoint and drops all but the newest two."""
    name = f"{_folder(key)}/step-{progress.step:08d}"
    data = safetensors.torch.save(tensors)
    storage.write(f"{name}.safetensors", data)
    storage.write(f"{name}.json", encode_record(asdict(progress) | {"tensors": checksum(data)}))
    for old in _checkpoint_names(storage, key)[:-_KEPT]:
        storage.delete(f"{_folder(key)}/{old}.json")
        storage.delete(f"{_folder(key)}/{old}.safetensors")


def load_checkpoint(storage: Storage, key: str) -> tuple[dict[str, Tensor], Progress] | None:
    """The newest checkpoint that is whole, or None."""
    for name in reversed(_checkpoint_names(storage, key)):
        path = f"{_folder(key)}/{name}"
        try:
            record, data = _read_record(storage, f"{path}.json"), storage.read(f"{path}.safetensors")
        except FileNotFoundError:
            continue
        if record is None or record.pop("tensors") != checksum(data):
            continue
        record["points"] = [_point(p) for p in record["points"]]
        return safetensors.torch.load(data), Progress(**record)
    return None


def save_result(storage: Storage, key: str, weights: dict[str, Tensor], result: StageResult) -> None:
    """Marks a stage as done and drops its checkpoints."""
    data = safetensors.torch.save(weights)
    storage.write(f"{_folder(key)}/weights.safetensors", data)
    storage.write(f"{_folder(key)}/result.json", encode_record(asdict(result) | {"weights": checksum(data)}))
    storage.delete_others(_folder(key), kept={"weights.safetensors", "result.json"})


def load_result(storage: Storage, key: str) -> StageResult | None:
    """The result of a stage that is done, else None."""
    try:
        record = _read_record(storage, f"{_folder(key)}/result.json")
    except FileNotFoundError:
        return None
    if record is None:
        return None
    record.pop("weights")
    record["points"] = [_point(p) for p in record["points"]]
    return StageResult(**record)


def load_weights(storage: Storage, key: str) -> dict[str, Tensor] | None:
    """The trained weights of a stage that is done; None where they or the result are missing or altered."""
    try:
        record = _read_record(storage, f"{_folder(key)}/result.json")
        data = storage.read(f"{_folder(key)}/weights.safetensors")
    except FileNotFoundError:
        return None
    if record is None or record["weights"] != checksum(data):
        return None
    return safetensors.torch.load(data)


def _checkpoint_names(storage: Storage, key: str) -> list[str]:
    names = storage.names(_folder(key))
    return [name.removesuffix(".json") for name in names if name.startswith("step-") and name.endswith(".json")]


def _read_record(storage: Storage, path: str) -> dict[str, Any] | None:
    records = decode_records(storage.read(path))
    return records[0] if len(records) == 1 else None


def _point(values: list[Any]) -> Point:
    metric, step, value, time_ms = values
    return str(metric), int(step), float(value), int(time_ms)
