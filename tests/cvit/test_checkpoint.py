from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cvit.results import StageResult, load_result
from cvit.storage import Storage
from cvit.training.checkpoint import (
    StageProgress,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_result,
)

KEY = "0123456789abcdef01234567"
POINTS = [("train/loss", 10, 0.1 + 0.2, 1_700_000_000_123), ("lr", 10, 5e-324, 1_700_000_000_124)]
Damage = Callable[[bytes], bytes | None]
DAMAGES: dict[str, Damage] = {
    "torn": lambda data: data[: len(data) // 2],
    "two bytes short": lambda data: data[:-2],  # without its newline alone a record is still whole
    "emptied": lambda data: b"",
    "one bit of the middle flipped": lambda data: flipped(data, len(data) // 2, 1),
    "one bit of the start flipped": lambda data: flipped(data, 0, 128),
    "lengthened": lambda data: data + data,
    "gone": lambda data: None,
}


def flipped(data: bytes, place: int, bits: int) -> bytes:
    return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


def tensors(step: int) -> dict[str, Tensor]:
    return {"weight": torch.arange(12.0).view(3, 4) + step, "exp_avg/weight": torch.full((3, 4), 0.5 * step)}


def progress(step: int) -> StageProgress:
    return StageProgress(step=step, initial_loss=2.3, seconds=0.25 * step, points=list(POINTS))


def result() -> StageResult:
    return StageResult("ok", 2.302585, 12.5, "cpu", list(POINTS))


def damage(storage: Storage, name: str, how: Damage) -> None:
    path = f"stages/{KEY}/{name}"
    damaged = how(storage.read(path))
    if damaged is None:
        storage.delete(path)
    else:
        storage.write(path, damaged)


def bits(found: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
    return {
        n: (t.dtype, t.shape, t.contiguous().flatten().view(torch.uint8).numpy().tobytes()) for n, t in found.items()
    }


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(str(tmp_path))


@pytest.fixture
def saved(storage: Storage) -> Storage:
    """A storage with the checkpoints of steps 1 and 2."""
    for step in (1, 2):
        save_checkpoint(storage, KEY, tensors(step), progress(step))
    return storage


def test_a_checkpoint_comes_back_bit_by_bit(storage: Storage) -> None:
    special = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-45, 1 + 2**-23])
    kept = {
        "special": special,
        "bfloat16": special.bfloat16(),
        "float64": torch.rand(2, 3, dtype=torch.float64),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "step": torch.tensor(3.0),
        "transposed": torch.arange(6.0).view(2, 3).T.contiguous(),
    }
    save_checkpoint(storage, KEY, kept, progress(7))
    loaded = load_checkpoint(storage, KEY)
    assert loaded is not None
    assert bits(loaded[0]) == bits(kept)
    assert loaded[1] == progress(7)
    assert type(loaded[1].points[0]) is tuple


def test_a_stage_that_never_ran_has_nothing(storage: Storage) -> None:
    assert load_checkpoint(storage, KEY) is load_result(storage, KEY) is load_weights(storage, KEY) is None


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_the_checkpoint_before_a_damaged_one_is_used(saved: Storage, suffix: str, how: str) -> None:
    damage(saved, f"step-00000002.{suffix}", DAMAGES[how])
    loaded = load_checkpoint(saved, KEY)
    assert loaded is not None
    assert bits(loaded[0]) == bits(tensors(1))
    assert loaded[1] == progress(1)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize(("first", "second"), [("safetensors", "json"), ("json", "safetensors")])
def test_with_all_checkpoints_damaged_there_is_none(saved: Storage, first: str, second: str, how: str) -> None:
    damage(saved, f"step-00000001.{first}", DAMAGES[how])
    damage(saved, f"step-00000002.{second}", DAMAGES[how])
    assert load_checkpoint(saved, KEY) is None


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_altered_byte_goes_unnoticed(saved: Storage, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from(["safetensors", "json"]))
    path = f"stages/{KEY}/step-00000002.{suffix}"
    whole = saved.read(path)
    end = len(whole) - (suffix == "json")  # the record's newline carries nothing
    saved.write(path, flipped(whole, data.draw(st.integers(0, end - 1)), data.draw(st.integers(1, 255))))
    loaded = load_checkpoint(saved, KEY)
    saved.write(path, whole)
    assert loaded is not None and loaded[1].step == 1


def test_tensors_of_another_checkpoint_are_not_taken(saved: Storage) -> None:
    """Both files are whole, but they do not belong together."""
    saved.write(f"stages/{KEY}/step-00000002.safetensors", saved.read(f"stages/{KEY}/step-00000001.safetensors"))
    loaded = load_checkpoint(saved, KEY)
    assert loaded is not None and loaded[1].step == 1


def test_tensors_without_progress_are_passed_over(saved: Storage) -> None:
    """A writer that was killed between the two files."""
    saved.write(f"stages/{KEY}/step-00000003.safetensors", b"whole or not")
    loaded = load_checkpoint(saved, KEY)
    assert loaded is not None and loaded[1].step == 2


def test_the_newest_two_are_kept(storage: Storage) -> None:
    for step in (8, 9, 10, 100):
        save_checkpoint(storage, KEY, tensors(step), progress(step))
    assert storage.names(f"stages/{KEY}") == [
        "step-00000010.json",
        "step-00000010.safetensors",
        "step-00000100.json",
        "step-00000100.safetensors",
    ]


def test_a_result_comes_back_and_its_checkpoints_go(saved: Storage) -> None:
    save_result(saved, KEY, tensors(3), result())
    assert load_result(saved, KEY) == result()
    weights = load_weights(saved, KEY)
    assert weights is not None and bits(weights) == bits(tensors(3))
    assert saved.names(f"stages/{KEY}") == ["result.json", "weights.safetensors"]


def test_a_diverged_result_comes_back(storage: Storage) -> None:
    diverged = StageResult("diverged", float("inf"), 1.0, "cpu", [], diverged_step=17)
    save_result(storage, KEY, {"w": torch.tensor([torch.nan])}, diverged)
    assert load_result(storage, KEY) == diverged


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_result_is_not_done(storage: Storage, how: str) -> None:
    save_result(storage, KEY, tensors(3), result())
    damage(storage, "result.json", DAMAGES[how])
    assert load_result(storage, KEY) is load_weights(storage, KEY) is None


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_weights_are_not_used(storage: Storage, how: str) -> None:
    save_result(storage, KEY, tensors(3), result())
    damage(storage, "weights.safetensors", DAMAGES[how])
    assert load_weights(storage, KEY) is None


def test_stages_are_apart(saved: Storage) -> None:
    other = KEY[::-1]
    save_checkpoint(saved, other, tensors(5), progress(5))
    for key, step in ((KEY, 2), (other, 5)):
        loaded = load_checkpoint(saved, key)
        assert loaded is not None and loaded[1].step == step
