"""Fits of an attention layer to convolutions: the errors of a study, by convolution and number of heads."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cvit import vocabulary as names
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import NUM_HEADS, sort_key
from cvit.tasks import parameters_of_task
from cvit.theorem.counts import Options, Padding, axes_of, general_kernel_heads

ROUNDING = 1e-9
"""An error below the bound by more than this contradicts the theorem; an error up to this is zero up to rounding."""
ZERO_ERROR = 1e-3
"""The largest distance from a convolution, relative to its norm, that counts as zero."""


class Case(NamedTuple):
    """A convolution, the patches that it is seen from, and the windows of the attention that is fitted to it."""

    kernel_size: int
    patch_size: int
    dimensions: int = 2
    stride: int = 1
    dilation: int = 1
    causal: bool = False
    window_size: int | None = None

    @property
    def options(self) -> Options:
        """The options of the convolution."""
        padding: Padding = "causal" if self.causal else "same"
        return {"stride": self.stride, "dilation": self.dilation, "padding": padding}

    @property
    def heads(self) -> int:
        """The number of heads that the theorem counts: one for each offset, in windows for each that fits into one."""
        axes = axes_of((self.kernel_size,) * self.dimensions, self.patch_size, **self.options)
        reach = math.inf if self.window_size is None else self.window_size
        return math.prod(sum(abs(offset) < reach for offset in axis.offsets) for axis in axes)

    @property
    def place(self) -> str:
        """The case as the place of a verdict, such as `K3-P2`, or `K3-P2-1D-S2-causal`."""
        parts = [f"K{self.kernel_size}", f"P{self.patch_size}"]
        changed = self.changed
        parts += [f"{self.dimensions}D"] if "dimensions" in changed else []
        parts += [f"S{self.stride}"] if "stride" in changed else []
        parts += [f"D{self.dilation}"] if "dilation" in changed else []
        parts += ["causal"] if self.causal else []
        return "-".join([*parts, *([f"W{self.window_size}"] if "window_size" in changed else [])])

    @property
    def changed(self) -> tuple[str, ...]:
        """The parameters beside the kernel's and the patches' size that differ from the paper's convolution."""
        return tuple(name for name, default in self._field_defaults.items() if getattr(self, name) != default)

    def is_general(self, channels: int, image_size: int) -> bool:
        """True if a general kernel needs as many heads as are counted: an even-sized one, or one on few channels or a
        small image, needs fewer."""
        reach = min(image_size // self.patch_size, self.window_size or image_size)
        sizes = (self.kernel_size, self.patch_size, channels, channels, reach, self.dimensions)
        return general_kernel_heads(*sizes, **self.options) == self.heads


@dataclass(frozen=True)
class Fit:
    """The fits of one case and number of heads; numbers are NaN if no restart has finished."""

    case: Case
    num_heads: int
    bound: float
    reached: float
    restarts: int

    @property
    def contradicts(self) -> bool:
        """True if the reached error lies below the bound."""
        return self.reached < self.bound - ROUNDING


Cases = Mapping[Case, Mapping[int, Fit]]
"""Fits by case and number of heads, ascending."""


def fits(study: Study) -> list[Fit]:
    """The fits of a study, one per case and number of heads, ascending; dimensions vary fastest, then causality."""
    restarts: dict[tuple[Case, int], list[tuple[float, float]]] = {}
    parameters = parameters_of_task(names.EXPRESSIVITY)
    defaults = {name: parameters[name].default for name in Case._fields}
    for result in study.results:
        values = {**defaults, **study.params, **result.place}
        case = Case(*(values[name] for name in Case._fields))
        errors = restarts.setdefault((case, result.place[NUM_HEADS]), [])
        if result.trial and math.isfinite(result.value):
            errors.append((result.value, result.trial[names.EXPRESSIVITY_BOUND]))
    all_fits = []
    for (case, num_heads), errors in sorted(restarts.items(), key=lambda item: _order(*item[0])):
        reached, bound = min(errors, default=(math.nan, math.nan))
        all_fits.append(Fit(case, num_heads, bound, reached, len(errors)))
    return all_fits


def _order(case: Case, num_heads: int) -> tuple[object, ...]:
    further = (case.window_size, case.dilation, case.stride, case.causal, case.dimensions)
    return (case.kernel_size, case.patch_size, *map(sort_key, further), num_heads)


def by_case(all_fits: Iterable[Fit]) -> Cases:
    """The fits by case."""
    cases: dict[Case, dict[int, Fit]] = {}
    for fit in all_fits:
        cases.setdefault(fit.case, {})[fit.num_heads] = fit
    return cases


def further_parameters(cases: Iterable[Case]) -> tuple[str, ...]:
    """The parameters, beside the kernel's and the patches' size, in which any of the cases differs from the paper's
    convolution."""
    changed = {name for case in cases for name in case.changed}
    return tuple(name for name in Case._fields if name in changed)


def heads_between(by_heads: Mapping[int, Fit]) -> tuple[float, float]:
    """The least number of heads that the bound allows, and the least number that reached the convolution."""
    impossible = [heads for heads, fit in by_heads.items() if fit.bound > ZERO_ERROR]
    reached = [heads for heads, fit in by_heads.items() if fit.reached <= ZERO_ERROR]
    return max(impossible, default=0) + 1, min(reached, default=math.inf)


def least_restarts(*of_cases: Mapping[int, Fit]) -> int:
    """The least number of restarts of the fits of some cases."""
    return min(fit.restarts for by_heads in of_cases for fit in by_heads.values())


def restarts_text(all_fits: Sequence[Fit]) -> str:
    """The number of restarts that have finished, in words."""
    least, most = min(fit.restarts for fit in all_fits), max(fit.restarts for fit in all_fits)
    return f"{most} in every case" if least == most else f"{least} to {most}, depending on the case"
