"""Replaces the convolutions of a network by attention that computes the same."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveMaxPoolNd, _LPPoolNd, _MaxPoolNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from cvit.errors import one_line
from cvit.geometry import Grid, by_axis
from cvit.theorem.comparison import fault_of, outputs_of
from cvit.theorem.convolutions import CONVOLUTIONS, Convolution, reason_not_convertible
from cvit.theorem.counts import Size, per_axis
from cvit.theorem.layer import PatchAttention, convolution_as_attention

Sizes = set[Grid]
"""Pixels along each axis, for every size of image that a convolution has been given."""
Names = Mapping[nn.Module, Sequence[str]]
"""The qualified names of modules; a module may have several."""

Replacements = Mapping[nn.Module, PatchAttention]

MAX_POOLING = (_MaxPoolNd, _AdaptiveMaxPoolNd, _LPPoolNd, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
"""The modules that mix pixels by an operation that is not linear."""
_NOT_LINEAR = "it is not linear in the pixels, and attention that depends on positions alone is"

_COMPILED = "_orig_mod"
"""The name of a network inside the one that `torch.compile` makes of it."""


@dataclass(frozen=True)
class Conversion:
    """A converted network.

    Attributes:
        network: the network with attention in place of convolutions.
        replaced: the number of heads for each convolution that was replaced, by qualified name.
        patches: pixels along each axis of a patch, for each convolution that was replaced, by qualified name.
        kept: the reason for each convolution that was kept, by qualified name, and for each module of max-pooling: no
            attention over positions computes a maximum. A module with two names appears under both, here and above.
        lost: what the original has and the network lacks although its outputs are the same, by qualified name of the
            module or parameter, such as parametrisations and hooks of parameters.
    """

    network: nn.Module
    replaced: Mapping[str, int]
    patches: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, str]
    lost: Mapping[str, str]


def convert(network: nn.Module, example: Tensor, patch_size: Size) -> Conversion:
    """A copy of a network in which attention over patches replaces every convolution that it can compute exactly.

    The original stays as it is; the copy has its training modes. Unpadded convolutions are kept, and so are
    convolutions of images that the patch size does not divide, whose parameters are shared, or that have hooks.

    The network stays on one grid of tokens where it can: a patch has P pixels a side on images of the example's size,
    and P/s behind layers whose strides multiply to s. Where images have fewer pixels than that grid has tokens, a token
    is one output pixel. So all 20 convolutions of a ResNet-18 become attention, with any patch size that divides the
    example's sides. Where an image's side is no part of the example's, a patch has P pixels. A layer holds heads ×
    tokens² numbers of attention and heads × channels² × P⁴ of weights: on large images, P in between takes least.

    The result is run once on the example. A convolution is kept if the network does not work without it: because code
    reads its weights, say, or asks for its class. If the outputs differ from those of the original by more than
    rounding, the conversion is refused. That holds for the example and in eval mode: code that runs in training only,
    or code outside of the network, such as a loss on the weights of its convolutions, is not seen.

    Attention agrees with a convolution on finite images. Each output of attention is a sum over the whole image with
    weights of which all but one are zero, and zero times infinity is not a number: one pixel that is not finite spoils
    all of its image, where a convolution spoils its neighbourhood.

    Args:
        network: modules of Python, not a traced, scripted, exported or compiled network.
        example: an input of the size that the network will be used with. It goes through the copy in eval mode, before
            the conversion to find the sizes of the images, and after it to compare the outputs, which an example of
            zeros or an empty batch hardly tests.
        patch_size: pixels along every axis of the example, or along each of them.

    Raises:
        ValueError: the patch size is below 1, the network is of another kind or cannot be copied, the example is not
            finite, or the converted network differs.
    """
    smallest = patch_size if isinstance(patch_size, int) else min(patch_size)
    if smallest < 1:
        raise ValueError(f"patch_size must be at least 1, not {smallest}")
    _require_modules(network)
    if example.is_floating_point() and not example.isfinite().all():
        raise ValueError("the example must be finite: attention and convolution differ on other images")
    reasons, lost = dict(_ties(network)), dict(_lost_in_a_copy(network))
    network = _copy(network)
    training = {module: module.training for module in network.modules()}
    network.eval()
    names = _names_of_convolutions(network)
    sizes, expected = _image_sizes(network, {conv for conv in names if isinstance(conv, CONVOLUTIONS)}, example)
    replacements: dict[nn.Module, PatchAttention] = {}
    kept: dict[nn.Module, str] = {}
    for conv, own_names in names.items():
        reason = reason_not_convertible(conv) or next((reasons[name] for name in own_names if name in reasons), None)
        if reason is not None:
            kept[conv] = reason
            continue
        assert isinstance(conv, CONVOLUTIONS)
        try:
            patch = _patch_there(conv, sizes[conv], patch_size, example.shape)
        except ValueError as error:
            kept[conv] = str(error)
            continue
        # Done in eval mode, because a parametrised weight may change in training mode.
        replacements[conv] = convolution_as_attention(conv, patch).train(training[conv])
    network, faults = _put_what_works(network, names, replacements, example, expected)
    for module, mode in training.items():
        module.training = mode
    kept |= faults
    replaced = {conv: attention for conv, attention in replacements.items() if conv not in faults}
    for conv in filter(is_parametrized, replaced):
        lost |= dict.fromkeys(names[conv], "its parametrisation: attention has the weights that it gave in eval mode")
    modules = network.named_modules(remove_duplicate=False)
    pooling = {name: _NOT_LINEAR for name, module in modules if isinstance(module, MAX_POOLING)}
    return Conversion(
        network,
        {name: attention.num_heads for conv, attention in replaced.items() for name in names[conv]},
        {name: attention.patch for conv, attention in replaced.items() for name in names[conv]},
        {name: reason for conv, reason in kept.items() for name in names[conv]} | pooling,
        lost,
    )


def _require_modules(network: nn.Module) -> None:
    if not isinstance(network, nn.Module):
        raise ValueError(f"network must be a torch.nn.Module, not {type(network).__name__}")
    for name, module in network.named_modules():
        kind = "traced or scripted" if isinstance(module, torch.jit.ScriptModule) else ""
        kind = "a graph of torch.fx" if isinstance(module, GraphModule) else kind
        kind = "compiled" if _COMPILED in module._modules else kind
        if kind:
            raise ValueError(
                f"the network cannot be converted: {f'its part {name!r}' if name else 'it'} is {kind}; convert the "
                "network of Python modules first, and then trace, script, export or compile the result"
            )


def _copy(network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"the network cannot be copied: {one_line(error)}") from error


def _names_of_convolutions(network: nn.Module) -> dict[nn.Module, list[str]]:
    names: dict[nn.Module, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, _ConvNd):
            names.setdefault(module, []).append(name)
    return names


def _put_what_works(
    network: nn.Module, names: Names, replacements: Replacements, example: Tensor, expected: Sequence[Tensor]
) -> tuple[nn.Module, dict[nn.Module, str]]:
    """Puts attention in the places of convolutions, except where the network then has a fault.

    Returns:
        The network, and the faults by convolution.

    Raises:
        ValueError: the network has a fault with all attention that is without fault alone.
    """
    network = _put(network, names, replacements)
    if _fault_with(replacements.values(), network, example, expected) is None:
        return network, {}
    faults: dict[nn.Module, str] = {}
    for conv, attention in replacements.items():
        network = _put(network, names, {other: other for other in replacements} | {conv: attention})
        if (fault := _fault_with([attention], network, example, expected)) is not None:
            faults[conv] = f"with attention in its place {fault}"
    working = {conv: attention for conv, attention in replacements.items() if conv not in faults}
    network = _put(network, names, {conv: conv for conv in faults} | working)
    if (fault := _fault_with(working.values(), network, example, expected)) is not None:
        raise ValueError(
            f"the network cannot be converted: with attention in place of {len(working)} convolutions {fault}"
        )
    return network, faults


def _put(network: nn.Module, names: Names, modules: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Puts modules in the places of convolutions; returns the network, which may be such a place itself."""
    for conv, module in modules.items():
        for name in names[conv]:
            if name:
                network.set_submodule(name, module)
            else:
                network = module
    return network


