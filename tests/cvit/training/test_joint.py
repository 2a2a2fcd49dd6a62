"""The scheme `joint`: even steps train the weights as the factorized twin, odd steps as attention."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cvit.training.pack as training_pack
from cvit.config import TrialConfig
from cvit.data.datasets import Dataset
from cvit.init.registry import blank_model, initial_model
from cvit.models.pack import FusedModels
from cvit.models.twin import twin_reading
from cvit.models.vit import VisionTransformer
from cvit.stages import TrainingStage, stages_of
from cvit.storage import Storage
from cvit.training.batches import pack_data
from cvit.training.groups import MOMENT_NAMES, POSITION_TERMS
from cvit.training.loop import train_pack
from cvit.training.optimizer import decays
from cvit.training.pack import TrainingPack
from cvit.training.probe import step_flops, step_seconds
from cvit.training.readings import Reading
from cvit.training.schedule import rate_at
from cvit.vocabulary import CONVOLUTION
from tests.cvit.training.tiny import CPU, NUM_IMAGES, TINY, assert_same_outcome, train

JOINT: dict[str, Any] = TINY | {
    "init_scheme": "joint",
    "depth": 2,
    "augmentation": "none",
    "position_encoding": "relative+absolute",
}
OWN = ("query.weight", "key.weight", "relative_bias")
"""The parameters of attention that its twin does not have."""


def stage(**changes: Any) -> TrainingStage:
    (found,) = stages_of(TrialConfig.from_flat(JOINT | changes), NUM_IMAGES)
    return found


def twin_stage(of: TrainingStage) -> TrainingStage:
    """The steps of a joint stage, all of them of the twin."""
    return TrainingStage(CONVOLUTION, of.trial, of.steps, 0, of.evaluation_interval)


def attention_stage(of: TrainingStage) -> TrainingStage:
    """The steps of a joint stage, all of them of attention."""
    trial = TrialConfig.from_flat(of.trial.flat() | {"init_scheme": "conv_structured"})
    return TrainingStage("attention", trial, of.steps, 0, of.evaluation_interval)


def shared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if not name.endswith(OWN)}


def pack_of(stages: list[TrainingStage], digits: Dataset, states: list[dict[str, Tensor]]) -> TrainingPack:
    return TrainingPack(stages, pack_data(digits, stages, CPU), states, CPU)


def start_of(one: TrainingStage) -> dict[str, Tensor]:
    return initial_model(one, None)[0].state_dict()


# The model


@pytest.mark.parametrize("encoding", ["relative", "relative+absolute"])
@pytest.mark.parametrize("heads", [9, 5])
@pytest.mark.parametrize("blocks", [None, 1])
def test_both_readings_agree_at_the_start(encoding: str, heads: int, blocks: int | None) -> None:
    """With heads that attend to nothing but their target, in float64; in a hybrid too."""
    sizes: dict[str, Any] = {"num_heads": heads, "attention_blocks": blocks}
    one = stage(attention_sharpness=60.0, position_encoding=encoding, convolution_form="full", **sizes)
    model = initial_model(one, None)[0].double()
    images = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(twin_reading(model)(images), model(images), rtol=1e-12, atol=1e-12)


def test_the_twin_reading_has_the_weights_of_the_model_and_no_others() -> None:
    model = initial_model(stage(), None)[0]
    parameters, twin = dict(model.named_parameters()), twin_reading(model)
    found = dict(twin.named_parameters())
    assert all(found[name] is parameters[name] for name in found)
    left = sorted(set(parameters) - set(found))
    assert left == sorted(f"blocks.{i}.mixing.{name}" for i in range(2) for name in OWN)
    assert not any(buffer.is_meta for buffer in twin.buffers())


def test_a_pack_is_read_as_the_twins_of_its_members() -> None:
    """Logits and gradients, in float64."""
    one = stage()
    models = [initial_model(stage(seed=seed), None)[0] for seed in range(3)]
    pack = FusedModels(blank_model(one), 3, CPU)
    for i, model in enumerate(models):
        pack.put(i, pack.matrix, model.state_dict())
    pack.model.double()
    twin = twin_reading(pack.model)
    images = torch.randn(3, 5, 1, 8, 8, dtype=torch.float64)
    logits = twin(images)
    gradients = torch.autograd.grad(logits.square().sum(), list(twin.parameters()))
    for i, model in enumerate(models):
        alone = VisionTransformer(one.trial.model, CONVOLUTION).double()
        alone.load_state_dict(shared(model.double().state_dict()))
        expected = alone(images[i])
        torch.testing.assert_close(logits[i], expected, rtol=1e-10, atol=1e-10)
        for found, gradient in zip(
            gradients, torch.autograd.grad(expected.square().sum(), list(alone.parameters())), strict=True
        ):
            torch.testing.assert_close(found[i], gradient, rtol=1e-9, atol=1e-9)


# The steps

REGULARISED: dict[str, Any] = {"stochastic_depth": 0.5, "mixup_alpha": 0.8, "augmentation": "shift"}


@pytest.mark.parametrize("changes", [{}, REGULARISED])
def test_an_even_step_is_a_step_of_the_twin(changes: dict[str, Any], digits: Dataset) -> None:
    """Bit for bit; what the twin does not have stands still, and so do its moments. Without clipping, whose norm is a
    sum over another number of zeros."""
    one = stage(evaluations=16, gradient_clip_norm=0.0, **changes)
    start = start_of(one)
    joint, twin = pack_of([one], digits, [start]), pack_of([twin_stage(one)], digits, [shared(start)])
    losses = [pack.train(0).losses for pack in (joint, twin)]
    assert torch.equal(*losses)
    (after,), (expected,) = joint.states(), twin.states()
    assert set(expected) < set(after)
    assert all(torch.equal(after[name], value) for name, value in expected.items())
    for name in set(after) - set(expected):
        assert torch.equal(after[name], start.get(name, torch.zeros_like(after[name]))), name
    assert not torch.equal(after["head.weight"], start["head.weight"])


def test_decay_towards_the_start_leaves_what_a_step_does_not_use_as_it_is(digits: Dataset) -> None:
    one = stage(evaluations=16, decay_towards="start", weight_decay=0.5)
    pack = pack_of([one], digits, [start_of(one)])
    states = [pack.train(step) and pack.states()[0] for step in range(4)]
    for name in (name for name, value in states[0].items() if name.endswith(OWN) and "start/" not in name):
        assert torch.equal(states[2][name], states[1][name]), "the third step is the twin's"
        assert not torch.equal(states[3][name], states[2][name]), "the fourth is attention's"


@pytest.mark.parametrize("changes", [{}, REGULARISED])
def test_an_odd_step_is_a_step_of_attention(changes: dict[str, Any], digits: Dataset) -> None:
    """Bit for bit, for the weights that have taken as many steps; all of attention's weights move."""
    one = stage(evaluations=16, gradient_clip_norm=0.0, **changes)
    start = start_of(one)
    joint, attention = pack_of([one], digits, [start]), pack_of([attention_stage(one)], digits, [start])
    losses = [pack.train(1).losses for pack in (joint, attention)]
    assert torch.equal(*losses)
    (after,), (expected,) = joint.states(), attention.states()
    assert set(after) == set(expected)
    moments = {name: value for name, value in expected.items() if name.startswith(MOMENT_NAMES)}
    assert all(torch.equal(after[name], value) for name, value in (moments | shared(expected)).items())
    # The first step that moves them: a gradient of any size moves by the learning rate.
    for name in (f"blocks.{i}.mixing.{own}" for i in range(2) for own in ("key.weight", "relative_bias")):
        moved = (after[name] - start[name]).abs()
        assert float(moved.max()) == pytest.approx(rate_at(one, 1), rel=1e-3), name


