"""Geometry on one, two and three axes: offsets, twins, attention, transfer, and training of series and volumes."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cvit.config import ConvolutionForm, DataConfig, InitConfig, ModelConfig, TrainingConfig, TrialConfig
from cvit.data.datasets import Dataset, Images
from cvit.geometry import (
    Grid,
    Offset,
    nearest_offsets,
    neighbourhood,
    num_relative_positions,
    occurs,
    patch_places,
    reach,
    relative_position,
    relative_position_index,
)
from cvit.init.conv_structured import conv_structured
from cvit.init.impulse import impulse
from cvit.init.local import centres, local
from cvit.init.transfer import logit_error, point_heads_at, transfer
from cvit.models.attention import RelativeAttention
from cvit.models.convolution import FactorizedConvolution, FullConvolution
from cvit.models.embedding import PatchEmbedding, from_patches, to_patches
from cvit.models.pack import FusedModels
from cvit.models.vit import VisionTransformer
from cvit.results import load_result
from cvit.stages import stages_of
from cvit.storage import Storage
from cvit.training.batches import pack_data
from cvit.training.loop import train_pack
from cvit.training.probe import step_flops, step_seconds
from cvit.vocabulary import TEST_ACCURACY
from tests.support.convolutions import FUNCTIONS, KINDS, randn

CPU = torch.device("cpu")
SHAPES: list[tuple[Grid, tuple[int, ...]]] = [((9,), (4,)), ((4, 6), (2, 3)), ((1, 7), (2, 1)), ((3, 4, 2), (2, 1, 3))]
"""Grids and patches."""
grids = st.integers(1, 3).flatmap(lambda axes: st.tuples(*[st.integers(1, (7, 5, 3)[axes - 1])] * axes))


def config_on(grid: Grid, patch: tuple[int, ...], **changes: Any) -> ModelConfig:
    """A model of images of any shape; the configuration itself knows square images only, as yet."""
    shape = tuple(length * side for length, side in zip(grid, patch, strict=True))
    kind: Any = type("ShapedConfig", (ModelConfig,), {"shape": shape, "patch": patch})
    sizes: dict[str, Any] = {"in_channels": 2, "embed_dim": 10, "depth": 2, "head_dim": 5, "mlp_ratio": 2.0}
    sizes |= {"num_heads": min(3 ** len(grid), num_relative_positions(grid)), "num_classes": 3}
    return kind(image_size=16, patch_size=1, **(sizes | changes))


def all_random(module: nn.Module, std: float = 0.3) -> None:
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(std * randn(*parameter.shape, seed=i))


def images_for(model: VisionTransformer, count: int = 3) -> Tensor:
    return randn(count, model.config.in_channels, *model.config.shape, seed=99)


# Offsets


@given(grids)
def test_relative_positions_are_those_of_the_offsets(grid: Grid) -> None:
    places = [tuple(place) for place in patch_places(grid).tolist()]
    assert places == list(itertools.product(*map(range, grid)))
    index = relative_position_index(grid)
    assert index.shape == (len(places), len(places)) and index.dtype == torch.int64
    offsets: dict[int, Offset] = {}
    for i, here in enumerate(places):
        for j, there in enumerate(places):
            offset = tuple(b - a for a, b in zip(here, there, strict=True))
            position = int(index[i, j])
            assert occurs(offset, grid) and position == relative_position(offset, grid)
            assert offsets.setdefault(position, offset) == offset
    assert set(offsets) == set(range(num_relative_positions(grid)))


@given(grids, st.data())
def test_the_nearest_offsets_occur_and_come_in_order(grid: Grid, data: st.DataObject) -> None:
    most = num_relative_positions(grid)
    count = data.draw(st.integers(1, most))
    offsets = nearest_offsets(count, grid)
    everything = nearest_offsets(most, grid)
    assert len(set(everything)) == most and offsets == everything[:count]
    assert all(occurs(offset, grid) for offset in everything)
    order = [(max(map(abs, offset)), sum(step**2 for step in offset), offset) for offset in everything]
    assert order == sorted(order)
    with pytest.raises(ValueError, match=rf"^{most + 1} offsets do not occur on a grid of {'x'.join(map(str, grid))} "):
        nearest_offsets(most + 1, grid)


def test_neighbourhoods_by_hand() -> None:
    assert nearest_offsets(5, (9,)) == ((0,), (-1,), (1,), (-2,), (2,))
    assert neighbourhood((9,)) == ((0,), (-1,), (1,))
    assert neighbourhood((1, 7)) == ((0, 0), (0, -1), (0, 1))
    assert len(neighbourhood((4, 4, 4))) == 27 and neighbourhood((1, 1)) == ((0, 0),)
    assert nearest_offsets(7, (3, 3, 3))[1:] == (
        (-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, 1), (0, 1, 0), (1, 0, 0)
    )  # fmt: skip
    assert nearest_offsets(5, (1, 7)) == ((0, 0), (0, -1), (0, 1), (0, -2), (0, 2))
    with pytest.raises(ValueError, match=r"^offset \(0, 2\) does not occur on a grid of 3x2 patches$"):
        relative_position((0, 2), (3, 2))


@given(st.integers(1, 9), st.data())
def test_offsets_of_a_square_grid_are_those_of_results_stored_before(side: int, data: st.DataObject) -> None:
    """As that version wrote them down; which head points where decides what stored weights mean."""
    count = data.draw(st.integers(1, (2 * side - 1) ** 2))
    radius = 0
    while (2 * radius + 1) ** 2 < count:
        radius += 1
    span = range(-radius, radius + 1)
    expected = [(dy, dx) for dy in span for dx in span]
    expected.sort(key=lambda o: (max(abs(o[0]), abs(o[1])), o[0] ** 2 + o[1] ** 2, o))
    assert nearest_offsets(count, (side, side)) == tuple(expected[:count])
    rows, columns = (x.flatten() for x in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    dy, dx = rows[None, :] - rows[:, None] + side - 1, columns[None, :] - columns[:, None] + side - 1
    assert torch.equal(relative_position_index((side, side)), dy * (2 * side - 1) + dx)


# Patches


@pytest.mark.parametrize(("grid", "patch"), SHAPES)
def test_the_patch_embedding_is_a_convolution_with_the_patchs_stride(grid: Grid, patch: tuple[int, ...]) -> None:
    shape = [length * side for length, side in zip(grid, patch, strict=True)]
    images = randn(3, 2, *shape)
    patches = to_patches(images, patch)
    assert patches.shape == (3, math.prod(grid), 2 * math.prod(patch))
    assert torch.equal(from_patches(patches, grid, patch), images)
    embedding = PatchEmbedding(2, 5, patch).double()
    all_random(embedding)
    expected = FUNCTIONS[len(grid)](images, embedding.weight, embedding.bias, stride=patch)
    torch.testing.assert_close(embedding(images), expected.flatten(2).transpose(1, 2), rtol=1e-12, atol=1e-12)
    assert {name: value.shape for name, value in embedding.state_dict().items()} == {
        name: value.shape for name, value in KINDS[len(grid)](2, 5, patch).state_dict().items()
    }


# Twins


def kernel_of(maps: Tensor, offsets: tuple[Offset, ...]) -> Tensor:
    """(D, D, K, ..., K) with the maps (offsets, D, D) at their offsets and zero elsewhere."""
    radius = reach(offsets)
    kernel = torch.zeros(*maps.shape[1:], *(2 * radius + 1,) * len(offsets[0]), dtype=maps.dtype)
    for matrix, offset in zip(maps, offsets, strict=True):
        kernel[(slice(None), slice(None), *(step + radius for step in offset))] = matrix
    return kernel


@pytest.mark.parametrize(("grid", "heads"), [((9,), 3), ((9,), 7), ((3, 6), 9), ((3, 6), 14), ((1, 7), 3)])
@pytest.mark.parametrize("form", ["factorized", "full"])
def test_twins_are_torchs_convolutions_restricted_to_their_offsets(grid: Grid, heads: int, form: str) -> None:
    check_twin(grid, heads, form)


@pytest.mark.parametrize("heads", [7, 27, 30])
@pytest.mark.parametrize("form", ["factorized", "full"])
def test_twins_of_volumes_are_torchs_convolutions_restricted_to_their_offsets(heads: int, form: str) -> None:
    check_twin((3, 5, 4), heads, form)


@torch.no_grad()
def check_twin(grid: Grid, heads: int, form: str) -> None:
    if form == "full":
        twin = FullConvolution(embed_dim=6, num_heads=heads, grid=grid).double()
        all_random(twin)
        maps, bias = twin.weight, twin.bias
        assert twin.offsets == nearest_offsets(max(heads, len(neighbourhood(grid))), grid)
    else:
        twin = FactorizedConvolution(embed_dim=6, num_heads=heads, head_dim=4, grid=grid).double()
        all_random(twin)
        output, value = twin.output.weight.unflatten(1, (heads, 4)), twin.value.weight.unflatten(0, (heads, 4))
        maps, bias = torch.einsum("ohk,hki->hoi", output, value), twin.output.bias
        assert twin.offsets == nearest_offsets(heads, grid)
    kernel = kernel_of(maps, twin.offsets)
    tokens = randn(2, math.prod(grid), 6, seed=7)
    images = tokens.transpose(1, 2).unflatten(2, grid)
    expected = FUNCTIONS[len(grid)](images, kernel, bias, padding=kernel.shape[-1] // 2)
    torch.testing.assert_close(twin(tokens), expected.flatten(2).transpose(1, 2), rtol=1e-12, atol=1e-12)


# Models


@pytest.mark.parametrize(("grid", "patch"), SHAPES)
@pytest.mark.parametrize("form", ["factorized", "full"])
@torch.no_grad()
def test_transferred_attention_equals_its_twin_to_the_leakage(
    grid: Grid, patch: tuple[int, ...], form: ConvolutionForm
) -> None:
    config = config_on(grid, patch, head_dim=10 if form == "full" else 5, position_encoding="relative+absolute")
    twin, model = (VisionTransformer(config, phase, form).double() for phase in ("convolution", "attention"))
    all_random(twin)
    all_random(model)
    images = images_for(model)
    assert twin(images).shape == (3, 3) and logit_error(twin, model, images) > 1e-2
    assert transfer(twin, model, sharpness=80.0) < 1e-7
    assert (model(images) - twin(images)).abs().max() <= 1e-10
    errors = []
    for sharpness in (4.0, 8.0, 16.0):
        transfer(twin, model, sharpness)
        errors.append(logit_error(twin, model, images))
    assert errors[0] > 4 * errors[1] > 16 * errors[2] > 0


@pytest.mark.parametrize("grid", [(9,), (4, 6), (3, 4, 2)])
@pytest.mark.parametrize("sharpness", [1.0, 4.0])
@torch.no_grad()
def test_the_leak_of_attention_is_that_of_the_softmax(grid: Grid, sharpness: float) -> None:
    """Of N patches the target has e^s, the zero slot 1 and each other one e^−s, before they are normalised."""
    offsets, patches = neighbourhood(grid), math.prod(grid)
    layer = RelativeAttention(4, len(offsets), 2, grid).double()
    point_heads_at(layer, offsets, sharpness)
    weights = layer.position_bias().softmax(dim=-1)
    leak = (1 + (patches - 1) * math.exp(-sharpness)) / (math.exp(sharpness) + 1 + (patches - 1) * math.exp(-sharpness))
    places = [tuple(place) for place in patch_places(grid).tolist()]
    for head, offset in enumerate(offsets):
        for query, place in enumerate(places):
            target = tuple(at + step for at, step in zip(place, offset, strict=True))
            if target in places:
                assert float(weights[head, query, places.index(target)]) == pytest.approx(1 - leak, rel=1e-12)
            else:
                assert int(weights[head, query].argmax()) == patches


@pytest.mark.parametrize(("grid", "patch"), SHAPES)
@pytest.mark.parametrize(
    ("phase", "form"), [("attention", "full"), ("convolution", "full"), ("convolution", "factorized")]
)
@torch.no_grad()
def test_a_pack_computes_what_its_members_do(
    grid: Grid, patch: tuple[int, ...], phase: str, form: ConvolutionForm
) -> None:
    members = [VisionTransformer(config_on(grid, patch), phase, form) for _ in range(3)]
    fused = FusedModels(members[0], 3, CPU)
    for place, member in enumerate(members):
        all_random(member, std=0.3 + 0.1 * place)
        fused.put(place, fused.matrix, dict(member.named_parameters()))
    images = torch.stack([images_for(members[0]).float() + place for place in range(3)])
    expected = torch.stack([member(batch) for member, batch in zip(members, images, strict=True)])
    torch.testing.assert_close(fused.model(images), expected, rtol=1e-4, atol=1e-4)


# Init schemes


@pytest.mark.parametrize(("grid", "patch"), SHAPES)
@torch.no_grad()
def test_init_schemes_on_any_grid(grid: Grid, patch: tuple[int, ...]) -> None:
    trial = TrialConfig(model=config_on(grid, patch, num_heads=len(neighbourhood(grid))))
    offsets = neighbourhood(grid)
    positions = {relative_position(offset, grid) for offset in offsets}
    for scheme in (conv_structured, impulse):
        model, _ = scheme(trial, None)
        pointed: list[int] = []
        for layer in (module for module in model.modules() if isinstance(module, RelativeAttention)):
            assert not layer.key.weight.any() and layer.query.weight.any()
            pointed += layer.relative_bias[:, :-1].argmax(dim=1).tolist()
        assert set(pointed) <= positions and len(set(pointed)) > 1
        if scheme is conv_structured:
            assert sorted(pointed) == sorted(2 * [*positions])
    model, _ = local(trial, None)
    for layer in (module for module in model.modules() if isinstance(module, RelativeAttention)):
        for head, centre in enumerate(centres(len(offsets), grid)):
            for offset in nearest_offsets(num_relative_positions(grid), grid):
                distance = sum((step - middle) ** 2 for step, middle in zip(offset, centre, strict=True))
                assert float(layer.relative_bias[head, relative_position(offset, grid)]) == -distance


def test_local_centres_on_other_axes() -> None:
    assert centres(3, (9,)) == [(-1,), (0,), (1,)]
    assert set(centres(8, (4, 4, 4))) == set(itertools.product((-0.5, 0.5), repeat=3))
    assert set(centres(27, (4, 4, 4))) == set(itertools.product((-1, 0, 1), repeat=3))
    assert centres(7, (4, 4, 4)) == list(nearest_offsets(7, (4, 4, 4)))


# Training


def waves(count: int, *, seed: int) -> Images:
    """(count, 2, 24) float32: noisy waves of one frequency or another, at any phase, in a unit of their own."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    time = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    phase = draw.uniform(0, 2 * np.pi, (count, 2, 1))
    values = np.sin((2 + 3 * labels)[:, None, None] * time + phase) + 0.1 * draw.standard_normal((count, 2, 24))
    return Images((500 + 40 * values).astype(np.float32), labels.astype(np.int64))


