"""Networks that would not work with attention: convert runs what it returns, and keeps, lists or refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvit.theorem.conversion import Conversion, convert
from cvit.theorem.layer import PatchAttention, convolution_as_attention
from tests.cvit.test_convert import Calls, as_if_trained, check_the_account, error, same
from tests.support.convolutions import randn

EXAMPLE = randn(2, 2, 4, 4).float()


def converted(network: nn.Module, example: Tensor = EXAMPLE) -> Conversion:
    """The conversion of a network, whose outputs are the original's."""
    conversion = convert(network, example, 2)
    check_the_account(conversion, network)
    if len(example):
        assert error(conversion, network, randn(3, 2, 6, 4).float()) <= 1e-5
    return conversion


def network_of(forward: Callable[[Any, Tensor], Tensor], **more: nn.Module) -> nn.Module:
    return as_if_trained(Calls(forward, first=same(), odd=same(), **more))


WORKS = {
    "out_channels": lambda self, x: self.odd(self.first(x)) * self.odd.out_channels,
    "in_channels": lambda self, x: self.odd(self.first(x)).view(len(x), self.odd.in_channels, *x.shape[2:]),
    "input=": lambda self, x: self.odd(input=self.first(input=x)),
}
KEPT = {
    "weight": (lambda self, x: self.odd(self.first(x)) + self.odd.weight.mean(), "has no attribute 'weight'"),
    "kernel_size": (lambda self, x: self.odd(self.first(x)) * self.odd.kernel_size[0], "no attribute 'kernel_size'"),
    "functional": (lambda self, x: F.conv2d(self.odd(self.first(x)), self.odd.weight), "AttributeError"),
    "class": (
        lambda self, x: self.odd(self.first(x)) if isinstance(self.odd, nn.Conv2d) else self.first(x),
        "the network's output differs by",
    ),
    "shape": (
        lambda self, x: self.odd(self.first(x)) if isinstance(self.odd, nn.Conv2d) else self.odd(x)[:, :1],
        "the network's output has another shape",
    ),
}


@pytest.mark.parametrize("forward", WORKS.values(), ids=WORKS)
def test_code_that_asks_attention_for_what_a_convolution_has_works(forward: Callable[[Any, Tensor], Tensor]) -> None:
    assert converted(network_of(forward)).replaced == {"first": 9, "odd": 9}


@pytest.mark.parametrize(("forward", "reason"), KEPT.values(), ids=KEPT)
def test_what_the_network_does_not_work_without_is_kept(forward: Callable[[Any, Tensor], Tensor], reason: str) -> None:
    conversion = converted(network_of(forward))
    assert conversion.replaced == {"first": 9} and set(conversion.kept) == {"odd"}
    assert conversion.kept["odd"].startswith("with attention in its place the network")
    assert reason in conversion.kept["odd"]


def test_a_convolution_that_is_called_from_elsewhere_is_kept() -> None:
    """The list is not searched for modules, and would go on calling the convolution."""
    network = network_of(lambda self, x: self.elsewhere[0](self.first(x)))
    network.elsewhere = [network.get_submodule("odd")]  # type: ignore[assignment]
    conversion = converted(network)
    assert conversion.replaced == {"first": 9}
    assert conversion.kept == {
        "odd": "with attention in its place the network still calls the convolution, which it has kept elsewhere"
    }


def test_shared_parameters_stay_shared() -> None:
    network = network_of(lambda self, x: self.third(self.odd(self.first(x))), third=same())
    first, odd = network.get_submodule("first"), network.get_submodule("odd")
    odd.weight = first.weight
    conversion = converted(network)
    assert conversion.replaced == {"third": 9}
    reason = "it shares a parameter with {!r}, from which attention would come apart"
    assert conversion.kept == {"first": reason.format("odd.weight"), "odd": reason.format("first.weight")}
    copies = dict(conversion.network.named_parameters(remove_duplicate=False))
    assert copies["first.weight"] is copies["odd.weight"] is not odd.weight


