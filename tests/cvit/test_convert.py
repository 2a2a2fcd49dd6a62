import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import sklearn.datasets
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet, mobilenet_v2, resnet18, vgg11
from torchvision.models.resnet import BasicBlock

from cvit.theorem.conversion import Conversion, convert
from cvit.theorem.counts import heads_needed
from cvit.theorem.layer import PatchAttention
from tests.support.convolutions import randn

Network = TypeVar("Network", bound=nn.Module)


class Net(nn.Module):
    """Blocks of convolution, norm and ReLU of every kind; on 32×32 pixels its stages have 32, 16, 14 and 7 a side."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = block(in_channels, 8, 3, padding=1)
        self.wide = block(8, 12, 5, padding="same")
        self.residual = nn.Sequential(
            block(12, 12, 3, padding=1, groups=3),
            block(12, 12, 3, padding=2, dilation=2, groups=12),
            nn.Conv2d(12, 12, 1),
        )
        self.down = block(12, 16, 3, padding=1, stride=2)
        self.valid = block(16, 16, 3, padding=0)
        self.fourteen = block(16, 20, 3, padding=1)
        self.seven = block(20, 20, (1, 3), padding=(0, 1))
        self.unused = nn.Conv2d(20, 20, 3, padding=1)
        self.head = nn.Linear(20, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.wide(self.stem(images))
        x = x + self.residual(x)
        x = self.fourteen(self.valid(self.down(x)))
        x = self.seven(F.max_pool2d(x, 2))
        return self.head(x.mean(dim=(2, 3)))


def block(*args: Any, **options: Any) -> nn.Sequential:
    conv = nn.Conv2d(*args, **options, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())


def as_if_trained(network: Network, seed: int = 0) -> Network:
    """Seeded weights of a size that keeps the activations', and norms with statistics of their own; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(0.5 + noise.square())
            elif name.endswith("num_batches_tracked"):
                value.fill_(100)
            elif value.ndim > 1:
                value.copy_(noise * (2 / value[0].numel()) ** 0.5)
            else:
                value.copy_(0.3 * noise + (1.0 if name.endswith("weight") else 0.0))
    return network.eval()


@pytest.fixture(scope="module")
def photographs(cifar10_dir: Path) -> Tensor:
    """(8, 3, 32, 32): images of CIFAR-10, normalised."""
    rows = next(pq.ParquetFile(cifar10_dir / "cifar10/train.parquet").iter_batches(8, columns=["img"])).to_pylist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["img"]["bytes"]))) for row in rows])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture(scope="module")
def digits() -> Tensor:
    """(16, 1, 8, 8): scanned digits, normalised."""
    pixels, _ = sklearn.datasets.load_digits(return_X_y=True)
    return torch.tensor(pixels[:16]).view(16, 1, 8, 8).float() / 8 - 1


def error(conversion: Conversion, network: nn.Module, images: Tensor) -> float:
    """Largest difference between the outputs, relative to the largest output."""
    with torch.no_grad():
        expected = network(images)
        difference = (conversion.network(images) - expected).abs().max() / expected.abs().max()
    assert expected.std(dim=0).mean() > 1e-2  # the images are told apart
    return float(difference)


def convolution_names(network: nn.Module) -> set[str]:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    modules = network.named_modules(remove_duplicate=False)
    return {name for name, module in modules if isinstance(module, kinds)}


def check_the_account(conversion: Conversion, network: nn.Module) -> None:
    """Every convolution is either replaced or kept, max-pooling is listed, and the converted network agrees."""
    pooling = {name for name, module in network.named_modules() if isinstance(module, nn.MaxPool2d)}
    assert {*conversion.replaced} | {*conversion.kept} == convolution_names(network) | pooling
    assert convolution_names(conversion.network) | pooling == {*conversion.kept}
    assert {*conversion.patches} == {*conversion.replaced}
    modules = dict(conversion.network.named_modules(remove_duplicate=False))
    attention = {name: module.num_heads for name, module in modules.items() if isinstance(module, PatchAttention)}
    assert attention == conversion.replaced


