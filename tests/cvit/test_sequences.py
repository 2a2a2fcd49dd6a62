"""Models, regularisation and keys of sequences: everything that images of one axis have differently from pictures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cvit.config import ConvolutionForm, InitSchemeName, ModelConfig, TrialConfig
from cvit.data import erasing
from cvit.data.datasets import Dataset
from cvit.data.noise import NUM_NORMAL, draw_windows, noisy, normal_row
from cvit.init.random import initialise
from cvit.init.registry import blank_model, initial_model
from cvit.init.transfer import logit_error
from cvit.models.convolution import FullConvolution
from cvit.models.reference import ResidualNetwork
from cvit.models.sizes import network_size, stem_kernel, stem_stride
from cvit.models.vit import VisionTransformer
from cvit.parameters import ConfigError, choices
from cvit.randomness import generator
from cvit.stages import TrainingStage, stages_of
from cvit.storage import Storage
from cvit.training import probe
from cvit.training.loop import train_pack
from cvit.training.mixing import NUM_UNIFORM, mixed, mixtures
from cvit.vocabulary import ATTENTION, CONVOLUTION, TRANSFER_WEIGHT_ERROR
from tests.cvit.test_dimensions import all_random, waves
from tests.cvit.training.test_pack import assert_same

CPU = torch.device("cpu")
LENGTH = 24
SEQUENCES: dict[str, Any] = {
    "dimensions": 1,
    "image_size": LENGTH,
    "in_channels": 2,
    "num_classes": 2,
    "patch_size": 3,
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 3,
    "head_dim": 4,
    "mlp_ratio": 2.0,
    "epochs": 0,
    "min_steps": 12,
    "batch_size": 16,
    "evaluations": 2,
    "max_validation_images": 20,
    "learning_rate": 3e-3,
}
SCHEMES, FORMS = choices(InitSchemeName), choices(ConvolutionForm)
REGULARISED: dict[str, Any] = {
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "erasing_probability": 0.5,
    "noise_std": 0.3,
    "stochastic_depth": 0.2,
}


def stages(scheme: str = "random", **changes: Any) -> tuple[TrainingStage, ...]:
    return stages_of(TrialConfig.from_flat(SEQUENCES | {"init_scheme": scheme} | changes), num_images=100)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return Dataset(waves(100, seed=0), waves(40, seed=1))


# Models


@pytest.mark.parametrize("form", FORMS)
def test_a_transferred_twin_computes_the_same_on_sequences(form: str) -> None:
    """At a sharpness that leaks nothing, with heads as wide as a token."""
    convolution, attention = stages("two_phase", convolution_form=form, head_dim=12, attention_sharpness=60.0)
    twin, _ = initial_model(convolution, None)
    assert isinstance(twin, VisionTransformer)
    all_random(twin)
    model, metrics = initial_model(attention, twin)
    sequences = torch.randn(5, 2, LENGTH, generator=generator(0, "test"))
    assert metrics[TRANSFER_WEIGHT_ERROR] < 1e-5
    assert logit_error(twin, model, sequences) < 1e-5


def test_an_embedding_of_sequences_is_a_convolution_of_their_patches() -> None:
    model = VisionTransformer(stages()[0].trial.model, ATTENTION)
    all_random(model)
    sequences = torch.randn(5, 2, LENGTH)
    embedding = model.patch_embedding
    expected = F.conv1d(sequences, embedding.get_parameter("weight"), embedding.get_parameter("bias"), stride=3)
    assert torch.allclose(embedding(sequences), expected.transpose(1, 2), atol=1e-5)
    assert model.blocks[0].get_parameter("mixing.relative_bias").shape == (3, 2 * (LENGTH // 3) - 1 + 1)


@pytest.mark.parametrize("phase", [ATTENTION, CONVOLUTION])
def test_fused_operators_compute_sequences_as_torch_does(phase: str) -> None:
    model = VisionTransformer(stages()[0].trial.model, phase).double()
    all_random(model)
    sequences = torch.randn(5, 2, LENGTH, dtype=torch.float64)
    by_torch = model(sequences, intermediates={})
    assert torch.allclose(model(sequences), by_torch, rtol=1e-10)


@settings(max_examples=10)
@given(
    length=st.integers(1, 700),
    channels=st.integers(1, 3),
    depth=st.integers(1, 9),
    width=st.sampled_from([16, 48]),
    scheme=st.sampled_from(SCHEMES),
    form=st.sampled_from(FORMS),
)
def test_operations_on_sequences_are_those_that_torch_counts(
    length: int, channels: int, depth: int, width: int, scheme: str, form: str
) -> None:
    patch = next(size for size in range(1, length + 1) if length % size == 0 and length // size <= 100)
    sizes = {"image_size": length, "in_channels": channels, "depth": depth, "embed_dim": width * patch, "num_heads": 1}
    if width * patch > 500:
        sizes["embed_dim"] = width
        form = "full"
    for stage in stages(scheme, convolution_form=form, patch_size=patch, **sizes):
        assert stage.step_flops == probe.step_flops(stage)


@pytest.mark.parametrize("depth", [1, 4, 12])
def test_the_residual_network_of_sequences_has_the_weights_that_its_width_is_made_for(depth: int) -> None:
    config = ModelConfig(image_size=100, dimensions=1, in_channels=3, patch_size=4, embed_dim=96, depth=depth)
    network = ResidualNetwork(config)
    num_blocks, width = network_size(config)
    weights = sum(p.numel() for name, p in network.blocks.named_parameters() if p.ndim == 3)
    assert weights == (126 * num_blocks - 20) * width**2
    assert all(p.shape[-1] in (1, 3) for p in network.parameters() if p.ndim == 3)
    assert weights == pytest.approx((4 + 2 * config.mlp_ratio) * depth * 96**2, rel=0.25)


@pytest.mark.parametrize(("length", "places"), [(7, 7), (100, 100), (255, 255), (256, 128), (1460, 133), (8192, 128)])
def test_the_first_convolution_of_a_long_sequence_leaves_128_to_255_places(length: int, places: int) -> None:
    config = ModelConfig(image_size=length, dimensions=1, patch_size=length, embed_dim=16, num_heads=1, depth=1)
    network = ResidualNetwork(config)
    initialise(network, 0)
    sequence = torch.zeros(1, 1, length, requires_grad=True)
    after = network.stem(sequence)
    assert after.shape[-1] == places and (places < 256)
    after.abs().sum().backward()
    assert stem_kernel(config) == 2 * stem_stride(config) + 1, "neighbouring places overlap: every sample is seen"
    assert network(torch.randn(2, 1, length)).shape == (2, 10)


# Training


@pytest.mark.parametrize("scheme", SCHEMES)
def test_members_of_a_pack_of_sequences_end_as_alone(scheme: str, dataset: Dataset, tmp_path: Path) -> None:
    """Whatever the others are regularised by: draws depend on seed and step alone."""
    together, alone = Storage.open(str(tmp_path / "together")), Storage.open(str(tmp_path / "alone"))
    members = [stages(scheme, seed=0), stages(scheme, seed=1, **REGULARISED), stages(scheme, seed=1, noise_std=0.1)]
    for phase in zip(*members, strict=True):
        for _ in train_pack(phase, dataset, together, CPU):
            pass
        for member in phase:
            for _ in train_pack([member], dataset, alone, CPU):
                pass
            assert_same(member, together, alone)


def test_time_masking_masks_stretches_of_the_shares_of_erasing() -> None:
    uniform = torch.rand(4000, erasing.NUM_UNIFORM, generator=generator(0, "test"))
    stretches = erasing.boxes(uniform, (1000,), 0.3)
    lengths = (stretches[:, 1] - stretches[:, 0]).double()
    assert (lengths > 0).double().mean() == pytest.approx(0.3, abs=0.03)
    lengths = lengths[lengths > 0] / 1000
    assert lengths.min() >= 0.02 and lengths.max() <= 0.33 and lengths.mean() == pytest.approx(0.175, abs=0.01)
    assert stretches.min() >= 0 and stretches.max() <= 1000
    sequences = torch.randn(4000, 3, 1000)
    erased = erasing.erased(sequences, stretches)
    for index in (lengths > 0).nonzero()[:5, 0].tolist():
        first, after = stretches[index].tolist()
        assert not erased[index, :, first:after].any()
        assert torch.equal(erased[index, :, after:], sequences[index, :, after:])
        assert torch.equal(erased[index, :, :first], sequences[index, :, :first])
    assert erasing.boxes(uniform, (1,), 1.0).tolist() == [[0, 1]] * 4000, "at least a sample"


def test_cutmix_of_sequences_takes_a_stretch_of_the_other_and_its_share_of_the_label() -> None:
    uniform = torch.rand(50, NUM_UNIFORM, dtype=torch.float64, generator=generator(0, "test"))
    mixture = mixtures(uniform, 0.0, 1.0, (40,))
    sequences = torch.arange(3.0).view(1, 3, 1, 1).expand(50, 3, 2, 40)
    out = mixed(sequences, mixture)
    own = (out == sequences).double().mean(dim=(1, 2, 3))
    assert torch.allclose(own, mixture[:, 0].double()) and 0.4 < own.mean() < 0.8
    changes = (out[:, 0, 0].diff(dim=1) != 0).sum(dim=1)
    assert changes.max() == 2, "one stretch"


def test_noise_has_its_deviation_and_is_drawn_by_address() -> None:
    row, windows = normal_row(CPU), draw_windows(64, generator(0, "noise", 3)).view(2, 32)
    sequences = torch.zeros(2, 32, 4, 500)
    out = noisy(sequences, windows, torch.tensor([0.5, 0.0]), row)
    assert out[0].std() == pytest.approx(0.5, rel=0.02) and out[0].mean() == pytest.approx(0, abs=0.01)
    assert not out[1].any()
    start = int(windows[0, 5])
    places = [(start + place) % NUM_NORMAL for place in range(2000)]
    assert torch.equal(out[0, 5].flatten(), 0.5 * row[places])
    assert torch.equal(draw_windows(64, generator(0, "noise", 3)).view(2, 32), windows)
    assert not torch.equal(draw_windows(64, generator(0, "noise", 4)).view(2, 32), windows)


# Configuration and keys


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augmentation": "crop_flip"}, "augmentation 'crop_flip' .* these are sequences: one of none, shift$"),
        ({"augmentation_policy": "rand_augment", "in_channels": 1}, "augmentation_policy 'rand_augment' .*sequences$"),
        ({"patch_size": 5}, r"patch_size 5 must divide the length 24: one of 1, 2, 3, 4, 6, 8, 12, 24$"),
        ({"num_heads": 16}, "num_heads 16 must be at most 15, the number of offsets on a grid of 8 patches$"),
    ],
)
def test_what_sequences_cannot_have_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        TrialConfig.from_flat(SEQUENCES | changes)
    assert "\n" not in str(caught.value)


def test_trials_share_a_full_twin_of_sequences_only_where_its_offsets_are_the_same() -> None:
    keys = {heads: stages("two_phase", convolution_form="full", num_heads=heads)[0].key for heads in (1, 2, 3, 4, 9)}
    assert keys[1] == keys[2] == keys[3]
    assert len(set(keys.values())) == 3

    def offsets(heads: int) -> tuple[Any, ...]:
        twin = blank_model(stages("two_phase", convolution_form="full", num_heads=heads)[0])
        convolution = twin.get_submodule("blocks.0.mixing")
        assert isinstance(convolution, FullConvolution)
        return convolution.offsets

    assert offsets(1) == offsets(3) != offsets(4)


def test_images_of_every_kind_have_the_shape_of_their_dimensions() -> None:
    config = ModelConfig(image_size=12, patch_size=3, dimensions=3, num_heads=27)
    assert (config.shape, config.patch, config.grid) == ((12,) * 3, (3,) * 3, (4,) * 3)
    sequence = ModelConfig(image_size=12, patch_size=3, dimensions=1, num_heads=7)
    assert (sequence.shape, sequence.patch, sequence.grid) == ((12,), (3,), (4,))
