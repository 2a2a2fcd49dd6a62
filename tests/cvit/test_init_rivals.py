"""What defines the init schemes that two phases are compared with, and the reference models."""

import math
from functools import lru_cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cvit.config import ConvolutionForm, ModelConfig, PositionEncoding, TrialConfig
from cvit.data.datasets import describe, load
from cvit.engine.execution.cost import flops_of
from cvit.init.local import centres
from cvit.init.registry import blank_model, initial_model
from cvit.models.attention import RelativeAttention
from cvit.models.reference import ResidualNetwork, network_size
from cvit.models.vit import VisionTransformer
from cvit.parameters import choices
from cvit.stages import TrainingStage, stages_of
from cvit.training.batches import pack_data

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"patch_size": 2, "embed_dim": 16, "depth": 3, "num_heads": 9, "head_dim": 4}


def stage(scheme: str, **changes: Any) -> TrainingStage:
    return stages_of(TrialConfig.from_flat(SMALL | {"init_scheme": scheme} | changes), num_images=100)[-1]


def start(scheme: str, **changes: Any) -> nn.Module:
    return initial_model(stage(scheme, **changes), None)[0].requires_grad_(False)


def attentions(model: nn.Module) -> list[RelativeAttention]:
    return [module for module in model.modules() if isinstance(module, RelativeAttention)]


@lru_cache
def digits() -> Tensor:
    data = pack_data(load(describe("digits", "nowhere", download=False)), [stage("random")], CPU)
    return data.normalised(data.validation.images[None, :40])[0]


def attention_maps(model: nn.Module) -> list[Tensor]:
    """(B, num_heads, N, N + 1) of every block on real digits, from what its attention layer is given."""
    inputs: list[Tensor] = []
    for layer in attentions(model):
        layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    model(digits())
    maps = []
    for layer, tokens in zip(attentions(model), inputs, strict=True):
        query, key = (part(tokens).unflatten(-1, (layer.num_heads, -1)) for part in (layer.query, layer.key))
        logits = torch.einsum("bihd,bjhd->bhij", query, key) / math.sqrt(layer.head_dim)
        nothing = torch.zeros(*logits.shape[:-1], 1)  # the zero slot
        maps.append((torch.cat([logits, nothing], dim=-1) + layer.position_bias()).softmax(dim=-1))
    return maps


# mimetic


def query_key_products(model: nn.Module) -> Tensor:
    """(layers · heads, d, d): of W_Q W_Kᵀ, acting on row vectors as in the paper."""
    return torch.cat(
        [
            torch.einsum(
                "hkd,hke->hde", *(w.weight.unflatten(0, (layer.num_heads, -1)) for w in (layer.query, layer.key))
            )
            for layer in attentions(model)
        ]
    )


def value_output_products(model: nn.Module) -> Tensor:
    """(layers, d, d)."""
    return torch.stack([layer.value.weight.T @ layer.output.weight.T for layer in attentions(model)])


@pytest.mark.parametrize("head_dim", [64, 70])
def test_mimetic_products_are_near_plus_and_minus_the_identity(head_dim: int) -> None:
    """0.7 I + 0.7 Z and −0.4 I + 0.4 Z with Z ~ N(0, 1/d), where there is rank enough for all of it."""
    d = 64
    model = start("mimetic", embed_dim=d, head_dim=head_dim)
    for products, mean, spread in (
        (query_key_products(model), 0.7, 0.7 / math.sqrt(d)),
        (value_output_products(model), -0.4, 0.4 / math.sqrt(d)),
    ):
        noise = products - mean * torch.eye(d)
        flat = noise.flatten()
        assert float(flat.mean()) == pytest.approx(0, abs=5 * spread / math.sqrt(len(flat)))
        assert float(flat.std()) == pytest.approx(spread, rel=5 / math.sqrt(2 * len(flat)))
        diagonal = noise.diagonal(dim1=1, dim2=2).flatten()
        assert float(diagonal.mean()) == pytest.approx(0, abs=5 * spread / math.sqrt(len(diagonal)))
        assert float((flat**4).mean()) == pytest.approx(3 * spread**4, rel=0.1), "not normal"
        # Heads and layers have draws of their own: their noise is uncorrelated.
        correlation = torch.corrcoef(noise.flatten(1)) - torch.eye(len(noise))
        assert float(correlation.abs().max()) < 5.5 / d


@pytest.mark.parametrize("products", [query_key_products, value_output_products])
def test_mimetic_products_are_the_best_of_their_rank(products: Any) -> None:
    """Eckart–Young: what a narrow head misses of the exact product are its last singular values, no more."""
    d = 24
    exact = products(start("mimetic", embed_dim=d, head_dim=d))
    narrow = products(start("mimetic", embed_dim=d, head_dim=2))
    rank = 2 if products is query_key_products else 9 * 2
    singular = torch.linalg.svdvals(exact)
    assert torch.linalg.matrix_rank(narrow).tolist() == [rank] * len(narrow)
    missed = (exact - narrow).norm(dim=(1, 2))
    torch.testing.assert_close(missed, singular[:, rank:].norm(dim=1), rtol=1e-4, atol=1e-5)


