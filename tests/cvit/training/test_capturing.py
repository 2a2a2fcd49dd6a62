"""CUDA graphs as a process captures them. Where there is no GPU, a stand-in for torch's API of streams and graphs runs
at once what is captured; it shows which stream works, not that a GPU could."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from cvit.data.datasets import Dataset
from cvit.init.registry import initial_model
from cvit.training import pack as training_pack
from cvit.training.batches import pack_data
from cvit.training.pack import TrainingPack
from tests.cvit.training.test_pack import CPU, varied


class StreamsAndGraphs:
    """The part of torch.cuda that capturing uses. `taken` has the stream of every step: eager, then captured."""

    def __init__(self) -> None:
        self.current: Any = "default"
        self.streams, self.graphs = 0, 0
        self.work: list[tuple[str, Any]] = []

    def new_stream(self, device: torch.device) -> Any:
        self.streams += 1
        return type("Stream", (), {"wait_stream": lambda self, other: None})()

    def current_stream(self, device: torch.device) -> Any:
        return type("Stream", (), {"wait_stream": lambda self, other: None})()

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.current = stream
        yield
        self.current = "default"

    @contextlib.contextmanager
    def graph(self, graph: Any, pool: Any = None, stream: Any = None) -> Iterator[None]:
        self.graphs += 1
        self.work.append(("capture", stream))
        yield


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> StreamsAndGraphs:
    found = StreamsAndGraphs()
    monkeypatch.setattr(torch.cuda, "Stream", found.new_stream)
    monkeypatch.setattr(torch.cuda, "stream", found.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", found.current_stream)
    monkeypatch.setattr(torch.cuda, "graph", found.graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: type("Graph", (), {"pool": lambda self: "pool"})())
    training_pack._capture_stream.cache_clear()
    step = TrainingPack._step

    def seen(pack: TrainingPack, reading: Any) -> None:
        found.work.append(("step", found.current))
        step(pack, reading)

    monkeypatch.setattr(TrainingPack, "_step", seen)
    return found


@pytest.fixture(autouse=True)
def forget_the_stand_in() -> Iterator[None]:
    yield
    training_pack._capture_stream.cache_clear()


def test_one_stream_warms_up_and_captures_for_all_packs(digits: Dataset, cuda: StreamsAndGraphs) -> None:
    """Each stream that multiplies matrices keeps a workspace of cuBLAS, 67 MB, as long as the process lives."""
    for scheme in ("random", "joint"):
        stages = varied(2, scheme)
        states = [initial_model(one, None)[0].state_dict() for one in stages]
        pack = TrainingPack(stages, pack_data(digits, stages, CPU), states, CPU)
        pack._fill_tables(range(8))
        pack._capture([pack._readings[step % len(pack._readings)] for step in range(3)])
        assert len(pack._graphs) == len(pack._readings)
    assert cuda.streams == 1 and cuda.graphs == 3
    eager = {stream for kind, stream in cuda.work if kind == "step" and stream != "default"}
    captured = {stream for kind, stream in cuda.work if kind == "capture"}
    assert eager == captured and len(eager) == 1