def test_a_parameter_that_the_network_itself_has_too_is_shared() -> None:
    network = network_of(lambda self, x: self.odd(self.first(x)) * self.scale.mean())
    network.register_parameter("scale", network.get_parameter("odd.weight"))
    conversion = converted(network)
    assert conversion.replaced == {"first": 9} and "'scale'" in conversion.kept["odd"]


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_backward_hooks_are_not_lost(register: str) -> None:
    seen: list[bool] = []
    network = network_of(lambda self, x: self.odd(self.first(x)))
    getattr(network.get_submodule("odd"), register)(lambda *_: seen.append(True))
    conversion = converted(network)
    assert conversion.kept == {"odd": "it has backward hooks, which would be lost"}
    conversion.network(EXAMPLE).sum().backward()
    assert seen


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (lambda net: torch.jit.trace(net, EXAMPLE), "traced or scripted"),
        (torch.jit.script, "traced or scripted"),
        (torch.fx.symbolic_trace, "a graph of torch.fx"),
        (lambda net: torch.export.export(net, (EXAMPLE,)).module(), "a graph of torch.fx"),
        (torch.compile, "compiled"),
    ],
    ids=["trace", "script", "fx", "export", "compile"],
)
def test_recordings_are_refused(record: Callable[[nn.Module], nn.Module], kind: str) -> None:
    recording = record(nn.Sequential(same(), nn.ReLU()))
    with pytest.raises(ValueError, match=rf"^the network cannot be converted: it is {kind}; convert the"):
        convert(recording, EXAMPLE, 2)
    with pytest.raises(ValueError, match=rf"^the network cannot be converted: its part '1' is {kind}; convert the"):
        convert(nn.Sequential(same(), recording), EXAMPLE, 2)


def test_what_is_no_module_and_what_cannot_be_copied_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^network must be a torch.nn.Module, not function$"):
        convert(lambda x: x, EXAMPLE, 2)  # type: ignore[arg-type]
    network = network_of(lambda self, x: self.odd(self.first(x)))
    network.cached = network(EXAMPLE)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"^the network cannot be copied: [^\n]*$"):
        convert(network, EXAMPLE, 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_example_that_is_not_finite_is_refused_and_spoils_the_whole_image(value: float) -> None:
    images = EXAMPLE.clone()
    images[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"^the example must be finite"):
        convert(same(), images, 2)
    conv = same()
    output = convolution_as_attention(conv, 2)(images)
    assert output[0].isnan().all() and torch.allclose(output[1], conv(images)[1], atol=1e-5)


def test_empty_batches_pass() -> None:
    network = as_if_trained(nn.Sequential(same(), nn.BatchNorm2d(2), same()))
    for example in (EXAMPLE, EXAMPLE[:0]):
        conversion = converted(network, example)
        assert conversion.replaced == {"0": 9, "2": 9}
        assert conversion.network(EXAMPLE[:0]).shape == (0, 2, 4, 4)
    layer = PatchAttention(2, 3, (2, 2), num_heads=4, head_dim=5, half_widths=(1, 1), content=True)
    assert layer(EXAMPLE[:0]).shape == (0, 3, 4, 4)


def test_outputs_of_any_form_are_compared() -> None:
    def forms(self: Any, x: Tensor) -> Any:
        y = self.odd(self.first(x))
        return {"list": [y, (y, y.argmax(1))], "number": 3, "infinite": torch.where(y > 0, y, -torch.inf)}

    assert convert(network_of(forms), EXAMPLE, 2).replaced == {"first": 9, "odd": 9}

    def broken(self: Any, x: Tensor) -> Any:
        y = self.odd(self.first(x))
        return {"list": [x, (y if isinstance(self.odd, nn.Conv2d) else 1.1 * y, 3)]}

    assert convert(network_of(broken), EXAMPLE, 2).kept == {
        "odd": "with attention in its place the network's output differs by 10 %"
    }


def test_draws_and_work_in_place_do_not_make_a_difference() -> None:
    network = nn.Sequential(nn.ReLU(inplace=True), same(), Calls(lambda self, x: F.dropout(x, 0.5)))
    example, state = EXAMPLE.clone(), torch.get_rng_state()
    assert convert(network, example, 2).replaced == {"1": 9}
    assert torch.equal(example, EXAMPLE) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rounding_of_other_precisions_is_no_fault(dtype: torch.dtype) -> None:
    network = as_if_trained(nn.Sequential(*(same(size=5) for _ in range(8)))).to(dtype)
    assert len(convert(network, EXAMPLE.to(dtype), 2).replaced) == 8


def test_what_works_alone_but_not_together_is_refused() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.odd(self.first(x))
        return y if isinstance(self.first, nn.Conv2d) or isinstance(self.odd, nn.Conv2d) else 2 * y

    with pytest.raises(
        ValueError, match=r"^the network cannot be converted: .* 2 convolutions .* differs by 1e\+02 %$"
    ):
        convert(network_of(forward), EXAMPLE, 2)


def test_what_a_copy_and_attention_lack_is_listed() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = nn.Parameter(first.weight.data)
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(same()), same(), first, second)
    network.get_parameter("1.bias").register_hook(lambda gradient: gradient)
    conversion = convert(network, EXAMPLE, 2)
    assert conversion.replaced == {"0": 9, "1": 9}
    assert conversion.lost == {
        "0": "its parametrisation: attention has the weights that it gave in eval mode",
        "1.bias": "its hooks",
        "3.weight": "the memory that it shares with '2.weight'",
    }
    assert converted(nn.Sequential(same())).lost == {}
