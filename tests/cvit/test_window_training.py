"""Attention in windows in the models that are trained: its masks, every init scheme, transfer, keys and packs."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cvit.config import ConvolutionForm, InitSchemeName, ModelConfig, TrialConfig
from cvit.geometry import Grid, nearest_offsets, num_relative_positions, patch_places
from cvit.init.registry import blank_model, initial_model
from cvit.init.schemes import SCHEMES
from cvit.init.transfer import lost_energies, point_heads_at, transfer
from cvit.models.attention import RelativeAttention
from cvit.models.convolution import FactorizedConvolution
from cvit.models.pack import FusedModels
from cvit.models.vit import Block, VisionTransformer
from cvit.parameters import CombinationError, choices
from cvit.stages import TrainingStage, stages_of
from cvit.theorem.windows import crossing_energy, window_attention
from tests.cvit.test_transfer import images_for, pair

NUM_IMAGES = 100
SMALL: dict[str, Any] = {"image_size": 8, "patch_size": 2, "embed_dim": 12, "depth": 3, "num_heads": 9, "head_dim": 4}


def numbers_of_windows(grid: Grid, size: int, shift: int) -> list[tuple[int, ...]]:
    return [tuple((step + shift) // size for step in place) for place in patch_places(grid).tolist()]


def attention(model: VisionTransformer) -> list[RelativeAttention]:
    return [module for module in model.modules() if isinstance(module, RelativeAttention)]


def trained_stages(**changes: Any) -> tuple[TrainingStage, ...]:
    return stages_of(TrialConfig.from_flat(SMALL | {"epochs": 1} | changes), NUM_IMAGES)


@st.composite
def layers(draw: st.DrawFn) -> tuple[RelativeAttention, Tensor]:
    """A layer in windows with random weights, on one or two axes, and tokens."""
    axes, size = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    grid = tuple(size * draw(st.integers(1, 3)) for _ in range(axes))
    heads = draw(st.integers(1, min(5, num_relative_positions(grid))))
    layer = RelativeAttention(6, heads, 3, grid, size, draw(st.integers(0, size - 1))).double()
    torch.manual_seed(draw(st.integers(0, 99)))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer, torch.randn(2, math.prod(grid), 6, dtype=torch.float64)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(layers())
def test_windows_are_attention_over_the_patches_of_each_window_alone(drawn: tuple[RelativeAttention, Tensor]) -> None:
    """Query by query from the definition: only the keys of its window, and the zero slot. So a token of another window
    changes nothing, and gradients are finite."""
    layer, tokens = drawn
    windows = numbers_of_windows(layer.grid, layer.window_size or 0, layer.window_shift)
    places = patch_places(layer.grid).tolist()
    query, key, value = (
        project(tokens).unflatten(-1, (layer.num_heads, -1)) for project in (layer.query, layer.key, layer.value)
    )
    mixed = torch.zeros_like(value)
    for i, place in enumerate(places):
        seen = [j for j, window in enumerate(windows) if window == windows[i]]
        for h in range(layer.num_heads):
            columns = []
            for j in seen:
                column = 0
                for step, start, length in zip(places[j], place, layer.grid, strict=True):
                    column = column * (2 * length - 1) + step - start + length - 1
                columns.append(column)
            products = (query[:, i, None, h] * key[:, seen, h]).sum(dim=-1)
            logits = products / math.sqrt(layer.head_dim) + layer.relative_bias[h, columns]
            slot = layer.relative_bias[h, -1].expand(len(tokens), 1)
            weights = torch.cat([logits, slot], dim=1).softmax(dim=1)[:, :-1]
            mixed[:, i, h] = (weights[..., None] * value[:, seen, h]).sum(dim=1)
    torch.testing.assert_close(layer(tokens), layer.output(mixed.flatten(2)), rtol=1e-10, atol=1e-12)
    gradients = torch.autograd.grad(layer(tokens).square().sum(), list(layer.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


# Configuration and keys


def shifts(model: VisionTransformer) -> list[tuple[int | None, int]]:
    return [(layer.window_size, layer.window_shift) for layer in attention(model)]


def test_windows_are_shifted_by_half_in_every_second_block_or_by_a_number_in_all() -> None:
    config = ModelConfig(**SMALL, window_size=2)
    assert shifts(VisionTransformer(config, "attention")) == [(2, 0), (2, 1), (2, 0)]
    config = ModelConfig(**SMALL, window_size=4, window_shift=3)
    assert shifts(VisionTransformer(config, "attention")) == [(4, 3)] * 3
    hybrid = ModelConfig(**SMALL, window_size=2, attention_blocks=2)
    assert shifts(VisionTransformer(hybrid, "attention")) == [(2, 1), (2, 0)]  # the block's place in the network
    single = ModelConfig(**SMALL, window_size=4)
    assert shifts(VisionTransformer(single, "attention")) == [(4, 0)] * 3  # it holds the whole grid


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window_size": 3}, "window_size 3 must divide 4, the number of patches along an axis: one of 1, 2, 4"),
        ({"window_size": 8}, "window_size 8 must divide 4, the number of patches along an axis: one of 1, 2, 4"),
        ({"window_shift": 1}, "window_shift 1 shifts windows, and there are none: give a window_size"),
        ({"window_size": 2, "window_shift": 2}, "window_shift 2 must be less than window_size, 2"),
    ],
)
def test_windows_that_do_not_fit_are_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(CombinationError) as refused:
        ModelConfig(**SMALL, **values)
    assert str(refused.value) == message


@pytest.mark.parametrize("form", choices(ConvolutionForm))
def test_the_convolution_phase_is_shared_by_all_windows(form: str) -> None:
    """The twin convolves the whole grid, whatever windows the attention gets. What is the same attention is one
    training: a single window of the whole grid, a shift without windows, and a default that is spelled out."""
    sizes: dict[str, Any] = {"init_scheme": "two_phase", "convolution_form": form}
    found = {
        windows: trained_stages(**sizes, window_size=windows[0], window_shift=windows[1])
        for windows in ((None, None), (None, 0), (4, 0), (4, None), (2, None), (2, 0), (2, 1), (1, None), (1, 0))
    }
    assert len({first.key for first, _ in found.values()}) == len({first.shape for first, _ in found.values()}) == 1
    keys = {windows: last.key for windows, (_, last) in found.items()}
    assert keys[None, None] == keys[None, 0] == keys[4, 0] == keys[4, None] and keys[1, None] == keys[1, 0]
    assert len(set(keys.values())) == 5
    assert len({last.architecture for _, last in found.values()}) == 5


@pytest.mark.parametrize("scheme", choices(InitSchemeName))
def test_references_have_no_windows(scheme: InitSchemeName) -> None:
    keys = {trained_stages(init_scheme=scheme, window_size=size)[-1].key for size in (None, 2)}
    assert len(keys) == (1 if SCHEMES[scheme].is_reference else 2)


def test_a_leak_is_one_among_the_patches_of_a_window() -> None:
    whole, windowed = (
        TrialConfig.from_flat(SMALL | {"attention_leak": 0.01, "window_size": size}).attention_sharpness
        for size in (None, 2)
    )
    smaller = TrialConfig.from_flat(SMALL | {"attention_leak": 0.01, "image_size": 4}).attention_sharpness
    assert windowed == smaller < whole  # 4 patches either way


# Init schemes and the transfer


@pytest.mark.parametrize("form", choices(ConvolutionForm))
@pytest.mark.parametrize("scheme", [name for name, scheme in SCHEMES.items() if not scheme.is_reference])
def test_every_scheme_starts_in_windows(scheme: InitSchemeName, form: str) -> None:
    """With the weights that it has without windows, and another function."""
    models = []
    for size in (None, 2):
        changes = {"init_scheme": scheme, "convolution_form": form, "window_size": size, "embed_dim": 16, "seed": 3}
        *first, last = trained_stages(**changes)
        parent = initial_model(first[0], None)[0] if first else None
        models.append(initial_model(last, parent)[0])
        assert blank_model(last).state_dict().keys() == models[-1].state_dict().keys()
    whole, windowed = models
    assert isinstance(windowed, VisionTransformer) and isinstance(whole, VisionTransformer)
    assert all(torch.equal(value, windowed.state_dict()[name]) for name, value in whole.state_dict().items())
    assert shifts(windowed) == [(2, 0), (2, 1), (2, 0)]
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(windowed(images), whole(images))


def cut(convolution: FactorizedConvolution, tokens: Tensor, size: int, shift: int) -> Tensor:
    """The convolution without the pairs of tokens that lie in different windows, pair by pair."""
    windows = numbers_of_windows(convolution.grid, size, shift)
    places = [tuple(place) for place in patch_places(convolution.grid).tolist()]
    values = convolution.value(tokens).unflatten(-1, (-1, convolution.head_dim))
    mixed = torch.zeros_like(values)
    for i, place in enumerate(places):
        for head, offset in enumerate(convolution.offsets):
            target = tuple(a + b for a, b in zip(place, offset, strict=True))
            if target in places and windows[places.index(target)] == windows[i]:
                mixed[:, i, head] = values[:, places.index(target), head]
    return convolution.output(mixed.flatten(2))


@pytest.mark.parametrize(("size", "shift"), [(2, None), (2, 1), (4, 0), (4, None), (1, None)])
def test_the_transfer_computes_all_that_does_not_cross_a_window(size: int, shift: int | None) -> None:
    """Heads whose target lies in another window attend to the zero slot, and so contribute nothing."""
    twin, model = pair(window_size=size, window_shift=shift)
    assert transfer(twin, model, sharpness=80.0) == 0.0  # the weights are carried over, whatever the windows
    tokens = torch.randn(2, 16, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for block, (source, target) in enumerate(zip(twin.blocks, model.blocks, strict=True)):
        assert isinstance(source, Block) and isinstance(target, Block)
        assert isinstance(source.mixing, FactorizedConvolution)
        expected = cut(source.mixing, tokens, size, model.config.window_shift_of(block))
        torch.testing.assert_close(target.mixing(tokens), expected, rtol=1e-10, atol=1e-10)
    same = torch.allclose(model(images_for(twin)), twin(images_for(twin)), atol=1e-8)
    assert same == (lost_energies(twin, model) == {0: 0.0, 1: 0.0}) == (size == 4)


@pytest.mark.parametrize("form", choices(ConvolutionForm))
def test_the_transfer_says_which_energy_it_loses(form: ConvolutionForm) -> None:
    """Measured on the operators: the squared distance of the twin's from the best in windows, over its squared norm;
    and for pixels, the theorem's own number."""
    sizes: dict[str, Any] = {"embed_dim": 12, "num_heads": 30, "head_dim": 12, "depth": 2}
    twin, model = pair(form, **sizes, window_size=2)
    assert transfer(twin, model, sharpness=200.0) < 1e-12
    found = lost_energies(twin, model)
    assert found.keys() == {0, 1} and all(0.1 < share < 1 for share in found.values())
    for block, share in found.items():
        source, target = twin.blocks[block], model.blocks[block]
        assert isinstance(source, Block) and isinstance(target, Block)
        matrices = []
        for layer in (source.mixing, target.mixing):
            units = torch.eye(16 * 12, dtype=torch.float64).unflatten(1, (16, 12))
            matrices.append(layer(units) - layer(torch.zeros_like(units)))
        lost = (matrices[0] - matrices[1]).square().sum() / matrices[0].square().sum()
        assert share == pytest.approx(float(lost.detach()), rel=1e-8)
        if form == "pixel":
            weight = source.mixing.get_parameter("weight").detach()
            assert share == pytest.approx(crossing_energy(weight, 2, 8, 2, model.config.window_shift_of(block)))