def torch_trained(one: TrainingStage, digits: Dataset) -> dict[str, Tensor]:
    """The weights after a plain loop with `torch.optim.AdamW`, whose gradients are None where a reading has none."""
    config, data = one.trial.training, pack_data(digits, [one], CPU)
    model = initial_model(one, None)[0]
    readings = [twin_reading(model), model]
    named = list(model.named_parameters())
    terms = [p for n, p in named if n.endswith(POSITION_TERMS)]
    others = [p for n, p in named if not decays(n, p.shape) and not n.endswith(POSITION_TERMS)]
    groups = [
        {"params": [p for n, p in named if decays(n, p.shape)], "factor": 1.0},
        {"params": others, "weight_decay": 0.0, "factor": 1.0},
        {"params": terms, "weight_decay": 0.0, "factor": config.position_learning_rate_factor},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    for step in range(one.steps):
        places, _ = training_pack.draw_batches(data, [one], range(step, step + 1))
        images, labels = data.train.images[places[0, 0]], data.train.labels[places[0, 0]]
        optimizer.zero_grad(set_to_none=True)
        logits = readings[step % 2](data.normalised(images[None])[0])
        F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing).backward()
        assert (model.get_parameter("blocks.0.mixing.key.weight").grad is None) == (step % 2 == 0)
        nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip_norm or math.inf)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(one, step) * group["factor"]
        optimizer.step()
    return {name: value.detach() for name, value in model.named_parameters()}


