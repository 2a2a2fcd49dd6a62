import math
from typing import Any

import pytest
import torch
from torch import nn

from cvit.config import ConvolutionForm, InitSchemeName, TrialConfig
from cvit.init.conv_structured import conv_structured
from cvit.init.random import initialise, random
from cvit.init.registry import blank_model, initial_model, reference_named, start_of
from cvit.init.schemes import REFERENCES
from cvit.init.two_phase import two_phase
from cvit.models.vit import VisionTransformer
from cvit.parameters import choices
from cvit.stages import stages_of

SCHEMES: tuple[Any, ...] = choices(InitSchemeName)
# Variance of a normal distribution cut at ±2σ, over σ²: 1 − 4 φ(2) / (2 Φ(2) − 1).
CUT_VARIANCE = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))


def trial(**changes: Any) -> TrialConfig:
    small = {
        "image_size": 8,
        "patch_size": 2,
        "in_channels": 3,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 9,
        "head_dim": 4,
        "position_encoding": "relative+absolute",
    }
    return TrialConfig.from_flat(small | changes)


def twin_of(config: TrialConfig) -> VisionTransformer:
    twin = VisionTransformer(config.model, "convolution", config.init.convolution_form)
    initialise(twin, config.seed)
    return twin


def start(scheme: InitSchemeName, **changes: Any) -> nn.Module:
    """The model that a trial's last phase starts from, an untrained parent in the place of a trained one."""
    config = trial(init_scheme=scheme, **changes)
    stage = stages_of(config, num_images=100)[-1]
    return initial_model(stage, twin_of(config) if stage.parent else None)[0]


def first_phase(**changes: Any) -> nn.Module:
    return initial_model(stages_of(trial(init_scheme="two_phase", **changes), num_images=100)[0], None)[0]


def outside_the_mixing(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if ".mixing." not in name}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_every_scheme_that_the_configuration_offers_has_its_function() -> None:
    functions = [reference_named(name) if name in REFERENCES else start_of(name) for name in SCHEMES]
    assert [function.__name__ for function in functions] == list(SCHEMES)
    assert {function.__module__ for function in functions} == {f"cvit.init.{name}" for name in SCHEMES}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("form", choices(ConvolutionForm))
def test_a_blank_model_takes_the_weights_of_every_stage(scheme: InitSchemeName, form: ConvolutionForm) -> None:
    """What a parent is loaded into, and what is timed, is what is trained."""
    for stage in stages_of(trial(init_scheme=scheme, convolution_form=form), num_images=100):
        model = initial_model(stage, blank_model(stage.parent) if stage.parent else None)[0]
        blank_model(stage).load_state_dict(model.state_dict())
        assert type(blank_model(stage)) is type(model)


@pytest.mark.parametrize("form", ["factorized", "full"])
def test_all_schemes_share_the_draws_of_what_they_share(form: ConvolutionForm) -> None:
    """Fairness: schemes differ in the mixing, not in the luck of the other weights. The pixel twin's have other shapes:
    see `test_pixel_twin.py`."""
    transformers = {scheme: start(scheme, convolution_form=form, seed=3) for scheme in SCHEMES if scheme != "resnet"}
    shared = [outside_the_mixing(model) for model in transformers.values()]
    shared.append(outside_the_mixing(first_phase(convolution_form=form, seed=3)))
    assert {"patch_embedding.weight", "position_embedding", "blocks.1.mlp.2.weight", "head.weight"} <= shared[0].keys()
    assert all(same(shared[0], other) for other in shared[1:])
    mixing = {scheme: model.get_submodule("blocks.1.mixing").state_dict() for scheme, model in transformers.items()}
    same_as_random = {
        scheme: {name for name, value in mixing[scheme].items() if torch.equal(value, mixing["random"][name])}
        for scheme in ("conv_structured", "mimetic", "impulse", "local")
    }
    assert same_as_random == {
        "conv_structured": {"query.weight", "output.bias"}
        | ({"value.weight", "output.weight"} if form == "factorized" else set()),
        "mimetic": {"output.bias", "relative_bias"},
        "impulse": {"query.weight", "value.weight", "output.weight", "output.bias"},
        "local": {"query.weight", "output.weight", "output.bias"},
    }
    assert torch.equal(mixing["two_phase"]["query.weight"], mixing["random"]["query.weight"])


