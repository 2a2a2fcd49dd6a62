"""The fused operators compute what torch's own operators compute: values and gradients, for any shape, alone or as a
pack."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from cvit import native
from cvit.geometry import Grid, num_relative_positions
from cvit.models.attention import RelativeAttention
from cvit.models.branch import add_branch, shift_places
from cvit.models.convolution import FactorizedConvolution
from cvit.models.layers import LayerNorm, Linear
from cvit.models.pack import FusedModels
from cvit.randomness import generator

pytestmark = pytest.mark.skipif(not native.is_available(), reason=f"no operators here: {native.problem()}")
needs_halves = pytest.mark.skipif(not native.has_half_products(), reason="no products of bfloat16 here")

KINDS = ("attention", "shift", "mlp")
CPU = torch.device("cpu")


class Branch(nn.Module):
    """A residual branch with random weights, by the operators where they apply."""

    def __init__(
        self, kind: str, grid: Grid, embed_dim: int, num_heads: int, head_dim: int, windows: tuple[int | None, int]
    ) -> None:
        super().__init__()
        self.norm = LayerNorm(embed_dim)
        if kind == "attention":
            self.layer = RelativeAttention(embed_dim, num_heads, head_dim, grid, *windows)
        elif kind == "shift":
            self.layer = FactorizedConvolution(embed_dim, num_heads, head_dim, grid)
        else:
            hidden = num_heads * head_dim
            self.layer = nn.Sequential(Linear(embed_dim, hidden), nn.GELU(), Linear(hidden, embed_dim))

    def forward(self, tokens: Tensor, scale: Tensor | None = None) -> Tensor:
        return add_branch(tokens, self.norm, self.layer, scale)


@dataclass(frozen=True)
class Case:
    """The shapes of a branch and its tokens."""

    kind: str
    grid: Grid
    embed_dim: int
    num_heads: int
    head_dim: int
    batch_size: int
    members: int | None
    is_scaled: bool
    windows: tuple[int | None, int] = (None, 0)

    def make(self, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor | None]:
        """The branch, tokens and factors of images, all random."""
        draws = generator(0, "native")

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draws, dtype=torch.float64).to(dtype)

        model: nn.Module = Branch(self.kind, self.grid, self.embed_dim, self.num_heads, self.head_dim, self.windows)
        if self.members is not None:
            model = FusedModels(model, self.members, CPU).model
        model = model.to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(random(*parameter.shape) / 2)
        images = (self.batch_size,) if self.members is None else (self.members, self.batch_size)
        tokens = random(*images, math.prod(self.grid), self.embed_dim).requires_grad_()
        return model, tokens, random(*images) if self.is_scaled else None


def small(kind: str, members: int | None = None) -> Case:
    return Case(kind, (2, 3), 5, 3, 2, 2, members, is_scaled=True)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    grid = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    heads = draw(st.integers(1, min(9, num_relative_positions(grid))))
    return Case(
        kind=draw(st.sampled_from(KINDS)),
        grid=grid,
        embed_dim=draw(st.integers(1, 70)),
        num_heads=heads,
        head_dim=draw(st.integers(1, 20)),
        batch_size=draw(st.integers(1, 9)),
        members=draw(st.none() | st.integers(1, 3)),
        is_scaled=draw(st.booleans()),
        windows=draw(st.just((None, 0)) | st.tuples(st.integers(1, 4), st.integers(0, 2))),
    )


def results(model: nn.Module, tokens: Tensor, scale: Tensor | None) -> list[Tensor]:
    """The outputs, and the gradients of a function of them."""
    outputs = model(tokens, scale)
    weights = torch.randn(outputs.shape, generator=generator(1, "native"), dtype=torch.float64).to(outputs.dtype)
    return [outputs.detach(), *torch.autograd.grad((outputs * weights).sum(), [tokens, *model.parameters()])]


def torch_results(model: nn.Module, tokens: Tensor, scale: Tensor | None) -> list[Tensor]:
    with native.switched_off():
        return results(model, tokens, scale)


def distance(found: Tensor, exact: Tensor) -> Tensor:
    assert found.shape == exact.shape
    return (found.double() - exact).norm()


def assert_close(found: Sequence[Tensor], exact: Sequence[Tensor], error: float) -> None:
    for one, other in zip(found, exact, strict=True):
        assert distance(one, other) <= error * (1 + other.norm())


@given(cases())
@settings(max_examples=100)
def test_values_and_gradients_in_double_precision(case: Case) -> None:
    """Both ways compute the same sums in another order."""
    assert_close(results(*case.make()), torch_results(*case.make()), 1e-12)


@given(cases())
@settings(max_examples=60)
def test_values_and_gradients_in_single_precision(case: Case) -> None:
    """As near to double precision as rounding of float32 allows; a norm of few numbers that hardly differ magnifies it,
    in torch's operators too."""
    found, in_torch = results(*case.make(torch.float32)), torch_results(*case.make(torch.float32))
    for one, other, exact in zip(found, in_torch, torch_results(*case.make()), strict=True):
        assert distance(one, exact) <= max(1e-5 * (1 + exact.norm()), 10 * distance(other, exact))