def test_a_pack_takes_the_steps_of_torchs_adamw_with_readings_in_turn(digits: Dataset) -> None:
    members = [
        stage(seed=0),
        stage(seed=1, learning_rate=6e-3, weight_decay=0.5, gradient_clip_norm=0.1, data_fraction=0.1),
        stage(seed=2, learning_rate=1e-3, warmup_fraction=0.4, label_smoothing=0.1, gradient_clip_norm=0.0),
        stage(seed=3, position_learning_rate_factor=20.0),
    ]
    pack = pack_of(members, digits, [start_of(member) for member in members])
    for first in range(0, 16, 2):
        pack.train(first)
    for found, member in zip(pack.weights(), members, strict=True):
        for name, value in torch_trained(member, digits).items():
            # AdamW's division by √ν amplifies the rounding of gradients near zero, as in test_pack.
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.usefixtures("every_checkpoint")
@pytest.mark.parametrize("reports", [1, 2])
def test_an_interrupted_stage_ends_as_an_uninterrupted_one(reports: int, digits: Dataset, tmp_path: Path) -> None:
    """Bit for bit, also from a checkpoint after an odd number of steps."""
    one = stage(min_steps=15, evaluations=5)
    assert one.evaluation_interval == 3
    disturbed, whole = Storage.open(str(tmp_path / "disturbed")), Storage.open(str(tmp_path / "whole"))
    running = train_pack([one], digits, disturbed, CPU)
    for _ in range(reports):
        next(running)
    train(one, digits, disturbed)
    train(one, digits, whole)
    assert_same_outcome(one, disturbed, whole)


def test_the_steps_take_turns_over_evaluations(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []
    take_step = TrainingPack._step

    def noted(pack: TrainingPack, reading: Reading) -> None:
        taken.append(reading.model is pack._models.model)
        take_step(pack, reading)

    monkeypatch.setattr(TrainingPack, "_step", noted)
    one = stage(min_steps=9, evaluations=3)
    pack = pack_of([one], digits, [start_of(one)])
    for first in (0, 3, 6):
        pack.train(first)
    assert taken == [step % 2 == 1 for step in range(9)]


# The cost


def test_a_step_costs_the_mean_of_both_readings() -> None:
    one = stage()
    flops = [step_flops(each) for each in (twin_stage(one), one, attention_stage(one))]
    assert flops[1] == (flops[0] + flops[2]) / 2 and flops[0] < flops[2]
    assert len({each.cost_kind for each in (twin_stage(one), one, attention_stage(one))}) == 3
    assert len({each.shape for each in (twin_stage(one), one, attention_stage(one))}) == 3


def test_the_timed_steps_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of half a second and of a tenth are 0.3 s in the mean, whichever path measures them."""
    train_alone = TrainingPack.train

    def timed(pack: TrainingPack, first: int) -> training_pack.Measured:
        measured = train_alone(pack, first)
        seconds = 0.5 if pack._readings[first % len(pack._readings)].model is pack._models.model else 0.1
        return training_pack.Measured(measured.losses, measured.norms, measured.correct, seconds)

    monkeypatch.setattr(TrainingPack, "train", timed)
    one = stage()
    assert step_seconds(one, [1, 2], CPU) == pytest.approx([0.3, 0.3])
    assert step_seconds(attention_stage(one), [1], CPU) == pytest.approx([0.5])
    assert step_seconds(twin_stage(one), [1], CPU) == pytest.approx([0.5])  # its only reading is the model itself
