"""Checkpoints and results of stages: tensors in safetensors, progress in JSON beside them, a checksum over both.

    STORAGE/stages/<key>/step-00000120.safetensors   weights and optimiser moments
                         step-00000120.json          progress, with the checksum of the tensors; written last
                         weights.safetensors         the trained weights
                         moments.safetensors         the optimiser's moments at the end of a convolution phase
                         result.json                 the result; once it is there, and whole, the stage is done

Each file is written atomically. The two newest checkpoints are kept: if the newest is torn or altered, the one before
it is used. Nothing read from the storage is unpickled. Only files with these names are deleted.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors.torch
from torch import Tensor

from cvit.errors import one_line
from cvit.results import (
    CHECKPOINT_FILE,
    MOMENTS,
    WEIGHTS,
    Point,
    Provenance,
    StageResult,
    as_point,
    checkpoint_names,
    known_fields,
    read_part,
    read_record,
    stage_folder,
)
from cvit.storage import Storage, checksum, encode_record, later_version, with_format
from cvit.training.stability import Stability

_KEPT = 2


@dataclass
class StageProgress:
    """The state of a stage that is being trained. All of it is saved with each checkpoint.

    Attributes:
        step: optimiser steps of this stage done.
        initial_loss: training loss of the trial's first step.
        seconds: time spent training and evaluating this stage, over all sessions.
        points: every measurement of this stage so far.
        stability: the measures of stability so far.
        trained_with: of every session so far, without repetition.
    """

    step: int = 0
    initial_loss: float | None = None
    seconds: float = 0.0
    points: list[Point] = field(default_factory=list)
    stability: Stability = field(default_factory=Stability)
    trained_with: list[Provenance] = field(default_factory=list)


def save_checkpoint(storage: Storage, key: str, tensors: dict[str, Tensor], progress: StageProgress) -> None:
    """Writes a checkpoint and deletes all but the newest two."""
    name = f"{stage_folder(key)}/step-{progress.step:08d}"
    data = safetensors.torch.save(tensors)
    storage.write(f"{name}.safetensors", data)
    storage.write(f"{name}.json", encode_record(with_format(asdict(progress) | {"tensors": checksum(data)})))
    for old in checkpoint_names(storage, key)[:-_KEPT]:
        storage.delete(f"{stage_folder(key)}/{old}.json")
        storage.delete(f"{stage_folder(key)}/{old}.safetensors")


def load_checkpoint(storage: Storage, key: str) -> tuple[dict[str, Tensor], StageProgress] | None:
    """The newest checkpoint that is whole, or None.

    Raises:
        Refused: a later version wrote it.
    """
    for name in reversed(checkpoint_names(storage, key)):
        path = f"{stage_folder(key)}/{name}"
        record = read_record(storage, f"{path}.json")
        try:
            data = storage.read(f"{path}.safetensors")
        except FileNotFoundError:
            continue
        if record is None or record.get("tensors") != checksum(data):
            continue
        return safetensors.torch.load(data), _progress(record, f"{path}.json")
    return None


def _progress(record: dict[str, Any], path: str) -> StageProgress:
    """The progress in a checkpoint's record."""
    try:
        values = known_fields(StageProgress, record)
        values["points"] = [as_point(p) for p in record["points"]]
        values["stability"] = Stability(**known_fields(Stability, record.get("stability", {})))
        # The session that wrote a checkpoint without it, a version before, is unknown.
        trained_with = record.get("trained_with", [{}])
        values["trained_with"] = [Provenance(**known_fields(Provenance, p)) for p in trained_with]
        return StageProgress(**values)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise later_version(path, one_line(error)) from error


def save_result(
    storage: Storage,
    key: str,
    weights: dict[str, Tensor],
    result: StageResult,
    moments: dict[str, Tensor] | None = None,
) -> None:
    """Marks a stage as done and deletes its checkpoints.

    Args:
        moments: the optimiser's, for stages from which another one may go on.
    """
    checksums = {}
    for part, tensors in ((MOMENTS, moments), (WEIGHTS, weights)):
        if tensors is not None:
            data = safetensors.torch.save(tensors)
            storage.write(f"{stage_folder(key)}/{part}.safetensors", data)
            checksums[part] = checksum(data)
    storage.write(f"{stage_folder(key)}/result.json", encode_record(with_format(asdict(result) | checksums)))
    storage.delete_matching(stage_folder(key), CHECKPOINT_FILE)


def load_weights(storage: Storage, key: str) -> dict[str, Tensor] | None:
    """The trained weights of a stage; None if they or the result are missing or altered."""
    return load_part(storage, key, WEIGHTS)


def load_part(storage: Storage, key: str, part: str) -> dict[str, Tensor] | None:
    """The weights or the moments of a finished stage; None if they or the result are missing or altered."""
    data = read_part(storage, key, part)
    return safetensors.torch.load(data) if data is not None else None