def _fault_with(
    attention: Iterable[nn.Module], network: nn.Module, example: Tensor, expected: Sequence[Tensor]
) -> str | None:
    """The fault of a network with attention; attention that is never called is one."""
    idle = set(attention)
    hooks = [module.register_forward_hook(lambda module, *_: idle.discard(module)) for module in idle]
    try:
        fault = fault_of(network, example, expected)
    finally:
        for hook in hooks:
            hook.remove()
    return fault or ("the network still calls the convolution, which it has kept elsewhere" if idle else None)


def _ties(network: nn.Module) -> Iterator[tuple[str, str]]:
    """The names of convolutions whose parameters other modules have too, each with the reason to keep it."""
    parameters = list(network.named_parameters(remove_duplicate=False))
    modules = dict(network.named_modules(remove_duplicate=False))
    for name, conv in modules.items():
        if isinstance(conv, _ConvNd) and name:
            own = {id(parameter) for parameter in conv.parameters()}
            inside = tuple(f"{alias}." for alias, module in modules.items() if module is conv)
            shared = (other for other, p in parameters if id(p) in own and not other.startswith(inside))
            if (other := next(shared, None)) is not None:
                yield name, f"it shares a parameter with {other!r}, from which attention would come apart"


def _lost_in_a_copy(network: nn.Module) -> Iterator[tuple[str, str]]:
    """The names of parameters and modules with properties that a deep copy lacks."""
    owners: dict[int, str] = {}
    for name, parameter in network.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            yield name, "its hooks"
        if isinstance(parameter, UninitializedParameter) or not parameter.numel():
            continue
        owner = owners.setdefault(parameter.untyped_storage().data_ptr(), name)
        if owner != name:
            yield name, f"the memory that it shares with {owner!r}"
    for name, module in network.named_modules():
        if module._compiled_call_impl is not None:
            yield name, "its compilation"