def test_series_of_floats_are_trained_in_two_phases_and_resumed_from_the_transfer(tmp_path: Path) -> None:
    trial = TrialConfig(
        data=DataConfig(data_fingerprint="waves", augmentation="shift"),
        model=config_on((6,), (4,), embed_dim=16, num_heads=3, num_classes=2),
        init=InitConfig(init_scheme="two_phase"),
        training=TrainingConfig(epochs=0, min_steps=120, batch_size=32, evaluations=4, learning_rate=3e-3),
    )
    dataset = Dataset(waves(300, seed=0), waves(100, seed=1))
    stages = stages_of(trial, num_images=270)
    data = pack_data(dataset, stages[:1], CPU)
    everything = data.normalised(data.train.images[None])
    assert float(everything.mean()) == pytest.approx(0, abs=1e-3) and float(everything.std()) == pytest.approx(
        1, abs=1e-2
    )
    storage = Storage.open(str(tmp_path))
    for stage in stages:
        assert step_flops(stage) > 0
        for _ in train_pack([stage], dataset, storage, CPU):
            pass
    result = load_result(storage, stages[-1].key)
    assert result is not None
    accuracy = {name: value for name, _, value, _ in result.points}[TEST_ACCURACY]
    assert accuracy > 0.9
    assert step_seconds(stages[-1], [1, 2], CPU)[0] > 0
