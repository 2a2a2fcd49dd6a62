"""Rates by parameter, moments that are carried over, and decay towards the start."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cvit.config import ConvolutionForm
from cvit.data.datasets import Dataset
from cvit.init.registry import blank_model, initial_model
from cvit.models.pack import FusedModels
from cvit.parameters import choices
from cvit.results import MOMENTS, load_result
from cvit.stages import TrainingStage
from cvit.storage import Storage
from cvit.training.checkpoint import load_part
from cvit.training.groups import MOMENT_NAMES, Group, carried_moments, carried_names, groups_of
from cvit.training.loop import ParentStageMissing, train_pack
from cvit.training.optimizer import AdamW, decays
from tests.cvit.training.test_pack import assert_same
from tests.cvit.training.tiny import (
    CPU,
    assert_same_outcome,
    learning_rates,
    reports_of,
    stages,
    train,
    train_all,
    weights_of,
)

ABSOLUTE: dict[str, Any] = {"position_encoding": "relative+absolute"}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"position_learning_rate_factor": 30.0, "weight_decay": 0.5},
    {"transferred_learning_rate_factor": 0.1, "position_learning_rate_factor": 3.0},
    {"optimizer_state": "carried"},
    {"optimizer_state": "carried", "transferred_learning_rate_factor": 0.3, "gradient_clip_norm": 0.0},
    {"decay_towards": "start", "weight_decay": 0.5, "transferred_learning_rate_factor": 0.5},
    {
        "decay_towards": "start",
        "weight_decay": 0.1,
        "optimizer_state": "carried",
        "position_learning_rate_factor": 10.0,
    },
]
POSITION = {"position_embedding", "blocks.0.mixing.relative_bias"}
NEW = {"blocks.0.mixing.query.weight", "blocks.0.mixing.key.weight", "blocks.0.mixing.relative_bias"}
REPLACED = {"blocks.0.mixing.value.weight", "blocks.0.mixing.output.weight", "blocks.0.mixing.output.bias"}
"""Parameters of attention that take the place of a full convolution."""


def factor_of(name: str, stage: TrainingStage) -> float:
    training = stage.trial.training
    of_position = training.position_learning_rate_factor if name in POSITION else 1.0
    return of_position * (1.0 if name in NEW else training.transferred_learning_rate_factor)


def groups_in_torch(model: nn.Module, stage: TrainingStage) -> torch.optim.AdamW:
    """AdamW with a parameter group for each parameter."""
    decay = stage.trial.training.weight_decay
    return torch.optim.AdamW(
        [
            {"params": [p], "factor": factor_of(name, stage), "weight_decay": decay if decays(name, p.shape) else 0.0}
            for name, p in model.named_parameters()
        ]
    )


def step_in_torch(optimizer: torch.optim.AdamW, model: nn.Module, rate: float, clip_norm: float) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm or math.inf)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    optimizer.step()


def drawn(parameters: Mapping[str, Tensor], seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(p.shape, generator=source) for name, p in parameters.items()}


@pytest.mark.parametrize("form", ["factorized", "full"])
def test_every_member_takes_the_steps_of_torchs_adamw_with_parameter_groups(form: ConvolutionForm) -> None:
    """Members of one pack with settings of their own. Torch's AdamW trains the twin for 8 steps, and where the state is
    carried its own state dict goes into the AdamW of the attention phase. Decay towards the start is decay towards zero
    of the displacement, so that torch's parameters are the displacement there."""
    members = [stages("two_phase", convolution_form=form, seed=i, **ABSOLUTE, **s)[1] for i, s in enumerate(SETTINGS)]
    pack = FusedModels(blank_model(members[0]), len(members), CPU)
    names = [name for name, _ in pack.model.named_parameters()]
    ours = AdamW(pack, [stage.trial.training for stage in members], [groups_of(stage, names) for stage in members])
    models, optimizers, origins = [], [], []
    starts = torch.zeros_like(pack.matrix)
    for i, stage in enumerate(members):
        twin_stage = stage.parent
        assert twin_stage is not None and twin_stage.steps == 8
        twin, _ = initial_model(twin_stage, None)
        before = torch.optim.AdamW(twin.parameters())
        for step in range(8):
            for name, gradient in drawn(dict(twin.named_parameters()), 100 * i + step).items():
                twin.get_parameter(name).grad = gradient
            before.step()
        model, _ = initial_model(stage, twin)
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        pack.put(i, pack.matrix, start)
        towards_start = stage.trial.training.decay_towards == "start"
        if towards_start:
            pack.put(i, starts, start)
            for parameter in model.parameters():
                parameter.data.zero_()
        optimizer = groups_in_torch(model, stage)
        if stage.trial.training.optimizer_state == "carried":
            twin_names, state = [n for n, _ in twin.named_parameters()], before.state_dict()["state"]
            shared = [n for n in names if n in twin_names and (form == "factorized" or n not in REPLACED)]
            carried = {names.index(n): state[twin_names.index(n)] for n in shared}
            optimizer.load_state_dict(optimizer.state_dict() | {"state": carried})
            saved = {f"{m}/{n}": state[twin_names.index(n)][m] for n in twin_names for m in MOMENT_NAMES}
            moments = carried_moments(stage, start, saved)
            for moment, matrix in ours.moments.items():
                pack.put(i, matrix, {name: moments[f"{moment}/{name}"] for name in names})
        models.append(model)
        optimizers.append(optimizer)
        origins.append(start if towards_start else {name: torch.zeros_like(p) for name, p in start.items()})
    ours.decay_towards(starts)
    moving = torch.ones(len(members), 1, dtype=torch.bool)
    for step in range(4):
        rates = [1e-3 * (1 + i + 5 * step) for i in range(len(members))]
        gradients = [drawn(origins[0], 1000 * step + i, 10.0 ** (step - 2)) for i in range(len(members))]
        matrix = torch.zeros_like(pack.matrix)
        for i, gradient in enumerate(gradients):
            pack.put(i, matrix, gradient)
        ours.step(
            pack.matrix, matrix, matrix.norm(dim=1, keepdim=True), torch.tensor(ours.coefficients(rates, step)), moving
        )
        for i, (stage, model, optimizer) in enumerate(zip(members, models, optimizers, strict=True)):
            for name, gradient in gradients[i].items():
                model.get_parameter(name).grad = gradient.clone()
            step_in_torch(optimizer, model, rates[i], stage.trial.training.gradient_clip_norm)
            for name, found in pack.taken(pack.matrix)[i].items():
                expected = origins[i][name] + model.get_parameter(name).detach()
                torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6, msg=f"{step} {SETTINGS[i]} {name}")