def test_a_trial_in_windows_reports_the_energy_and_others_do_not() -> None:
    for size, expected in ((2, 3), (4, 0), (None, 0)):
        first, last = trained_stages(init_scheme="two_phase", window_size=size, attention_blocks=2)
        _, metrics = initial_model(last, initial_model(first, None)[0])
        lost = {name: value for name, value in metrics.items() if name.startswith("transfer/lost_energy")}
        assert len(lost) == expected
        if expected:  # the last two of three blocks are attention
            blocks = [lost[f"transfer/lost_energy/block{place}"] for place in (1, 2)]
            assert lost["transfer/lost_energy"] == max(blocks) > 0


def test_heads_beyond_a_window_attend_to_the_zero_slot() -> None:
    twin, model = pair(window_size=1)
    transfer(twin, model, sharpness=80.0)
    for layer in attention(model):
        weights = layer.position_bias().softmax(dim=-1)
        for head, offset in enumerate(nearest_offsets(9, (4, 4))):
            on_slot = 0.0 if offset == (0, 0) else 1.0
            torch.testing.assert_close(weights[head, :, -1], torch.full_like(weights[head, :, -1], on_slot))


# What attention in windows equals


@pytest.mark.parametrize(("dimensions", "heads"), [(2, 9), (1, 3)])
def test_a_window_of_the_whole_grid_is_attention_without_windows(dimensions: int, heads: int) -> None:
    """Number for number, if it is not shifted; shifted by half, it cuts the grid in two."""
    sizes: dict[str, Any] = SMALL | {"dimensions": dimensions, "num_heads": heads}
    models = []
    for size, shift in ((None, None), (4, 0), (4, 2)):
        config = ModelConfig(**sizes, window_size=size, window_shift=shift)
        torch.manual_seed(0)
        model = VisionTransformer(config, "attention").eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        models.append(model)
    images = torch.randn(3, 1, *models[0].config.shape)
    without, whole, cut = (model(images) for model in models)
    assert torch.equal(without, whole) and not torch.allclose(without, cut)
    assert models[1].config.windows == (None, None)