KEPT = {
    "valid.0": "padding (0, 0) is not 'same'",
    "unused": "not called on the example, so the size of its images is unknown",
}


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_a_network_computes_the_same_on_photographs(photographs: Tensor, patch_size: int) -> None:
    network = as_if_trained(Net())
    conversion = convert(network, photographs[:2], patch_size)
    check_the_account(conversion, network)
    assert error(conversion, network, photographs) <= 1e-5
    kept = dict(KEPT)
    too_odd = {2: {"seven.0": 7}, 4: {"fourteen.0": 14, "seven.0": 7}}.get(patch_size, {})
    for name, side in too_odd.items():
        kept[name] = f"patch size {patch_size} does not divide its images of {side}x{side} pixels"
    assert conversion.kept == kept
    heads = {name: heads_needed(3, patch_size) for name in ("stem.0", "residual.0.0", "fourteen.0")}
    heads |= {"wide.0": heads_needed(5, patch_size), "residual.1.0": heads_needed(3, patch_size, dilation=2)}
    heads |= {"residual.2": 1, "down.0": 4, "seven.0": 3}
    assert conversion.replaced == {name: count for name, count in heads.items() if name not in kept}
    assert conversion.patches["stem.0"] == (patch_size, patch_size)
    assert conversion.patches["down.0"] == (max(2, patch_size),) * 2


@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_network_computes_the_same_on_digits(digits: Tensor, patch_size: int) -> None:
    """Stages of 8, 4, 2 and 1 pixels a side: the neighbours of most patches lie outside the image."""
    network = as_if_trained(Net(in_channels=1))
    conversion = convert(network, digits[:1], patch_size)
    check_the_account(conversion, network)
    assert error(conversion, network, digits) <= 1e-5
    assert "seven.0" in conversion.replaced and {*conversion.kept} == {"valid.0", "unused"}


NOT_LINEAR = "it is not linear in the pixels, and attention that depends on positions alone is"


@pytest.mark.parametrize(("patch_size", "first"), [(1, 16), (2, 16), (4, 9)])
def test_a_resnet_becomes_attention(photographs: Tensor, patch_size: int, first: int) -> None:
    """20 convolutions, 7 of them strided: the first, and at the start of three stages one on each way."""
    network = as_if_trained(resnet18(num_classes=10))
    conversion = convert(network, photographs[:1], patch_size)
    check_the_account(conversion, network)
    assert error(conversion, network, photographs) <= 1e-4
    assert len(conversion.replaced) == 20 and conversion.kept == {"maxpool": NOT_LINEAR}
    stages = ("layer2", "layer3", "layer4")
    strided = {"conv1": first} | {f"{stage}.0.conv1": 4 for stage in stages}
    strided |= {f"{stage}.0.downsample.0": 1 for stage in stages}
    assert conversion.replaced == {name: strided.get(name, 9) for name in conversion.replaced}


def test_a_resnet_on_one_grid_of_tokens(photographs: Tensor) -> None:
    """On 64×64 pixels a patch of 32 has 16, 8, 4, 2 and 1 pixels behind each stride, and there are always 2×2 tokens.
    The channels are fewer than a ResNet's: a patch of 32×32 pixels times 64 channels is a long vector."""
    network = as_if_trained(ResNet(BasicBlock, [2, 2, 2, 2], num_classes=10))
    narrow(network, 1 / 16)
    images = F.interpolate(photographs, scale_factor=2)
    conversion = convert(as_if_trained(network), images[:1], 32)
    assert len(conversion.replaced) == 20 and conversion.kept == {"maxpool": NOT_LINEAR}
    assert error(conversion, network, images) <= 1e-4
    patches = {"conv1": 32, "layer1": 8, "layer2.0.conv1": 8, "layer2": 4, "layer3.0.conv1": 4, "layer3": 2}
    patches |= {"layer4.0.conv1": 2, "layer4": 1} | {f"layer{n}.0.downsample.0": 2 ** (5 - n) for n in (2, 3, 4)}
    for name, patch in conversion.patches.items():
        assert patch == (patches.get(name) or patches[name.partition(".")[0]],) * 2
    assert set(conversion.replaced.values()) == {9, 4, 1}


def narrow(network: nn.Module, share: float) -> None:
    """Replaces the layers of a ResNet by ones with a part of the channels, except for the image's and the classes."""
    for name, module in [*network.named_modules()]:
        if isinstance(module, nn.Conv2d):
            before = 3 if module.in_channels == 3 else int(share * module.in_channels)
            size: Any = module.kernel_size
            options: Any = {"stride": module.stride, "padding": module.padding, "bias": False}
            conv = nn.Conv2d(before, int(share * module.out_channels), size, **options)
            network.set_submodule(name, conv)
        elif isinstance(module, nn.BatchNorm2d):
            network.set_submodule(name, nn.BatchNorm2d(int(share * module.num_features)))
        elif isinstance(module, nn.Linear):
            network.set_submodule(name, nn.Linear(int(share * module.in_features), module.out_features))


