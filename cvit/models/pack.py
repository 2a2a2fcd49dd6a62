"""Fused models: several models of one architecture as a single module, their parameters side by side in one matrix."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

_ALIGNMENT = 4
"""Parameters begin at multiples of so many numbers, 16 bytes, as fast matrix kernels require."""


@dataclass(frozen=True)
class _Place:
    """The columns of a member's row that hold one of its parameters."""

    name: str
    shape: torch.Size
    start: int

    @property
    def columns(self) -> slice:
        return slice(self.start, self.start + prod(self.shape))


class FusedModels:
    """The M models of a pack, of one architecture and on one device.

    Attributes:
        model: computes all members at once; every parameter is (M, ...), and so are images and logits.
        matrix: (M, P) float32, a row per member: the memory of the parameters of `model`. An optimiser that works on it
            needs a few large operations instead of hundreds of small ones.
        parameters: those of `model`, in the order of their columns in the matrix. To look them up by name takes 2 % of
            the step of a small model.
    """

    def __init__(self, model: nn.Module, size: int, device: torch.device) -> None:
        """Makes `size` members without values.

        Args:
            model: a model of the members' architecture; its values are not used.
        """
        self._places = list(_places(model))
        last = self._places[-1].columns.stop
        self.matrix = torch.zeros(size, last + -last % _ALIGNMENT, device=device)
        self.model = copy.deepcopy(model).to(device)
        for place in self._places:
            module, _, name = place.name.rpartition(".")
            setattr(self.model.get_submodule(module), name, nn.Parameter(self.values(self.matrix, place.name)))
        self.parameters = [self.model.get_parameter(place.name) for place in self._places]

    def __len__(self) -> int:
        return len(self.matrix)

    def values(self, matrix: Tensor, name: str) -> Tensor:
        """The part of a matrix (M, P) that belongs to a parameter: a view (M, ...)."""
        (place,) = (place for place in self._places if place.name == name)
        return matrix[:, place.columns].unflatten(1, place.shape)

    @torch.no_grad()
    def put(self, member: int, matrix: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Copies a member's tensors, by parameter name, into its row of a matrix (M, P)."""
        for place in self._places:
            matrix[member, place.columns] = tensors[place.name].to(matrix.device).flatten()

    def taken(self, matrix: Tensor) -> list[dict[str, Tensor]]:
        """The tensors of every member by parameter name, copied to the CPU; the inverse of `put`."""
        rows = matrix.detach().cpu()
        return [{p.name: row[p.columns].reshape(p.shape).clone() for p in self._places} for row in rows]

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """One matrix (M, P) from tensors (M, ...) of all parameters, in their order."""
        parts, end = [], 0
        for place, tensor in zip(self._places, tensors, strict=True):
            parts += [*self._gap(end, place.start), tensor.flatten(1)]
            end = place.columns.stop
        return torch.cat([*parts, *self._gap(end, self.matrix.shape[1])], dim=1)

    def _gap(self, start: int, end: int) -> list[Tensor]:
        """The zeros of these columns, if there are any."""
        return [self.matrix.new_zeros(len(self), end - start)] if end > start else []

    def mask(self, names: Sequence[str]) -> Tensor:
        """(1, P) bool: the columns of these parameters."""
        mask = torch.zeros(1, self.matrix.shape[1], dtype=torch.bool, device=self.matrix.device)
        for place in self._places:
            mask[:, place.columns] = place.name in names
        return mask


def _places(model: nn.Module) -> Iterator[_Place]:
    start = 0
    for name, parameter in model.named_parameters():
        start += -start % _ALIGNMENT
        yield _Place(name, parameter.shape, start)
        start += parameter.numel()
