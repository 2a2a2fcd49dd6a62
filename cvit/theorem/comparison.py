"""Runs a network on an example, and compares its outputs with those that it had before it was changed."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cvit.errors import one_line

_TF32_EPSILON = 2.0**-10
"""The precision of products of float32 on a GPU, where PyTorch may round their factors."""
_SEED = 0


@torch.no_grad()
def outputs_of(network: nn.Module, example: Tensor) -> list[Tensor]:
    """The tensors in the output of a network, in the order in which they stand there; random draws are the same at
    every call. The example is copied, because a network may work in place."""
    devices = [example.device] if example.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(_SEED)
        return list(_tensors_in(network(example.clone())))


def fault_of(network: nn.Module, example: Tensor, expected: Iterable[Tensor]) -> str | None:
    """The fault of a network that should have the expected outputs: an exception, or that they differ by more than
    rounding; None if it has none."""
    try:
        outputs = outputs_of(network, example)
    except torch.OutOfMemoryError:
        raise
    # Whatever a network raises means that it cannot be used as it is.
    except Exception as error:  # noqa: BLE001
        return f"the network fails: {type(error).__name__}: {one_line(error)}"
    expected = list(expected)
    if [output.shape for output in outputs] != [output.shape for output in expected]:
        return "the network's output has another shape"
    errors = [_error(*pair) for pair in zip(outputs, expected, strict=True) if pair[1].is_floating_point()]
    if errors and not max(errors) <= _tolerance(network, expected):
        return f"the network's output differs by {100 * max(errors):.2g} %"
    return None


def _tensors_in(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors_in(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors_in(value)
    elif dataclasses.is_dataclass(output):
        for field in dataclasses.fields(output):
            yield from _tensors_in(getattr(output, field.name))


def _error(output: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest finite value; infinite if other places are not finite."""
    output, expected = output.double(), expected.double()
    finite = expected.isfinite()
    if not torch.equal(finite, output.isfinite()):
        return math.inf
    if not finite.any():
        return 0.0
    scale = float(expected[finite].abs().max()) or 1.0
    return float((output[finite] - expected[finite]).abs().max()) / scale


def _tolerance(network: nn.Module, outputs: Iterable[Tensor]) -> float:
    """The largest error that may be rounding: the third root of the coarsest precision in use, since rounding grows
    from layer to layer."""
    tensors = [tensor for tensor in (*network.parameters(), *outputs) if tensor.is_floating_point()]
    epsilon = max((torch.finfo(tensor.dtype).eps for tensor in tensors), default=0.0)
    for device_type in {tensor.device.type for tensor in tensors}:
        if device_type == "cuda":
            epsilon = max(epsilon, _TF32_EPSILON)
        if torch.is_autocast_enabled(device_type):
            epsilon = max(epsilon, torch.finfo(torch.get_autocast_dtype(device_type)).eps)
    return epsilon ** (1 / 3)