@pytest.mark.parametrize("patch_size", [2, 4])
def test_a_mobilenet_becomes_attention(photographs: Tensor, patch_size: int) -> None:
    """52 convolutions, 17 of them depthwise; no max-pooling."""
    network = as_if_trained(mobilenet_v2(num_classes=10, width_mult=0.5))
    grouped = sum(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules())
    conversion = convert(network, photographs[:1], patch_size)
    check_the_account(conversion, network)
    assert (len(conversion.replaced), grouped, conversion.kept) == (52, 17, {})
    assert error(conversion, network, photographs) <= 1e-4


def test_a_vgg_becomes_attention(photographs: Tensor) -> None:
    """8 convolutions. Its classifier, 120 million weights, does not concern them: here it is one layer."""
    network = vgg11(init_weights=False)
    network.classifier = nn.Sequential(nn.Flatten(), nn.Linear(512 * 7 * 7, 10))
    conversion = convert(as_if_trained(network), photographs[:1], 2)
    check_the_account(conversion, network)
    assert error(conversion, network, photographs) <= 1e-4
    assert set(conversion.replaced.values()) == {9} and len(conversion.replaced) == 8
    assert set(conversion.kept.values()) == {NOT_LINEAR} and len(conversion.kept) == 5


def test_in_float64_the_difference_is_rounding(digits: Tensor) -> None:
    network = as_if_trained(Net(in_channels=1)).double()
    conversion = convert(network, digits[:1].double(), 1)
    assert error(conversion, network, digits.double()) <= 1e-13


def test_a_converted_network_takes_images_of_other_sizes() -> None:
    network = as_if_trained(Net())
    conversion = convert(network, torch.zeros(1, 3, 32, 32), 2)
    assert error(conversion, network, randn(3, 3, 24, 40).float()) <= 1e-5


@pytest.mark.parametrize("training", [False, True])
def test_the_original_is_left_as_it_is(digits: Tensor, training: bool) -> None:
    network = as_if_trained(Net(in_channels=1)).train(training)
    network.wide[1].eval()  # as in fine-tuning with a frozen norm
    network.residual[2].train(not training)
    network.stem[0].weight.requires_grad_(False)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    modules = dict(network.named_modules())
    flags = {name: module.training for name, module in modules.items()}
    conversion = convert(network, digits, 2)
    assert dict(network.named_modules()) == modules
    assert {name: module.training for name, module in modules.items()} == flags
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in modules.values())
    # And the copy has its modes, its frozen parameters and the statistics of its norms, but shares nothing with it.
    copied = dict(conversion.network.named_modules())
    assert {name: module.training for name, module in copied.items() if name in flags} == flags
    assert not any(module._forward_hooks for module in copied.values())
    assert all(
        module.training == flags[name.rpartition(".")[0]] for name, module in copied.items() if name not in flags
    )
    assert not any(parameter.requires_grad for parameter in copied["stem.0"].parameters())
    assert all(parameter.requires_grad for parameter in copied["wide.0"].parameters())
    buffers = dict(conversion.network.named_buffers())
    assert buffers and all(torch.equal(value, state[name]) for name, value in buffers.items())
    with torch.no_grad():
        for value in conversion.network.state_dict().values():
            value.fill_(0)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_a_state_dict_loads_into_another_conversion(digits: Tensor) -> None:
    first, second = (as_if_trained(Net(in_channels=1), seed) for seed in (0, 1))
    conversion, other = (convert(network, digits[:1], 2) for network in (first, second))
    assert error(other, first, digits) > 0.1
    other.network.load_state_dict(conversion.network.state_dict())
    assert error(other, first, digits) <= 1e-5


def test_a_converted_network_trains(digits: Tensor) -> None:
    network = as_if_trained(Net(in_channels=1)).train()
    conversion = convert(network, digits[:1], 2)
    model, labels = conversion.network, torch.arange(16) % 10
    assert model.training
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(model(digits), labels)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        for name in conversion.replaced:
            layer = model.get_submodule(name)
            gradients = {part: parameter.grad for part, parameter in layer.named_parameters()}
            assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
            for part in ("value.weight", "output.weight"):
                gradient = gradients[part]
                assert gradient is not None and gradient.any()
        optimizer.step()
    assert losses[-1] < losses[0]
    # At first the gradients are the convolution's own.
    assert losses[0] == pytest.approx(F.cross_entropy(network(digits), labels).item(), rel=1e-4)


