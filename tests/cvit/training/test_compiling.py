"""Compiled steps end as steps that are not, are compiled once for a kind of pack, and are given up where they fail.

On a GPU compilation writes Triton kernels; here torch traces the same functions and runs its own operators, or in the
longer test writes C++.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from cvit import native
from cvit.config import InitSchemeName
from cvit.cost import COMPILE_S, SHARE_SAVED, compile_seconds
from cvit.data.datasets import Dataset
from cvit.init.registry import initial_model
from cvit.models.attention import RelativeAttention
from cvit.training import compiling
from cvit.training.batches import pack_data
from cvit.training.pack import TrainingPack
from tests.cvit.test_cuda_attention import kernel
from tests.cvit.training.test_pack import CPU, varied

_ = kernel  # attention of GPUs, on a CPU
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # torch, of parameters
]
FOR_LONG = 1e6
"""Seconds of a step after which everything is worth compiling."""
Graph = Callable[..., Any]


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has compiled nothing, and computes what a GPU would: not by the operators for CPUs."""
    monkeypatch.setattr(compiling, "_compiled_kinds", set())
    monkeypatch.setattr(compiling, "_is_possible", True)
    compiling._compiled_block.cache_clear()
    torch.compiler.reset()
    with native.switched_off():
        yield
    compiling._compiled_block.cache_clear()
    torch.compiler.reset()


def new_pack(digits: Dataset, scheme: InitSchemeName, **changes: Any) -> TrainingPack:
    stages = varied(2, scheme, min_steps=400, **changes)
    states = [initial_model(one, None)[0].state_dict() for one in stages]
    pack = TrainingPack(stages, pack_data(digits, stages, CPU), states, CPU)
    pack._models.model.train()
    pack._fill_tables(range(8))
    return pack


def take(pack: TrainingPack, steps: int = 4, compiled: bool = False) -> TrainingPack:
    """Takes the first steps, as the warm-up of a CUDA graph takes them."""
    if compiled:
        pack._step_seconds = FOR_LONG
        pack._compile_if_it_pays(0)
    for step in range(steps):
        pack._first_step(pack._readings[step % len(pack._readings)])
    return pack


def assert_alike(pack: TrainingPack, other: TrainingPack, tolerance: float) -> None:
    assert float((pack._losses - other._losses).abs().max()) < tolerance
    assert float((pack._models.matrix - other._models.matrix).abs().max()) < tolerance


@pytest.mark.parametrize(
    ("scheme", "changes"),
    [
        ("random", {"stochastic_depth": 0.5, "position_encoding": "relative+absolute"}),
        ("convolution", {"precision": "bfloat16"}),
        ("resnet", {}),
        pytest.param("joint", {}, marks=pytest.mark.simulation),
        pytest.param("convolution", {"convolution_form": "pixel"}, marks=pytest.mark.simulation),
    ],
)
def test_compiled_steps_are_the_steps(
    scheme: InitSchemeName, changes: dict[str, Any], digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_BACKEND", "aot_eager")
    compiled = take(new_pack(digits, scheme, **changes), compiled=True)
    assert compiled._is_compiled, "without a break in a graph"
    assert_alike(compiled, take(new_pack(digits, scheme, **changes)), 1e-5)


def test_the_attention_of_gpus_is_compiled(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its operators, which a compiler cannot look into."""
    monkeypatch.setattr(RelativeAttention, "forward", RelativeAttention._forward_on_cuda)
    monkeypatch.setattr(compiling, "_BACKEND", "aot_eager")
    monkeypatch.setattr("cvit.models.cuda_attention._HAS_TRITON", False)
    compiled = take(new_pack(digits, "random"), compiled=True)
    monkeypatch.undo()
    assert compiled._is_compiled
    assert_alike(compiled, take(new_pack(digits, "random")), 1e-5)


def test_all_blocks_and_all_packs_of_a_kind_share_a_compilation(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Graph:
        compiled.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(compiling, "_BACKEND", count)
    first = take(new_pack(digits, "random", depth=3), compiled=True)
    assert len(compiled) == 2, "a block, and the optimiser"
    other = new_pack(digits, "random", depth=3)
    other._compile_if_it_pays(0)
    assert other._is_compiled, "at once: it costs nothing"
    assert_alike(take(other), first, 1e-9)
    assert len(compiled) == 2


@pytest.mark.parametrize("fails_at", ["block", "optimiser"])
def test_a_compiler_that_fails_is_given_up_with_one_line(
    fails_at: str, digits: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No step is lost or taken twice: the weights are bit for bit those without it."""

    def fail(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Graph:
        is_optimiser = any("lerp" in str(node.target) for node in graph.graph.nodes)
        if is_optimiser != (fails_at == "optimiser"):
            return graph.forward
        raise RuntimeError("no Triton\nand more")

    monkeypatch.setattr(compiling, "_BACKEND", fail)
    caplog.set_level(logging.WARNING)
    packs = [take(new_pack(digits, "random"), compiled=True) for _ in range(2)]
    expected = take(new_pack(digits, "random"))
    for pack in packs:
        assert not pack._is_compiled
        assert torch.equal(pack._models.matrix, expected._models.matrix)
        assert torch.equal(pack._losses, expected._losses)
    (line,) = [record.getMessage() for record in caplog.records if record.name == compiling.__name__]
    assert line.startswith("steps are not compiled (") and "no Triton" in line and "\n" not in line


def test_no_memory_is_no_fault_of_the_compiler(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pack is halved, as it would be without."""

    def no_room(*_: Any) -> Graph:
        raise torch.OutOfMemoryError("CUDA out of memory")

    pack = new_pack(digits, "random")
    monkeypatch.setattr(pack, "_step", no_room)
    with pytest.raises(torch.OutOfMemoryError):
        take(pack, compiled=True)
    assert compiling._is_possible


def test_short_trainings_are_not_compiled(digits: Dataset) -> None:
    least = COMPILE_S / SHARE_SAVED
    assert compile_seconds(0.99 * least, "cuda") == 0 and compile_seconds(1.01 * least, "cuda") == COMPILE_S
    assert compile_seconds(100 * least, "cpu") == 0
    pack = new_pack(digits, "random")
    pack._step_seconds = 0.9 * least / pack.stages[0].steps
    pack._compile_if_it_pays(0)
    assert not pack._is_compiled
    pack._step_seconds = FOR_LONG
    pack._compile_if_it_pays(pack.stages[0].steps - 5)
    assert not pack._is_compiled, "nothing is captured for five steps"


@pytest.mark.simulation  # minutes of a C++ compiler
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_steps_by_inductor(precision: str, digits: Dataset) -> None:
    compiled = take(new_pack(digits, "random", precision=precision), compiled=True)
    assert compiled._is_compiled
    assert_alike(
        compiled, take(new_pack(digits, "random", precision=precision)), 1e-5 if precision == "float32" else 1e-2
    )