def test_mimetic_leaves_no_head_without_output_or_gradient() -> None:
    """Here all heads are together wider than the token (36 channels, 16 of the token)."""
    model = start("mimetic").requires_grad_(True)
    model(digits()).square().sum().backward()
    for layer in attentions(model):
        outputs = layer.output.weight.detach().unflatten(1, (9, 4)).norm(dim=(0, 2))
        assert float(outputs.min()) > 0.3 * float(outputs.max())
        for projection in (layer.query, layer.key, layer.value):
            assert projection.weight.grad is not None
            assert float(projection.weight.grad.norm(dim=1).min()) > 0


# impulse


def shifts(maps: Tensor, grid_size: int) -> list[tuple[int, int]]:
    """The offset that each head looks at: the same for every image and every patch whose neighbours all exist."""
    found = []
    for head in range(maps.shape[1]):
        seen = set()
        for y, x in product(range(1, grid_size - 1), repeat=2):
            peaks = maps[:, head, y * grid_size + x].argmax(dim=-1).unique()
            seen |= {(int(p) // grid_size - y, int(p) % grid_size - x) for p in peaks}
        (offset,) = seen
        found.append(offset)
    return found


@pytest.mark.parametrize("encoding", choices(PositionEncoding))
@pytest.mark.parametrize(("patch_size", "sharpness"), [(2, 4.0), (1, 1.0)])
def test_impulse_maps_shift_real_images(encoding: str, patch_size: int, sharpness: float) -> None:
    """In every block, a head's map peaks at one offset of the 3×3 neighbourhood for all interior patches."""
    model = start("impulse", position_encoding=encoding, patch_size=patch_size, attention_sharpness=sharpness)
    grid_size, of_blocks = 8 // patch_size, []
    num_patches = grid_size**2
    mass = math.exp(sharpness) / (math.exp(sharpness) + 1 + (num_patches - 1) * math.exp(-sharpness))
    for maps in attention_maps(model):
        offsets = shifts(maps, grid_size)
        assert all(max(abs(dy), abs(dx)) <= 1 for dy, dx in offsets)
        assert len(set(offsets)) > 2
        of_blocks.append(offsets)
        assert float((maps.sum(dim=-1) - 1).abs().max()) < 1e-5
        for head, (dy, dx) in enumerate(offsets):
            for y, x in product(range(grid_size), repeat=2):
                row = maps[:, head, y * grid_size + x]
                if 0 <= y + dy < grid_size and 0 <= x + dx < grid_size:
                    peak = row[:, (y + dy) * grid_size + x + dx]
                    torch.testing.assert_close(peak, torch.full_like(peak, mass))
                else:
                    assert (row.argmax(dim=-1) == num_patches).all(), "outside the image the zero slot is looked at"
    assert len({tuple(offsets) for offsets in of_blocks}) == 3, "layers have draws of their own"


def test_impulse_offsets_are_drawn_evenly_by_head_and_seed() -> None:
    counts: dict[int, int] = {}
    for seed in range(100):
        (layer,) = attentions(start("impulse", depth=1, seed=seed))
        for place in layer.relative_bias[:, :-1].argmax(dim=1).tolist():
            counts[place] = counts.get(place, 0) + 1
    assert len(counts) == 9
    # 900 draws: 100 for each offset, standard deviation 9.4
    assert all(60 < count < 140 for count in counts.values())


# local


@pytest.mark.parametrize("num_heads", [1, 4, 5, 9, 16, 25])
def test_local_bias_falls_with_the_squared_distance_from_the_heads_centre(num_heads: int) -> None:
    for layer in attentions(start("local", num_heads=num_heads)):
        of_patches = layer.relative_bias[:, :-1].unflatten(1, (7, 7))  # offsets −3 to 3
        for head, (cy, cx) in enumerate(centres(num_heads, (4, 4))):
            for dy, dx in product(range(-3, 4), repeat=2):
                distance = (dy - cy) ** 2 + (dx - cx) ** 2
                assert float(of_patches[head, dy + 3, dx + 3]) == pytest.approx(-distance, abs=1e-5)
        assert (layer.relative_bias[:, -1] < of_patches[:, 2:5, 2:5].amin(dim=(1, 2))).all(), "the zero slot is closed"


def test_local_centres_form_a_grid() -> None:
    assert centres(1, (4, 4)) == [(0, 0)]
    assert set(centres(4, (4, 4))) == set(product((-0.5, 0.5), repeat=2))
    assert set(centres(9, (4, 4))) == set(product((-1, 0, 1), repeat=2))
    assert set(centres(16, (4, 4))) == set(product((-1.5, -0.5, 0.5, 1.5), repeat=2))
    assert centres(5, (4, 4)) == [(0, 0), (-1, 0), (0, -1), (0, 1), (1, 0)]
    assert len(set(centres(12, (4, 4)))) == 12


@pytest.mark.parametrize("encoding", choices(PositionEncoding))
def test_local_maps_of_real_images_fall_with_the_distance(encoding: str) -> None:
    """In every block, a patch's map is softmax(−‖δ − Δ‖²) over the patches that there are, without the zero slot."""
    places = list(product(range(4), repeat=2))
    for maps in attention_maps(start("local", position_encoding=encoding)):
        for head, (cy, cx) in enumerate(centres(9, (4, 4))):
            for i, (y, x) in enumerate(places):
                weights = torch.tensor([math.exp(-((v - y - cy) ** 2) - (w - x - cx) ** 2) for v, w in places])
                expected = (weights / weights.sum()).expand(40, 16)
                torch.testing.assert_close(maps[:, head, i, :-1], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("head_dim", [1, 4])
def test_local_values_are_the_tokens_channels(head_dim: int) -> None:
    tokens = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    for layer in attentions(start("local", head_dim=head_dim)):
        assert torch.equal(layer.value(tokens), torch.cat([tokens, tokens, tokens], dim=-1)[..., : 9 * head_dim])


# References


@pytest.mark.parametrize("form", choices(ConvolutionForm))
def test_the_convolution_row_is_the_twin_that_two_phases_begin_with(form: ConvolutionForm) -> None:
    changes: dict[str, Any] = {"convolution_form": form, "position_encoding": "relative+absolute", "seed": 3}
    alone = start("convolution", **changes)
    assert not attentions(alone)
    first = stages_of(TrialConfig.from_flat(SMALL | {"init_scheme": "two_phase"} | changes), 100)[0]
    twin = initial_model(first, None)[0]
    assert alone.state_dict().keys() == twin.state_dict().keys()
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in alone.state_dict().items())
    assert torch.equal(alone(digits()), twin(digits()))


@pytest.mark.parametrize(("image_size", "in_channels"), [(1, 1), (8, 1), (28, 1), (32, 3), (64, 3)])
def test_the_resnet_takes_images_of_any_size(image_size: int, in_channels: int) -> None:
    model = start("resnet", image_size=image_size, in_channels=in_channels, patch_size=1, num_heads=1)
    images = torch.randn(2, in_channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
    logits = model(images)
    assert logits.shape == (2, 10) and bool(torch.isfinite(logits).all())
    assert isinstance(model, ResidualNetwork)
    side = math.ceil(math.ceil(image_size / 2) / 2)
    assert model.blocks(model.stem(images)).shape == (2, 4 * network_size(stage("resnet").trial.model)[1], side, side)


def test_the_resnet_begins_with_normed_convolutions_and_carries_no_statistics() -> None:
    model = start("resnet", embed_dim=48)
    assert not list(model.buffers())
    for name, parameter in model.named_parameters():
        if parameter.ndim == 4:
            fan_in = parameter[0].numel()
            assert float(parameter.std()) == pytest.approx(0.88 / math.sqrt(fan_in), rel=0.15), name
        elif parameter.ndim == 1:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name
    images = digits()
    features: Any = model.get_submodule("stem.0")(images)
    normed = model.get_submodule("stem.1")(features).unflatten(1, (4, -1))
    torch.testing.assert_close(normed.mean(dim=(2, 3, 4)), torch.zeros(40, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.var(dim=(2, 3, 4), unbiased=False), torch.ones(40, 4), atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"embed_dim": 48, "depth": 4, "head_dim": 8, "mlp_ratio": 2.0},  # low_data, laptop
        {"embed_dim": 96, "depth": 4, "head_dim": 12, "mlp_ratio": 2.0, "image_size": 32, "in_channels": 3},
        {"embed_dim": 384, "depth": 12, "head_dim": 32, "mlp_ratio": 4.0, "image_size": 32, "in_channels": 3},
        {"embed_dim": 128, "depth": 6, "head_dim": 16, "mlp_ratio": 4.0},
    ],
)
def test_the_resnet_is_about_as_large_as_the_transformer(changes: dict[str, Any]) -> None:
    def parameters(scheme: str) -> dict[str, int]:
        with torch.device("meta"):
            return {n: p.numel() for n, p in blank_model(stage(scheme, **changes)).named_parameters()}

    resnet = parameters("resnet")
    assert 0.75 < sum(resnet.values()) / sum(parameters("random").values()) < 1.25
    num_blocks, width = network_size(ModelConfig(**changes))
    weights = sum(count for name, count in resnet.items() if name.startswith("blocks") and count > 8 * width)
    assert weights == (378 * num_blocks - 80) * width**2


def test_the_estimate_tells_the_references_apart() -> None:
    stages = [stage(scheme, epochs=0, min_steps=2) for scheme in ("convolution", "resnet", "random")]
    alone = [flops_of([one]) for one in stages]
    assert len(set(alone)) == 3 and min(alone) > 0
    assert flops_of([*stages]) == pytest.approx(sum(alone))


def test_only_the_resnet_is_no_transformer() -> None:
    for scheme in ("mimetic", "impulse", "local", "convolution"):
        assert isinstance(blank_model(stage(scheme)), VisionTransformer)