@pytest.mark.parametrize("form", choices(ConvolutionForm))
def test_moments_go_over_where_the_transfer_takes_a_weight_over_as_it_is(form: ConvolutionForm) -> None:
    convolution, attention = stages("two_phase", convolution_form=form, optimizer_state="carried", **ABSOLUTE)
    twin, _ = initial_model(convolution, None)
    for parameter in twin.parameters():
        nn.init.normal_(parameter)
    model, _ = initial_model(attention, twin)
    weights, own = dict(twin.named_parameters()), dict(model.named_parameters())
    carried = carried_names(attention)
    assert {"patch_embedding.weight", "position_embedding", "norm.bias", "head.weight"} <= carried or form == "pixel"
    assert all(torch.equal(weights[name], own[name]) for name in carried)
    assert NEW.isdisjoint(carried) and REPLACED.isdisjoint(carried) == (form != "factorized")
    assert carried_names(stages("two_phase")[1]) == frozenset() == carried_names(convolution)


def test_what_has_no_factor_and_no_moments_is_one_group() -> None:
    """So a pack without such settings takes the same step as before, at the same cost."""
    for scheme in ("two_phase", "random", "convolution", "resnet"):
        for stage in stages(scheme):
            names = [name for name, _ in blank_model(stage).named_parameters()]
            assert set(groups_of(stage, names).values()) == {Group()}
            assert AdamW(FusedModels(blank_model(stage), 1, CPU), [stage.trial.training]).num_groups == 1


def test_the_carried_optimizer_goes_on_as_if_there_were_no_phases(digits: Dataset, tmp_path: Path) -> None:
    """A sharpness of 80 makes attention compute the twin and pins its pattern: no gradient reaches queries, keys and
    biases. Then two phases with one schedule and a carried state are the twin trained without a break."""
    settings: dict[str, Any] = {"schedule": "joint", "attention_sharpness": 80.0, "gradient_clip_norm": 0.0}
    storage = Storage.open(str(tmp_path))
    (alone,) = stages("convolution")
    train(alone, digits, storage)
    unbroken = weights_of(alone, storage)

    def distance(state: str) -> float:
        both = stages("two_phase", **settings, optimizer_state=state)
        train_all(both, digits, storage)
        found = weights_of(both[1], storage)
        return max(float((found[name] - value).abs().max()) for name, value in unbroken.items())

    assert alone.trial.training.gradient_clip_norm == 1.0  # the tiny model's gradients are smaller
    assert distance("carried") < 2e-5 < 1e-3 < distance("reset")


@pytest.mark.parametrize("factor", [1.0, 50.0])
def test_a_bias_moves_by_at_most_about_the_sum_of_its_learning_rates(
    factor: float, digits: Dataset, storage: Storage
) -> None:
    (stage,) = stages("random", min_steps=40, position_learning_rate_factor=factor, decay_towards="start")
    start = initial_model(stage, None)[0].state_dict()
    train(stage, digits, storage)
    end, total = weights_of(stage, storage), sum(learning_rates(stage))
    moved = {name: float((end[name] - value).abs().max()) / total for name, value in start.items()}
    assert 0.3 * factor < moved.pop("blocks.0.mixing.relative_bias") < 1.1 * factor
    assert max(moved.values()) < 1.1