@needs_halves
@given(cases())
@settings(max_examples=60)
def test_products_in_bfloat16(case: Case) -> None:
    """Factors with 8 binary digits, all else in float32: hardly ever further from the truth than torch's autocast."""
    model, tokens, scale = case.make(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found, in_torch = results(model, tokens, scale), torch_results(model, tokens, scale)
    assert all(each.dtype == torch.float32 for each in found)
    for one, other, exact in zip(found, in_torch, torch_results(*case.make()), strict=True):
        assert distance(one, exact) <= max(0.03 * (1 + exact.norm()), 3 * distance(other, exact))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("members", [None, 2])
def test_gradients_are_those_of_differences(kind: str, members: int | None) -> None:
    model, tokens, scale = small(kind, members).make()
    names = [name for name, _ in model.named_parameters()]

    def outputs(tokens: Tensor, *values: Tensor) -> Tensor:
        return functional_call(model, dict(zip(names, values, strict=True)), (tokens, scale))

    assert gradcheck(outputs, (tokens, *model.parameters()), fast_mode=True)


@given(cases().filter(lambda case: case.members is not None))
@settings(max_examples=40)
def test_a_member_computes_as_alone_bit_for_bit(case: Case) -> None:
    pack, tokens, scale = case.make(torch.float32)
    assert case.members is not None
    together = results(pack, tokens, scale)
    alone = Branch(case.kind, case.grid, case.embed_dim, case.num_heads, case.head_dim, case.windows)
    weights = torch.randn(tokens.shape, generator=generator(1, "native"), dtype=torch.float64).float()
    for member in range(case.members):
        alone.load_state_dict({name: parameter[member] for name, parameter in pack.named_parameters()})
        own = tokens[member].detach().requires_grad_()
        outputs = alone(own, None if scale is None else scale[member])
        gradients = torch.autograd.grad((outputs * weights[member]).sum(), [own, *alone.parameters()])
        for found, expected in zip([outputs, *gradients], together, strict=True):
            assert torch.equal(found, expected[member])


def is_fused(outputs: Tensor) -> bool:
    """True if one of the operators made these outputs."""
    assert outputs.grad_fn is not None
    return "Block" in outputs.grad_fn.name()


@pytest.mark.parametrize("kind", KINDS)
def test_torch_computes_what_the_operators_cannot(kind: str) -> None:
    model, tokens, scale = small(kind).make()
    assert isinstance(model, Branch)
    assert is_fused(model(tokens, scale))
    with native.switched_off():
        assert not is_fused(model(tokens, scale))
    assert not is_fused(model.bfloat16()(tokens.bfloat16()))
    model.float()
    with torch.autocast("cpu", torch.float16):
        assert not is_fused(model(tokens.float()))
    with FlopCounterMode(display=False) as counter:
        assert not is_fused(model(tokens.float()))
    assert counter.get_total_flops() > 0, "the products are counted"


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_were_changed_are_called(kind: str) -> None:
    model, tokens, _ = small(kind).make()
    assert isinstance(model, Branch)
    inner = next(each for each in model.layer.modules() if isinstance(each, nn.Linear))
    for module in (model.norm, model.layer, inner):
        seen: list[nn.Module] = []
        hook = module.register_forward_pre_hook(lambda module, _: seen.append(module))  # noqa: B023
        assert not is_fused(model(tokens)) and len(seen) == 1
        hook.remove()
        assert is_fused(model(tokens))
    nn.utils.parametrizations.weight_norm(inner)
    assert not is_fused(model(tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_keeps_nothing_and_computes_the_same(kind: str) -> None:
    model, tokens, scale = small(kind, 2).make(torch.float32)
    expected = model(tokens, scale).detach()
    with torch.inference_mode():
        assert torch.equal(model(tokens, scale), expected)
    with torch.no_grad():
        outputs = model(tokens, scale)
    assert torch.equal(outputs, expected) and not outputs.requires_grad
    assert is_fused(model(tokens, scale)), "nothing that was kept in inference mode is in the way"


def test_places_of_inference_mode_serve_training() -> None:
    shift_places.cache_clear()
    model, tokens, _ = small("shift").make()
    with torch.inference_mode():
        model(tokens)
    assert torch.isfinite(torch.autograd.grad(model(tokens).sum(), tokens)[0]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_second_derivative_is_made_up(kind: str) -> None:
    model, tokens, _ = small(kind).make()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(model(tokens).square().sum(), tokens, create_graph=True)


def test_tensors_that_do_not_belong_together_are_refused() -> None:
    model, tokens, _ = small("attention").make()
    for wrong in (tokens[:, :5], tokens[..., :4], tokens.expand(3, 2, 6, 5)[:, :, :4]):
        with pytest.raises(RuntimeError, match="instead of"):
            model(wrong)
    with pytest.raises(RuntimeError, match="instead of"):
        model(tokens.float())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # by torch's own check
@pytest.mark.parametrize("kind", KINDS)
def test_torch_finds_the_operators_well_made(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schema, shapes without data, gradients, and compilation with shapes that change."""
    model, tokens, scale = small(kind).make()
    assert isinstance(model, Branch)
    operator, arguments = arguments_of(model, tokens, scale, monkeypatch)
    opcheck(operator, arguments)


def arguments_of(
    model: Branch, tokens: Tensor, scale: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> tuple[OpOverload, tuple[Any, ...]]:
    """The operator that a branch calls, and the arguments with which it does."""
    calls: list[tuple[OpOverload, tuple[Any, ...]]] = []
    call = OpOverload.__call__

    def noted(self: OpOverload, /, *arguments: Any, **named: Any) -> Any:
        calls.append((self, arguments))
        return call(self, *arguments, **named)

    monkeypatch.setattr(OpOverload, "__call__", noted)
    model(tokens, scale)
    monkeypatch.undo()
    return next(each for each in calls if each[0].namespace == "cvit")


def test_a_masked_pair_takes_no_part() -> None:
    model, tokens, _ = Case("attention", (2, 3), 20, 2, 5, 3, 2, is_scaled=False).make()
    layer, norm = model.layer, model.norm
    assert isinstance(layer, RelativeAttention) and isinstance(norm, LayerNorm)
    weights = [projection.weight for projection in (layer.query, layer.key, layer.value)]
    output = (layer.output.weight, layer.output.bias)

    def attention(table: Tensor, index: Tensor) -> list[Tensor]:
        arguments = (tokens, norm.weight, norm.bias, norm.eps, *weights, table, index, *output)
        mixed = torch.ops.cvit.attention_block(*arguments)
        return [mixed, *torch.autograd.grad(mixed.square().sum(), [tokens, *model.parameters()], allow_unused=True)]

    index = layer.get_buffer("_bias_index")
    far = int(index.view(6, 7)[0, 5])  # the last patch as a key of the first
    is_far = torch.arange(layer.relative_bias.shape[-1]) == far
    by_bias = attention(layer.relative_bias.masked_fill(is_far, -math.inf), index)
    by_index = attention(layer.relative_bias, index.where(index != far, -1))
    unlikely = attention(layer.relative_bias.masked_fill(is_far, -1e4), index)
    for one, other, third in zip(by_bias, by_index, unlikely, strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, other)
        assert torch.equal(one, third)
    assert not torch.equal(by_bias[0], attention(layer.relative_bias, index)[0])