@torch.no_grad()
def _image_sizes(
    network: nn.Module, convolutions: Iterable[Convolution], example: Tensor
) -> tuple[dict[nn.Module, Sizes], list[Tensor]]:
    """The sizes of each convolution's inputs, and the network's outputs."""
    sizes: dict[nn.Module, Sizes] = {conv: set() for conv in convolutions}

    def record(conv: nn.Module, args: tuple[Tensor, ...], named: Mapping[str, Tensor], _: Tensor) -> None:
        assert isinstance(conv, CONVOLUTIONS)
        images = args[0] if args else named["input"]
        sizes[conv].add(tuple(images.shape[-len(conv.kernel_size) :]))

    hooks = [conv.register_forward_hook(record, with_kwargs=True) for conv in sizes]
    try:
        outputs = outputs_of(network, example)
    finally:
        for hook in hooks:
            hook.remove()
    return sizes, outputs


def _patch_there(conv: Convolution, sizes: Sizes, patch_size: Size, whole: Sequence[int]) -> tuple[int, ...]:
    """Pixels along each axis of a patch of the images that a convolution is given.

    Args:
        sizes: of those images.
        patch_size: of the example.
        whole: the shape of the example; its last axes are those of the images.

    Raises:
        ValueError: the reason why there is none.
    """
    if not sizes:
        raise ValueError("not called on the example, so the size of its images is unknown")
    patch = per_axis(patch_size, len(conv.kernel_size))
    sides: list[int] = []
    for axis, (own, step) in enumerate(zip(patch, conv.stride, strict=True), start=-len(patch)):
        on_example = whole[axis] if -axis <= len(whole) else 0
        found = {_side(size[axis], step, own, on_example) for size in sizes}
        fitting = [side for side in found if side and all(size[axis] % side == 0 for size in sizes)]
        if not all(found) or not fitting:
            size = min(sizes, key=lambda size: bool(_side(size[axis], step, own, on_example)))
            what = f"its stride {conv.stride}" if size[axis] % step else f"patch size {patch_size}"
            raise ValueError(f"{what} does not divide its images of {by_axis(size)} pixels")
        sides.append(max(fitting))
    return tuple(sides)


def _side(pixels: int, stride: int, patch: int, on_example: int) -> int | None:
    """Pixels of a patch along one axis of an image, a multiple of the stride: those that keep the example's tokens, or
    else the largest part of them, if the image's side is a part or a multiple of the example's."""
    if pixels % stride:
        return None
    if on_example and on_example % patch == 0 and (on_example % pixels == 0 or pixels % on_example == 0):
        return pixels // math.gcd(on_example // patch, pixels // stride)
    side = math.lcm(patch, stride)
    return side if pixels % side == 0 else None
