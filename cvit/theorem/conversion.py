"""Replaces the convolutions of a network by attention that computes the same."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from cvit.errors import one_line
from cvit.geometry import Grid, by_axis
from cvit.theorem.comparison import fault_of, outputs_of
from cvit.theorem.layer import (
    CONVOLUTIONS,
    Convolution,
    PatchAttention,
    convolution_as_attention,
    reason_not_convertible,
)

Sizes = set[Grid]
"""Pixels along each axis, for every size of image that a convolution has processed."""
Names = Mapping[nn.Module, Sequence[str]]
"""The qualified names of modules; a module may have several."""

Replacements = Mapping[nn.Module, PatchAttention]

_COMPILED = "_orig_mod"
"""The name of a network inside the one that `torch.compile` makes of it."""


@dataclass(frozen=True)
class Conversion:
    """A converted network.

    Attributes:
        network: the network with attention in place of convolutions.
        replaced: the number of heads for each convolution that was replaced, by qualified name.
        kept: the reason for each convolution that was kept, by qualified name. A convolution with two names appears
            under both, here and in `replaced`.
        lost: what the original has and the network lacks although its outputs are the same, by qualified name of the
            module or parameter, such as parametrisations and hooks of parameters.
    """

    network: nn.Module
    replaced: Mapping[str, int]
    kept: Mapping[str, str]
    lost: Mapping[str, str]


def convert(network: nn.Module, example: Tensor, patch_size: int) -> Conversion:
    """A copy of a network in which attention over patches replaces every convolution that it can compute exactly.

    The original stays as it is; the copy has its training modes. Strided and unpadded convolutions are kept, and so are
    convolutions of images that the patch size does not divide, whose parameters are shared, or that have hooks.

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
        patch_size: pixels along every axis.

    Raises:
        ValueError: the patch size is below 1, the network is of another kind or cannot be copied, the example is not
            finite, or the converted network differs.
    """
    if patch_size < 1:
        raise ValueError(f"patch_size must be at least 1, not {patch_size}")
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
        reason = reason or _reason_not_convertible_there(sizes[conv], patch_size)
        if reason is not None:
            kept[conv] = reason
            continue
        assert isinstance(conv, CONVOLUTIONS)
        # Done in eval mode, because a parametrised weight may change in training mode.
        replacements[conv] = convolution_as_attention(conv, patch_size).train(training[conv])
    network, faults = _put_what_works(network, names, replacements, example, expected)
    for module, mode in training.items():
        module.training = mode
    kept |= faults
    replaced = {conv: attention for conv, attention in replacements.items() if conv not in faults}
    for conv in filter(is_parametrized, replaced):
        lost |= dict.fromkeys(names[conv], "its parametrisation: attention has the weights that it gave in eval mode")
    return Conversion(
        network,
        {name: attention.num_heads for conv, attention in replaced.items() for name in names[conv]},
        {name: reason for conv, reason in kept.items() for name in names[conv]},
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
    """The sizes of each convolution's outputs, which with padding "same" are the sizes of its inputs; and the network's
    outputs."""
    sizes: dict[nn.Module, Sizes] = {conv: set() for conv in convolutions}

    def record(conv: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(conv, CONVOLUTIONS)
        sizes[conv].add(tuple(output.shape[-len(conv.kernel_size) :]))

    hooks = [conv.register_forward_hook(record) for conv in sizes]
    try:
        outputs = outputs_of(network, example)
    finally:
        for hook in hooks:
            hook.remove()
    return sizes, outputs


def _reason_not_convertible_there(sizes: Sizes, patch_size: int) -> str | None:
    if not sizes:
        return "not called on the example, so the size of its images is unknown"
    for size in sorted(sizes):
        if any(pixels % patch_size for pixels in size):
            return f"patch size {patch_size} does not divide its images of {by_axis(size)} pixels"
    return None