def test_the_factorized_twin_shares_the_value_and_output_weights_too() -> None:
    attention, twin = start("random").state_dict(), first_phase().state_dict()
    for name in ("value.weight", "output.weight", "output.bias"):
        assert torch.equal(attention[f"blocks.0.mixing.{name}"], twin[f"blocks.0.mixing.{name}"])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_seeds_draw_different_weights_and_one_seed_the_same(scheme: InitSchemeName) -> None:
    torch.manual_seed(1)
    one = start(scheme, seed=1).state_dict()
    torch.manual_seed(2)  # the global stream, which building a model consumes, has no influence
    assert same(one, start(scheme, seed=1).state_dict())
    other = start(scheme, seed=2).state_dict()
    set_for_all = {"key.weight"} | ({"value.weight"} if scheme == "local" else set())
    drawn = [n for n, v in one.items() if n.endswith("weight") and v.ndim > 1 and not n.endswith((*set_for_all,))]
    assert len(drawn) >= 10
    assert all(not torch.equal(one[name], other[name]) for name in drawn)


def test_no_two_parameters_have_the_same_draws() -> None:
    weights = start("random").state_dict()
    starts = [tuple(value.flatten()[:4].div(value.std()).tolist()) for n, value in weights.items() if "norm" not in n]
    drawn = [s for s in starts if all(map(math.isfinite, s))]
    assert len(drawn) > 15
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("form", choices(ConvolutionForm))
def test_weights_have_the_variance_of_their_fan_in(form: ConvolutionForm) -> None:
    """Standard deviation 1/√fan-in before the cut at two of them; what is left after it is CUT_VARIANCE of that."""
    big: dict[str, Any] = {"embed_dim": 64, "head_dim": 32, "depth": 1, "patch_size": 1, "image_size": 16}
    fan_in = {
        "patch_embedding.weight": 3,
        "blocks.0.mlp.0.weight": 64,
        "blocks.0.mlp.2.weight": 256,
        "head.weight": 64,
        "blocks.0.mixing.query.weight": 64,
        "blocks.0.mixing.key.weight": 64,
        "blocks.0.mixing.value.weight": 64,
        "blocks.0.mixing.output.weight": 9 * 32,
        "blocks.0.mixing.weight": 9 * 64,
        "position_embedding": 1,
        "blocks.0.mixing.relative_bias": 1 / 0.02**2,
    }
    seen = set()
    for model in (start("random", **big), first_phase(convolution_form=form, **big)):
        for name, parameter in model.named_parameters():
            values = parameter.detach()
            if "norm" in name:
                assert torch.equal(values, torch.full_like(values, float(name.endswith("weight"))))
            elif name.endswith("bias") and not name.endswith("relative_bias"):
                assert not values.any()
            else:
                seen.add(name)
                count, variance = values.numel(), 1 / fan_in[name]
                assert float(values.var()) == pytest.approx(CUT_VARIANCE * variance, rel=6 / math.sqrt(count)), name
                assert abs(float(values.mean())) < 5 * math.sqrt(variance / count), name
                assert float(values.abs().max()) <= 2 * math.sqrt(variance) * 1.0001, name
    assert seen == set(fan_in) - ({"blocks.0.mixing.weight"} if form == "factorized" else set()), (
        "a parameter was left out"
    )


def test_tokens_keep_their_size_on_their_way() -> None:
    """What 1/fan-in is for: 0.77 of the variance is kept by each layer, whatever its width."""
    for width in (16, 96):
        model = start("random", embed_dim=width, depth=1, in_channels=1, position_encoding="relative")
        images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        kept: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            model(images, kept)
        assert 0.5 < float(kept["embedding"].var()) < 1.1
        assert 0.1 < float(kept["block0/mixing"].std()) < 1.1


@pytest.mark.parametrize("form", choices(ConvolutionForm))
def test_conv_structured_is_its_untrained_twins_function(form: ConvolutionForm) -> None:
    config = trial(convolution_form=form, head_dim=16, attention_sharpness=80.0, seed=5)
    model, measured = conv_structured(config, None)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = twin_of(config)(images)
    error = (model(images) - expected).norm() / expected.norm()
    assert float(error.detach()) < 1e-5
    assert set(measured) == {"transfer/weight_error"}
    plain = random(config, None)[0](images)
    assert float(((plain - expected).norm() / expected.norm()).detach()) > 0.1


def test_two_phase_takes_over_what_the_first_phase_learnt() -> None:
    config = trial(attention_sharpness=80.0)
    parent = twin_of(config)
    with torch.no_grad():
        for parameter in parent.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model, measured = two_phase(config, parent)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(images), parent(images), rtol=1e-4, atol=1e-4)
    assert measured == {"transfer/weight_error": 0.0}
    assert same(outside_the_mixing(model), outside_the_mixing(parent))


def test_sharpness_changes_the_relative_bias_alone() -> None:
    one, other = (start("conv_structured", attention_sharpness=s).state_dict() for s in (2.0, 8.0))
    assert {name for name in one if not torch.equal(one[name], other[name])} == {
        "blocks.0.mixing.relative_bias",
        "blocks.1.mixing.relative_bias",
    }