# How convolutions are found and used


class Calls(nn.Module):
    """A module whose forward is the given function of itself and the images."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.call = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, images: Tensor) -> Tensor:
        return self.call(self, images)


def same(channels: int = 2, size: int = 3) -> nn.Conv2d:
    return as_if_trained(nn.Conv2d(channels, channels, size, padding="same"))


def test_a_convolution_of_two_names_stays_one() -> None:
    conv, pair = same(), nn.Sequential(same(), nn.ReLU())
    network = as_if_trained(
        Calls(lambda self, x: self.again(self.second(self.first(x))), first=conv, second=pair, third=pair, again=conv)
    )
    conversion = convert(network, torch.zeros(1, 2, 4, 4), 2)
    check_the_account(conversion, network)
    assert conversion.replaced == {"first": 9, "second.0": 9, "third.0": 9, "again": 9}
    model = conversion.network
    assert model.get_submodule("first") is model.get_submodule("again")
    assert model.get_submodule("second") is model.get_submodule("third")
    assert error(conversion, network, randn(3, 2, 6, 4).float()) <= 1e-5


@pytest.mark.parametrize(("sides", "odd"), [((8, 4), None), ((8, 3), 3), ((4, 7), 7), ((5, 8), 5)])
def test_every_size_that_a_convolution_meets_counts(sides: tuple[int, int], odd: int | None) -> None:
    network = Calls(lambda self, x: self.conv(self.resize(self.conv(x))), conv=same(), resize=nn.Upsample(sides[1]))
    conversion = convert(network, torch.zeros(1, 2, sides[0], sides[0]), 2)
    check_the_account(conversion, network)
    if odd is None:
        assert conversion.replaced == {"conv": 9}
    else:
        assert conversion.kept == {"conv": f"patch size 2 does not divide its images of {odd}x{odd} pixels"}


def test_the_example_goes_through_the_network_before_and_after_in_eval_mode_and_without_gradients() -> None:
    seen = []

    def forward(self: nn.Module, images: Tensor) -> Tensor:
        seen.append((self.training, torch.is_grad_enabled(), images.shape))
        return self.get_submodule("conv")(images)

    example = torch.zeros(1, 2, 4, 4)
    assert convert(Calls(forward, conv=same()), example, 2).replaced == {"conv": 9}
    assert seen == [(False, False, example.shape)] * 2


def test_both_sides_of_an_image_count() -> None:
    for height, width in ((4, 5), (5, 4)):
        conversion = convert(nn.Sequential(same()), torch.zeros(1, 2, height, width), 2)
        assert conversion.kept == {"0": f"patch size 2 does not divide its images of {height}x{width} pixels"}


def test_the_network_may_be_a_convolution() -> None:
    conv = same(size=5)
    conversion = convert(conv, torch.zeros(1, 2, 6, 6), 1)
    assert isinstance(conversion.network, PatchAttention)
    assert conversion.replaced == {"": 25} and conversion.kept == {}
    assert error(conversion, conv, randn(2, 2, 6, 6).float()) <= 1e-5
    unpadded = nn.Conv2d(2, 2, 3)
    conversion = convert(unpadded, torch.zeros(1, 2, 6, 6), 1)
    assert conversion.replaced == {} and conversion.kept == {"": "padding (0, 0) is not 'same'"}
    assert conversion.network is not unpadded


def test_strides_on_images_that_they_do_not_divide() -> None:
    network = nn.Sequential(nn.Conv2d(2, 2, 3, stride=2, padding=1), nn.Conv2d(2, 2, 3, stride=2, padding=1))
    conversion = convert(as_if_trained(network), torch.ones(1, 2, 6, 6), 2)
    assert conversion.replaced == {"0": 4}
    assert conversion.kept == {"1": "its stride (2, 2) does not divide its images of 3x3 pixels"}


def test_a_patch_has_a_side_for_each_axis() -> None:
    network = as_if_trained(nn.Sequential(nn.Conv2d(2, 3, (3, 5), stride=(1, 2), padding=(1, 2)), nn.ReLU(), same(3)))
    images = randn(3, 2, 6, 16).float()
    conversion = convert(network, images, (3, 4))
    assert conversion.patches == {"0": (3, 4), "2": (3, 2)} and conversion.replaced == {"0": 9, "2": 9}
    assert error(conversion, network, images) <= 1e-5
    with pytest.raises(ValueError, match=r"^patch_size must be at least 1, not 0$"):
        convert(network, images, (3, 0))
    conversion = convert(network, images, (3,))
    assert set(conversion.kept.values()) == {"(3,) has 1 sizes for 2 axes"}


def test_other_convolutions_are_kept_by_the_name_of_their_class() -> None:
    network = Calls(
        lambda self, x: self.up(self.line(self.plane(x).flatten(2)).unflatten(2, x.shape[2:])),
        plane=same(),
        line=nn.Conv1d(2, 2, 3, padding=1),
        up=nn.ConvTranspose2d(2, 2, 3),
        space=nn.Conv3d(2, 2, 3),
    )
    conversion = convert(network, torch.zeros(1, 2, 4, 4), 2)
    check_the_account(conversion, network)
    assert conversion.replaced == {"plane": 9, "line": 3}
    assert conversion.kept == {
        "up": "ConvTranspose2d is not a Conv1d or Conv2d or Conv3d",
        "space": "padding (0, 0, 0) is not 'same'",
    }


class Spaces(nn.Module):
    """Convolutions on one, two and three axes: a volume, its slices, and their rows."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = nn.Conv3d(1, 3, 3, padding=1)
        self.slice = nn.Conv2d(3, 4, (3, 5), padding="same")
        self.row = nn.Conv1d(4, 2, 4, padding="same")

    def forward(self, volumes: Tensor) -> Tensor:
        slices = F.relu(self.volume(volumes)).mean(dim=2)
        rows = F.relu(self.slice(slices)).mean(dim=2)
        return self.row(rows).flatten(1)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("patch_size", "heads"), [(1, (27, 15, 4)), (2, (27, 9, 3))])
