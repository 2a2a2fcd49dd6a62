"""Learning rate and optimiser."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cvit import native
from cvit.config import ModelConfig, TrainingConfig
from cvit.data.datasets import Dataset
from cvit.models.pack import FusedModels
from cvit.models.vit import VisionTransformer
from cvit.randomness import generator
from cvit.storage import Storage
from cvit.training.groups import Group
from cvit.training.optimizer import AdamW, decays
from cvit.training.schedule import learning_rate
from tests.cvit.training.tiny import CPU, learning_rates, stages, train_all

MODEL = ModelConfig(image_size=8, patch_size=2, embed_dim=12, depth=1, num_heads=3, head_dim=4)


@given(
    total=st.integers(2, 2000),
    peak=st.floats(1e-6, 1e3),
    warmup=st.floats(0, 1, exclude_max=True),
)
def test_the_schedule_rises_linearly_and_falls_to_zero(total: int, peak: float, warmup: float) -> None:
    rates = [learning_rate(step, total, peak, warmup) for step in range(total)]
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)
    warm = round(warmup * total)
    assert rates[:warm] == pytest.approx([peak * (i + 1) / warm for i in range(warm)])
    if warm < total:
        assert rates[warm] == peak
        falling = rates[warm:]
        assert all(later < earlier for earlier, later in pairwise(falling))
        # The last of n steps of a cosine from peak to zero: sin²(π / 2n) of the peak.
        assert rates[-1] == pytest.approx(peak * math.sin(math.pi / 2 / len(falling)) ** 2)


def test_the_schedule_by_numbers() -> None:
    assert [learning_rate(i, 8, 2.0, 0.5) for i in range(4)] == [0.5, 1.0, 1.5, 2.0]
    cosine = [2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)]
    assert [learning_rate(i, 8, 2.0, 0.5) for i in range(4, 8)] == pytest.approx(cosine)
    assert [learning_rate(i, 4, 2.0, 0.0) for i in range(4)] == pytest.approx(cosine)
    assert learning_rate(9999, 10000, 1.0, 0.1) < 1e-7


def test_each_phase_has_a_schedule_of_its_own(digits: Dataset, storage: Storage) -> None:
    results = train_all(stages("two_phase", warmup_fraction=0.5), digits, storage)
    rates = [[value / 3e-3 for name, _, value, _ in result.points if name == "lr"] for result in results]
    # 8 steps each; at their 2nd, 4th, 6th and 8th
    expected = [0.5, 1.0, 0.5 * (1 + math.cos(math.pi / 4)), 0.5 * (1 + math.cos(3 * math.pi / 4))]
    assert rates == [pytest.approx(expected), pytest.approx(expected)]


def test_a_joint_schedule_is_one_warm_up_and_one_cosine_over_both_phases() -> None:
    own = {"min_steps": 40, "warmup_fraction": 0.2, "convolution_fraction": 0.25, "schedule": "joint"}
    convolution, attention = stages("two_phase", **own)
    rates = learning_rates(convolution) + learning_rates(attention)
    assert rates == [learning_rate(step, 40, 3e-3, 0.2) for step in range(40)]
    assert rates[:8] == pytest.approx([3e-3 * (step + 1) / 8 for step in range(8)])
    assert rates[10] < rates[9] < rates[8] == 3e-3, "the switch after 10 steps falls on the falling rate"
    # Each phase has its own peak, and the trial one warm-up.
    convolution, attention = stages("two_phase", **own, convolution_learning_rate=6e-3, convolution_warmup_fraction=0.0)
    assert learning_rates(convolution) == pytest.approx([2 * rate for rate in rates[:10]])
    assert learning_rates(attention) == rates[10:]
    assert learning_rates(stages(schedule="joint")[0]) == learning_rates(stages()[0]), "a scheme of one phase"


def test_the_rates_of_a_stage_are_those_that_it_trains_with(digits: Dataset, storage: Storage) -> None:
    both = stages("two_phase", warmup_fraction=0.5, schedule="joint", convolution_learning_rate=1e-3)
    for stage, result in zip(both, train_all(both, digits, storage), strict=True):
        recorded = [value for name, _, value, _ in result.points if name == "lr"]
        assert recorded == learning_rates(stage)[1::2]


@pytest.mark.parametrize(
    ("phase", "form", "mixing"),
    [
        ("attention", "factorized", {"query.weight", "key.weight", "value.weight", "output.weight"}),
        ("convolution", "factorized", {"value.weight", "output.weight"}),
        ("convolution", "full", {"weight"}),
        ("convolution", "pixel", {"weight"}),
    ],
)
def test_weight_decay_spares_biases_norms_and_position_terms(phase: str, form: Any, mixing: set[str]) -> None:
    config = ModelConfig(patch_size=2, embed_dim=16, depth=1, position_encoding="relative+absolute")
    model = VisionTransformer(config, phase, form)
    pack = FusedModels(model, 2, CPU)
    start = dict(model.named_parameters())
    names = {name for name, parameter in start.items() if decays(name, parameter.shape)}
    assert names == {
        "patch_embedding.weight",
        "blocks.0.mlp.0.weight",
        "blocks.0.mlp.2.weight",
        "head.weight",
    } | {f"blocks.0.mixing.{name}" for name in mixing}
    for member in range(2):
        pack.put(member, pack.matrix, start)
    configs = [TrainingConfig(weight_decay=0.1), TrainingConfig(weight_decay=0.0)]
    nothing, moving = torch.zeros_like(pack.matrix), torch.ones(2, 1, dtype=torch.bool)
    ours = AdamW(pack, configs)
    factors = torch.tensor(ours.coefficients([0.5, 0.5], 0))
    # Without a gradient there is decay alone, by learning rate times weight decay.
    ours.step(pack.matrix, nothing, nothing[:, :1], factors, moving)
    decayed, spared = pack.taken(pack.matrix)
    for name, parameter in start.items():
        torch.testing.assert_close(decayed[name], parameter.detach() * (0.95 if name in names else 1.0))
        assert torch.equal(spared[name], parameter.detach())


@pytest.mark.skipif(not native.is_available(), reason=f"no operators here: {native.problem()}")
@pytest.mark.parametrize("has_groups", [False, True])
@pytest.mark.parametrize("moves_by_column", [False, True])
@pytest.mark.parametrize("has_start", [False, True])
def test_the_native_step_is_that_of_torch(has_groups: bool, moves_by_column: bool, has_start: bool) -> None:
    names = [name for name, _ in VisionTransformer(MODEL, "attention").named_parameters()]
    groups = [{name: Group(rate_factor=0.5 if has_groups and "mlp" in name else 1.0) for name in names}] * 3
    draws = generator(0, "optimizer")

    def trained(size: int, member: int = 0) -> Tensor:
        models = FusedModels(VisionTransformer(MODEL, "attention"), size, CPU)
        rows = slice(member, member + size)
        configs = [TrainingConfig(weight_decay=0.1 * i, gradient_clip_norm=1.0) for i in range(3)][rows]
        optimizer = AdamW(models, configs, groups[rows])
        draws.manual_seed(0)

        def random() -> Tensor:
            return torch.randn(3, models.matrix.shape[1], generator=draws)[rows]

        models.matrix.copy_(random())
        if has_start:
            optimizer.decay_towards(random())
        for step in range(3):
            gradient = random()
            is_moving = torch.tensor([True, step != 1, True])[rows, None]
            if moves_by_column:
                is_moving = is_moving & (random() > 0)
            factors = torch.tensor(optimizer.coefficients([0.1, 0.2, 0.3][rows], step))
            norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            optimizer.step(models.matrix, gradient, norm, factors, is_moving)
        return torch.cat([models.matrix, *optimizer.moments.values()])

    fused = trained(3)
    with native.switched_off():
        torch.testing.assert_close(fused, trained(3), rtol=1e-5, atol=1e-6)
    assert torch.equal(fused[1::3], trained(1, member=1))
