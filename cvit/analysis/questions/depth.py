"""The sweep depth: the error of L layers of H heads fitted to a convolution, beside the exact frontier (H + 1)^L ≥ R.

R is the number of maps that a general kernel has, and each layer has a skip connection. Errors are
distances of the two operators relative to the convolution's Frobenius norm. `reached` is the least error over the
finished restarts; none can lie below `bound`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cvit import vocabulary as names
from cvit.analysis.display.csv_text import csv_text
from cvit.analysis.display.notes import notes
from cvit.analysis.display.settings import heading_lines, listed, settings_lines
from cvit.analysis.display.tables import Tables
from cvit.analysis.display.text import error_text, latex, latex_table, markdown_name, markdown_table
from cvit.analysis.display.titles import named_title
from cvit.analysis.display.wording import heads_text, joined
from cvit.analysis.questions import HEADS, RELATIVE_ERROR, Claim, Question
from cvit.analysis.statistics.fits import ROUNDING, ZERO_ERROR
from cvit.analysis.statistics.pairs import Family
from cvit.analysis.statistics.studies import Study
from cvit.analysis.statistics.verdicts import FAILS, HOLDS, UNDECIDED, Judged
from cvit.analysis.store.axes import DEPTH, NUM_HEADS
from cvit.tasks import task_named
from cvit.theorem.counts import Padding, general_kernel_heads, heads_by_layer, maps_of

_DEFAULTS = task_named(names.DEPTH).parameters
_HEAD = (
    "convolution",
    "maps",
    "layers",
    "frontier",
    "reached with",
    "bound, one fewer",
    "reached, one fewer",
    "reached",
)
_RULES = (
    "Distance of L layers of attention with H heads each, and a skip connection around each, from the convolution of a "
    "random kernel, relative to the convolution's norm. Frontier: the least H with (H + 1)^L maps or more; no layers "
    "with fewer heads are exact. Reached with: the least H with which gradient descent came closer than "
    f"{ZERO_ERROR:g}. Bound: no layers come closer. Reached: the least error over the restarts that have finished. "
    "A dash: nothing to take it from."
)


class Case(NamedTuple):
    """A convolution, by the parameters of its fits."""

    kernel_size: int
    patch_size: int
    dimensions: int
    padding: Padding
    fit_image_size: int
    fit_channels: int

    @property
    def maps(self) -> int:
        """R, the number of maps that a general kernel has on these images."""
        kernel_size, patch_size, axes, padding, image_size, channels = self
        grid = image_size // patch_size
        return general_kernel_heads(kernel_size, patch_size, channels, channels, grid, axes, padding=padding)

    def frontier(self, layers: int) -> int:
        """The least heads of each of L layers that have R maps between them."""
        return max(heads_by_layer(self.maps, layers))

    @property
    def place(self) -> str:
        """The case as the place of a verdict, such as `K9-P1-1D-causal`, with what differs from the defaults."""
        parts = [f"K{self.kernel_size}", f"P{self.patch_size}", f"{self.dimensions}D", self.padding]
        for letter, name in (("N", "fit_image_size"), ("C", "fit_channels")):
            if getattr(self, name) != _DEFAULTS[name].default:
                parts.append(f"{letter}{getattr(self, name)}")
        return "-".join(parts)

    @property
    def text(self) -> str:
        """The case in words, such as `K = 9, P = 1, 1-D, causal`."""
        return _place_text(self.place)


@dataclass(frozen=True)
class Fit:
    """The fits of one case, number of layers and of heads a layer; numbers are NaN if no restart has finished."""

    bound: float
    reached: float
    restarts: int

    @property
    def contradicts(self) -> bool:
        """True if the reached error lies below the bound."""
        return self.reached < self.bound - ROUNDING

    @property
    def is_exact(self) -> bool:
        """True if the convolution was reached."""
        return self.reached <= ZERO_ERROR


CSV_COLUMNS = (*Case._fields, DEPTH, NUM_HEADS, "bound", "reached", "restarts")

Fits = Mapping[int, Mapping[int, Fit]]
"""The fits of a case by number of layers and of heads a layer, ascending."""


def fits_by_case(study: Study) -> dict[Case, Fits]:
    """The fits of a study, by case, layers and heads a layer, ascending."""
    restarts: dict[tuple[Case, int, int], list[tuple[float, float]]] = {}
    for result in study.results:
        values = {**study.params, **(result.trial or {}), **result.place}
        case = Case(*(values[name] for name in Case._fields))
        errors = restarts.setdefault((case, values[DEPTH], values[NUM_HEADS]), [])
        if result.trial and math.isfinite(result.value):
            errors.append((result.value, result.trial[names.EXPRESSIVITY_BOUND]))
    cases: dict[Case, dict[int, dict[int, Fit]]] = {}
    for (case, layers, heads), errors in sorted(restarts.items()):
        reached, bound = min(errors, default=(math.nan, math.nan))
        cases.setdefault(case, {}).setdefault(layers, {})[heads] = Fit(bound, reached, len(errors))
    return dict(cases)


def least_exact(by_heads: Mapping[int, Fit]) -> int | None:
    """The least number of heads a layer with which the convolution was reached."""
    return min((heads for heads, fit in by_heads.items() if fit.is_exact), default=None)


def csv(studies: Sequence[Study]) -> str:
    """The fits of the most recent study as CSV with the columns CSV_COLUMNS, in full precision."""
    rows = [
        dict(zip(CSV_COLUMNS, (*case, layers, heads, fit.bound, fit.reached, fit.restarts), strict=True))
        for case, layers, heads, fit in _all_fits(fits_by_case(studies[0]))
    ]
    return csv_text(rows, CSV_COLUMNS)


def markdown(studies: Sequence[Study]) -> str:
    """All studies as Markdown, a section each."""
    return "\n".join([f"# {markdown_name(studies[0].sweep)}\n\n{_RULES}\n", *map(_markdown_section, studies)])


def latex_tables(studies: Sequence[Study]) -> str:
    """All studies as LaTeX, a `table` each (package booktabs)."""
    return "\n".join(
        latex_table(
            f"Layers of attention against the convolution that they are fitted to, {named_title(study)}: the least "
            "heads a layer by the exact frontier, and with which gradient descent reached it; errors relative to the "
            "convolution's norm, with one head a layer fewer than the frontier and with as many.",
            study.label,
            _HEAD,
            [list(map(latex, row)) for row in _overview(fits_by_case(study))],
            left_columns=1,
            notes=notes(study),
        )
        for study in studies
    )


def answer(study: Study) -> str:
    """The study in a few lines for the terminal: per case and number of layers, the fits at the frontier."""
    cases = fits_by_case(study)
    lines = markdown_table(_HEAD, _overview(cases))
    lines += [
        "",
        "Frontier: the least heads a layer for all maps. Errors: relative, the least over restarts.",
    ]
    lines += contradictions(cases)
    if study.missing:
        lines += [f"Missing: {len(study.missing)} of {len(study.results)} trials."]
    return "\n".join(lines)


def sentence(study: Study) -> str:
    """The layers and heads that reached the convolution of most maps, in a sentence; empty if none did."""
    for case, by_layers in sorted(fits_by_case(study).items(), key=lambda item: -item[0].maps):
        ways = [f"{layers} × {heads}" for layers, fits in by_layers.items() if (heads := least_exact(fits)) is not None]
        if ways:
            return (
                f"A convolution of {case.maps} maps ({case.text}) was reached by layers × heads of "
                f"{joined(ways)}, up to a relative error of {ZERO_ERROR:g}."
            )
    return ""


def contradictions(cases: Mapping[Case, Fits]) -> list[str]:
    """A line per fit that lies below the bound."""
    return [
        f"VIOLATION: {case.text}, {_layers_text(layers)} of {heads_text(heads)}: reached {error_text(fit.reached)} "
        f"lies below the bound {error_text(fit.bound)}."
        for case, layers, heads, fit in _all_fits(cases)
        if fit.contradicts
    ]


def _all_fits(cases: Mapping[Case, Fits]) -> Iterator[tuple[Case, int, int, Fit]]:
    for case, by_layers in cases.items():
        for layers, by_heads in by_layers.items():
            for heads, fit in by_heads.items():
                yield case, layers, heads, fit


def _markdown_section(study: Study) -> str:
    cases = fits_by_case(study)
    lines = heading_lines(study)
    for line in contradictions(cases):
        lines += [f"**{line}**", ""]
    lines += [*markdown_table(_HEAD, _overview(cases)), ""]
    for case, by_layers in cases.items():
        rows = []
        for layers, by_heads in by_layers.items():
            for heads, fit in by_heads.items():
                mark = " (frontier)" if heads == case.frontier(layers) else ""
                flag = " **below the bound**" if fit.contradicts else ""
                terms = str(maps_of((heads,) * layers))
                rows.append(
                    [str(layers), f"{heads}{mark}", terms, error_text(fit.bound), error_text(fit.reached) + flag]
                )
        lines += [f"### {case.text}", "", f"A general kernel has {case.maps} maps.", ""]
        lines += [*markdown_table(["L", "H", "(H + 1)^L", "bound", "reached"], rows), ""]
    counts = [fit.restarts for *_, fit in _all_fits(cases)]
    least, most = min(counts), max(counts)
    several = f"{least} to {most}, depending on the case"
    lines += [f"Restarts that have finished: {f'{most} in every case' if least == most else several}."]
    lines += listed(study, "Missing", study.missing)
    return "\n".join([*lines, *settings_lines(study), ""])


def _overview(cases: Mapping[Case, Fits]) -> list[list[str]]:
    """The rows below _HEAD."""
    rows = []
    for case, by_layers in cases.items():
        for layers, by_heads in by_layers.items():
            frontier, exact = case.frontier(layers), least_exact(by_heads)
            row = [case.text, str(case.maps), str(layers), str(frontier), "-" if exact is None else str(exact)]
            fewer, enough = by_heads.get(frontier - 1), by_heads.get(frontier)
            row += ["-", "-"] if fewer is None else [error_text(fewer.bound), error_text(fewer.reached)]
            rows.append([*row, "-" if enough is None else error_text(enough.reached)])
    return rows


def _layers_text(layers: int) -> str:
    return f"{layers} layer{'' if layers == 1 else 's'}"


def _at_the_frontier(study: Study, fewer: int = 0) -> Iterator[tuple[str, Fit]]:
    """The place of a verdict and the fit with so many heads fewer than the frontier, for each number of layers."""
    for case, by_layers in fits_by_case(study).items():
        for layers, by_heads in by_layers.items():
            if (fit := by_heads.get(case.frontier(layers) - fewer)) is not None:
                yield f"{case.place}-L{layers}", fit


def _frontier_enough(study: Study) -> Iterator[Family]:
    for place, fit in _at_the_frontier(study):
        zero = HOLDS if fit.is_exact else FAILS if fit.bound > ZERO_ERROR else UNDECIDED
        yield [(place, _judged(fit, zero))]


def _frontier_necessary(study: Study) -> Iterator[Family]:
    for place, fit in _at_the_frontier(study, fewer=1):
        above = FAILS if fit.is_exact else HOLDS if fit.bound > ZERO_ERROR else UNDECIDED
        yield [(place, _judged(fit, above))]


def _layers_save_heads(study: Study) -> Iterator[Family]:
    """Judges the heads in one layer minus those in L layers together, where the frontier says that L layers save."""
    for case, by_layers in fits_by_case(study).items():
        one_layer = by_layers.get(1, {})
        for layers, by_heads in by_layers.items():
            if not one_layer or layers * case.frontier(layers) >= case.frontier(1):
                continue
            (least, reached), (least_deep, reached_deep) = _needed(one_layer), _needed(by_heads)
            low, high = least - layers * reached_deep, reached - layers * least_deep
            verdict = HOLDS if low > 0 else FAILS if high <= 0 else UNDECIDED
            restarts = min(fit.restarts for fit in (*one_layer.values(), *by_heads.values()))
            saved = reached - layers * reached_deep
            yield [(f"{case.place}-L{layers}", Judged(verdict, saved, low, high, restarts))]


def _needed(by_heads: Mapping[int, Fit]) -> tuple[float, float]:
    """The least number of heads a layer that the bound allows, and the least number that reached the convolution."""
    impossible = [heads for heads, fit in by_heads.items() if fit.bound > ZERO_ERROR]
    exact = least_exact(by_heads)
    return max(impossible, default=0) + 1, math.inf if exact is None else exact


def _judged(fit: Fit, verdict: str) -> Judged:
    verdict = FAILS if fit.contradicts else verdict if fit.restarts else UNDECIDED
    return Judged(verdict, fit.reached, fit.bound, fit.reached, fit.restarts)


def _place_text(place: str) -> str:
    """The place of a claim in words, such as `K = 9, P = 1, 1-D, causal, 2 layers`."""
    return ", ".join(map(_part_text, place.split("-")))


def _part_text(part: str) -> str:
    if part[0] in "KPNC":
        return f"{part[0]} = {part[1:]}"
    if part[0] == "L":
        return _layers_text(int(part[1:]))
    return f"{part[:-1]}-D" if part.endswith("D") else part


QUESTION = Question(
    order=35,
    sentence=sentence,
    tables=Tables(markdown=markdown, csv=csv, latex=latex_tables, answer=answer),
    caption="Heads a layer against layers: where gradient descent reached a convolution, and where it did not. The "
    "line is the exact frontier, (H + 1)^L = number of maps of the convolution; below it no layers are exact.",
    claims=(
        Claim(
            order=33,
            name="frontier_enough",
            statement="Layers at the frontier, with the least heads a layer for all maps between them, express the "
            "convolution: the error reached is zero",
            unit=RELATIVE_ERROR,
            place_text=_place_text,
            least_n=1,
            judge=_frontier_enough,
        ),
        Claim(
            order=35,
            name="frontier_necessary",
            statement="With one head a layer fewer no layers express it: the error stays clearly above zero",
            unit=RELATIVE_ERROR,
            place_text=_place_text,
            least_n=1,
            judge=_frontier_necessary,
        ),
        Claim(
            order=37,
            name="layers_save_heads",
            statement="Several layers need fewer heads in all than one",
            unit=HEADS,
            place_text=_place_text,
            least_n=1,
            judge=_layers_save_heads,
        ),
    ),
)