def test_convolutions_of_any_number_of_axes_are_replaced(patch_size: int, heads: tuple[int, ...]) -> None:
    network = as_if_trained(Spaces()).double()
    conversion = convert(network, torch.zeros(1, 1, 4, 6, 8, dtype=torch.float64), patch_size)
    check_the_account(conversion, network)
    assert conversion.replaced == dict(zip(("volume", "slice", "row"), heads, strict=True)) and not conversion.kept
    assert error(conversion, network, randn(3, 1, 4, 6, 8)) <= 1e-12
    odd = convert(network, torch.zeros(1, 1, 4, 6, 9, dtype=torch.float64), 2)
    assert odd.kept["volume"] == "patch size 2 does not divide its images of 4x6x9 pixels"
    assert odd.kept["row"] == "patch size 2 does not divide its images of 9 pixels"


@pytest.mark.parametrize("parametrization", ["weight_norm", "spectral_norm"])
def test_a_parametrised_weight_is_that_of_eval_mode(parametrization: str) -> None:
    """Spectral norm goes on with its power iteration at every look at the weight in training mode."""
    network = nn.Sequential(getattr(nn.utils.parametrizations, parametrization)(same(), dim=0)).train()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    conversion = convert(network, torch.zeros(1, 2, 4, 4), 2)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert isinstance(conversion.network, nn.Sequential)
    assert conversion.replaced == {"0": 9} and conversion.network[0].training
    assert all(parameter.requires_grad for parameter in conversion.network.parameters())
    assert error(conversion, network.eval(), randn(3, 2, 6, 6).float()) <= 1e-5


def test_a_convolution_without_a_known_size_yet_is_found_lazily() -> None:
    network = nn.Sequential(nn.LazyConv2d(3, 3, padding=1), nn.LazyConv2d(3, 3, stride=2))
    conversion = convert(network, torch.zeros(1, 2, 4, 4), 2)
    assert {*conversion.replaced} == {"0"} and {*conversion.kept} == {"1"}
    assert conversion.network.get_parameter("0.value.weight").shape[1] == 8
    assert isinstance(network[0], nn.LazyConv2d)


def test_a_network_without_convolutions_is_copied() -> None:
    network = as_if_trained(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    conversion = convert(network, torch.zeros(1, 1, 2, 2), 2)
    assert conversion.replaced == conversion.kept == {}
    assert error(conversion, network, randn(3, 1, 2, 2).float()) == 0.0


@pytest.mark.parametrize("patch_size", [0, -1])
def test_a_patch_size_below_one(patch_size: int) -> None:
    with pytest.raises(ValueError, match=rf"^patch_size must be at least 1, not {patch_size}$"):
        convert(nn.Flatten(), torch.zeros(1, 1, 2, 2), patch_size)
