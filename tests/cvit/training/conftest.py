"""What tests of training share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import cvit.training.loop as loop
from cvit.data.datasets import Dataset, describe, load
from cvit.storage import Storage


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in the same order every time, as in a sweep's workers on a CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load(describe("digits", "nowhere", download=False))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(str(tmp_path / "storage"))


@pytest.fixture
def eager_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint at every evaluation that the time spent on checkpoints allows: at the first one of each session."""
    monkeypatch.setattr(loop, "CHECKPOINT_INTERVAL_S", 0.0)
    monkeypatch.setattr(loop, "EXPECTED_BYTES_PER_S", 1e15)  # the first one does not wait for its size


@pytest.fixture
def every_checkpoint(eager_checkpoints: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint at every evaluation."""
    monkeypatch.setattr(loop, "CHECKPOINT_TIME_SHARE", 1e9)
