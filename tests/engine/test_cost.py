"""The cost of a plan is found within a bounded time, however large its steps are."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from cvit.config import TrialConfig
from cvit.engine.execution import cost, pack_size
from cvit.engine.execution.cost import flops_of, step_seconds
from cvit.engine.execution.workers import this_process
from cvit.stages import Stage, TrainingStage
from cvit.training import probe
from tests.support.plans import SMALL, make_progress

CPU = torch.device("cpu")

THREE_KINDS = (
    *("--preset", "smoke", "--data-fraction", "0.02", "0.05", "--init-scheme", "random", "two_phase", "resnet"),
    *("--seeds", "2", *SMALL[8:]),
)
"""Attention, alone and after the twin, the twin, and another model."""


def small_stage(folder: Path, **sizes: int) -> TrainingStage:
    stage = make_progress(folder, *SMALL).todo[0]
    assert isinstance(stage, TrainingStage)
    return dataclasses.replace(stage, trial=TrialConfig.from_flat(stage.trial.flat() | sizes))


def test_a_step_that_is_too_large_is_timed_with_fewer_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The full step allocates nothing: a batch of ten million images would not fit any memory."""
    built: list[TrainingStage] = []
    pack = probe._pack

    def noted(stage: TrainingStage, members: int, device: torch.device) -> object:
        built.append(stage)
        return pack(stage, members, device)

    monkeypatch.setattr(probe, "_pack", noted)
    monkeypatch.setattr(probe, "MOST_OPERATIONS", 1e8)
    stage = small_stage(tmp_path, batch_size=10_000_000)
    alone, pair = probe.step_seconds(stage, [1, 2], CPU)
    (timed,) = built
    batch = timed.trial.training.batch_size
    assert 1 <= batch < 10_000 and timed.trial.model == stage.trial.model
    assert pair == 2 * alone and alone > 1e-5 * 10_000_000 / batch


def test_then_with_fewer_blocks_and_then_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = small_stage(tmp_path, depth=2000)
    monkeypatch.setattr(probe, "MOST_OPERATIONS", probe._operations(deep) / 16 / 2000)  # one block, one image
    timed = probe._timeable(deep)
    assert timed is not None
    assert (timed.trial.training.batch_size, timed.trial.model.depth) == (1, 1)
    wide = small_stage(tmp_path, embed_dim=1_000_000)
    assert probe._timeable(wide) is None
    assert all(math.isnan(seconds) for seconds in probe.step_seconds(wide, [1, 2], CPU))
    assert pack_size.fitting_packs([(wide, 4)], this_process("cpu")) == [1]


@pytest.mark.parametrize(("depth", "blocks", "timed"), [(60, 20, (24, 8)), (60, 1, (24, 1)), (60, 60, (24, 24))])
def test_a_deep_hybrid_is_timed_with_its_share_of_attention(
    depth: int, blocks: int, timed: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "MOST_OPERATIONS", 1e15)
    found = probe._timeable(small_stage(tmp_path, depth=depth, attention_blocks=blocks))
    assert found is not None and (found.trial.model.depth, found.trial.model.attention_blocks) == timed


def test_operations_of_blocks_that_are_not_built_are_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = small_stage(tmp_path, depth=29)
    extrapolated = probe.step_flops(stage)
    monkeypatch.setattr(probe, "_DEEPEST", 29)
    assert extrapolated == probe.step_flops(stage)


def test_kinds_beyond_the_time_count_as_the_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    todo: list[Stage] = make_progress(tmp_path, *THREE_KINDS).todo
    kinds = {stage.cost_kind: stage for stage in todo}
    assert len(kinds) == 3
    monkeypatch.setattr(cost, "MEASURING_S", 0.0)
    costs = step_seconds(todo, {}, this_process("cpu"))
    (first,) = costs.by_kind.values()
    assert costs.num_kinds == 3
    assert costs.of(todo) == pytest.approx(first * sum(stage.steps for stage in todo))


def test_operations_are_those_of_every_kind(tmp_path: Path) -> None:
    todo = make_progress(tmp_path, *THREE_KINDS).todo
    counted = [probe.step_flops(stage) * stage.steps for stage in todo if isinstance(stage, TrainingStage)]
    assert len({stage.cost_kind for stage in todo}) == 3 and len(counted) == len(todo)
    assert flops_of(todo) == sum(counted)


def test_pack_sizes_are_measured_for_a_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = small_stage(tmp_path)
    tried: list[TrainingStage] = []

    def step_seconds(stage: TrainingStage, sizes: list[int], device: torch.device) -> list[float]:
        tried.append(stage)
        return [1.0 for _ in sizes]

    monkeypatch.setattr(probe, "step_seconds", step_seconds)
    monkeypatch.setattr(pack_size, "MEASURING_S", 0.0)
    others = [dataclasses.replace(stage, steps=steps) for steps in (1, 2)]
    assert pack_size.fitting_packs([(stage, 4), (others[0], 4), (others[1], 2)], this_process("cpu")) == [4, 4, 2]
    assert tried == [stage]