def test_a_factor_of_zero_freezes(digits: Dataset, storage: Storage) -> None:
    both = stages("two_phase", transferred_learning_rate_factor=0.0)
    train_all(both, digits, storage)
    twin, end = (weights_of(stage, storage) for stage in both)
    assert all(torch.equal(value, twin[name]) == (name not in NEW) for name, value in end.items() if name in twin)
    assert end["blocks.0.mixing.key.weight"].any(), "keys learn"


def test_decay_towards_the_start_leaves_what_has_no_gradient_exactly_there() -> None:
    stage = stages("random", decay_towards="start", weight_decay=0.5)[0]
    pack = FusedModels(blank_model(stage), 1, CPU)
    pack.put(0, pack.matrix, initial_model(stage, None)[0].state_dict())
    ours, start = AdamW(pack, [stage.trial.training]), pack.matrix.clone()
    ours.decay_towards(start)
    nothing, moving = torch.zeros_like(start), torch.ones(1, 1, dtype=torch.bool)
    for step in range(5):
        ours.step(pack.matrix, nothing, nothing[:, :1], torch.tensor(ours.coefficients([0.1], step)), moving)
    assert torch.equal(pack.matrix, start)


# Packs, interruptions and parents


def mixed(number: int) -> list[TrainingStage]:
    """Stages of one shape, one with each of the settings."""
    every = [*SETTINGS, {"schedule": "joint", "optimizer_state": "carried", "decay_towards": "start"}]
    return [stages("two_phase", seed=i, **ABSOLUTE, **s)[number] for i, s in enumerate(every)]


def test_members_with_settings_of_their_own_end_as_alone(digits: Dataset, tmp_path: Path) -> None:
    together, alone = Storage.open(str(tmp_path / "together")), Storage.open(str(tmp_path / "alone"))
    for number in range(2):
        members = mixed(number)
        assert len({stage.shape for stage in members}) == 1
        list(train_pack(members, digits, together, CPU))
        for stage in members:
            train(stage, digits, alone)
            assert_same(stage, together, alone)


def test_a_member_without_settings_takes_the_same_step_beside_others_that_have_them() -> None:
    """Bit for bit: the settings of one member change nothing in the arithmetic of another."""
    members = [stage for stage in mixed(1) if not stage.carries_moments]
    names = [name for name, _ in blank_model(members[0]).named_parameters()]
    ended = []
    for chosen in (members, members[:1] * len(members)):
        pack = FusedModels(blank_model(members[0]), len(chosen), CPU)
        nn.init.normal_(pack.matrix, generator=torch.Generator().manual_seed(0))
        configs = [stage.trial.training for stage in chosen]
        ours = AdamW(pack, configs, [groups_of(stage, names) for stage in chosen])
        if chosen is members:
            starts = pack.matrix.clone()
            starts[0] = 0.0
            ours.decay_towards(starts)
        moving = torch.ones(len(chosen), 1, dtype=torch.bool)
        for step in range(3):
            gradient = torch.randn(pack.matrix.shape, generator=torch.Generator().manual_seed(step))
            factors = torch.tensor(ours.coefficients([0.01] * len(chosen), step))
            ours.step(pack.matrix, gradient, gradient.norm(dim=1, keepdim=True), factors, moving)
        ended.append(pack.matrix)
    assert torch.equal(ended[0][0], ended[1][0])
    assert not torch.equal(ended[0][1], ended[1][1])


@pytest.mark.usefixtures("eager_checkpoints")
@pytest.mark.parametrize("settings", [SETTINGS[4], SETTINGS[6] | {"schedule": "joint"}])
def test_a_stage_interrupted_at_every_checkpoint_ends_as_if_it_had_not_been(
    settings: dict[str, Any], digits: Dataset, tmp_path: Path
) -> None:
    undisturbed, disturbed = Storage.open(str(tmp_path / "a")), Storage.open(str(tmp_path / "b"))
    for stage in stages("two_phase", **ABSOLUTE, **settings):
        train(stage, digits, undisturbed)
        while load_result(disturbed, stage.key) is None:
            next(reports_of(stage, digits, disturbed, CPU))
        assert_same_outcome(stage, undisturbed, disturbed)
        moments = [load_part(storage, stage.key, MOMENTS) for storage in (undisturbed, disturbed)]
        if stage.phase == "convolution":
            assert moments[0] is not None and moments[1] is not None
            assert all(torch.equal(value, moments[1][name]) for name, value in moments[0].items())
        else:
            assert moments == [None, None]


def test_a_parent_without_whole_moments_is_named_and_trained_anew(digits: Dataset, storage: Storage) -> None:
    convolution, attention = stages("two_phase", optimizer_state="carried")
    train(convolution, digits, storage)
    path = f"stages/{convolution.key}/moments.safetensors"
    whole = storage.read(path)
    storage.write(path, whole[:-2])
    with pytest.raises(ParentStageMissing, match=convolution.key):
        next(reports_of(attention, digits, storage, CPU))
    train(convolution, digits, storage)
    assert storage.read(path) == whole
    assert train(attention, digits, storage).status == "ok"