@pytest.mark.parametrize(("size", "shift"), [(1, 0), (2, 0), (2, 1), (4, 0), (4, 2), (4, 3), (8, 4)])
def test_pointed_heads_are_the_layer_in_windows_of_the_theorem(size: int, shift: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, 3, padding=1, dtype=torch.float64)
    theirs = window_attention(conv, 1, size, shift)
    layer = RelativeAttention(6, 9, 6, (8, 8), size, shift).double()
    with torch.no_grad():
        for parameter in (layer.query.weight, layer.key.weight):
            parameter.zero_()
        layer.value.weight.copy_(theirs.value.weight)
        layer.output.weight.copy_(theirs.output.weight)
        layer.output.bias.copy_(theirs.get_parameter("bias"))
    point_heads_at(layer, tuple(itertools.product((-1, 0, 1), repeat=2)), 1000.0)
    images = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    tokens = images.flatten(2).transpose(1, 2)
    torch.testing.assert_close(layer(tokens), theirs(images).flatten(2).transpose(1, 2), rtol=0, atol=1e-12)


def test_members_of_a_pack_compute_in_windows_what_they_compute_alone() -> None:
    """Bit for bit, with shifts in turn."""
    config = ModelConfig(**SMALL, window_size=2)
    models = [VisionTransformer(config, "attention") for _ in range(3)]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    images = torch.randn(3, 2, 1, 8, 8)
    alone = [packed(model)(images[place : place + 1]) for place, model in enumerate(models)]
    assert torch.equal(packed(*models)(images), torch.cat(alone))


def packed(*models: VisionTransformer) -> nn.Module:
    pack = FusedModels(models[0], len(models), torch.device("cpu"))
    for member, model in enumerate(models):
        pack.put(member, pack.matrix, dict(model.named_parameters()))
    return pack.model.eval()
