"""The sweep expressivity: the error of H heads fitted to a convolution, by gradient descent and by theorem 2's bound.

Errors are distances of the two operators relative to the convolution's Frobenius norm. `reached` is the least error
over the finished restarts; none can lie below `bound`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass

from cvit import vocabulary as names
from cvit.analysis.display.csv_text import csv_text
from cvit.analysis.display.notes import notes
from cvit.analysis.display.settings import heading_lines, listed, settings_lines
from cvit.analysis.display.tables import Tables
from cvit.analysis.display.text import error_text, latex, latex_table, markdown_name, markdown_table
from cvit.analysis.display.titles import named_title
from cvit.analysis.display.wording import heads_text
from cvit.analysis.questions import HEADS, RELATIVE_ERROR, Claim, Question
from cvit.analysis.statistics.fits import ROUNDING, ZERO_ERROR
from cvit.analysis.statistics.pairs import Family
from cvit.analysis.statistics.studies import Study
from cvit.analysis.statistics.verdicts import FAILS, HOLDS, UNDECIDED, Judged
from cvit.analysis.store.axes import KERNEL_SIZE, NUM_HEADS, PATCH_SIZE
from cvit.theorem.counts import general_kernel_heads, heads_needed

AXES = (KERNEL_SIZE, PATCH_SIZE, NUM_HEADS)
CSV_COLUMNS = (*AXES, "bound", "reached", "restarts")

_RULES = (
    "Distance of an attention layer with H heads from the convolution of a random K×K kernel on P×P patches, relative "
    "to the convolution's norm. Bound: theorem 2, no layer comes closer. Reached: the least error over the restarts of "
    "gradient descent that have finished. A dash: nothing to take it from."
)
_OVERVIEW_HEAD = ("K", "P", "theorem's heads", "bound, one fewer", "reached, one fewer", "bound", "reached")


@dataclass(frozen=True)
class Fit:
    """The fits of one kernel size, patch size and number of heads; numbers are NaN if no restart has finished."""

    kernel_size: int
    patch_size: int
    num_heads: int
    bound: float
    reached: float
    restarts: int

    @property
    def contradicts(self) -> bool:
        """True if the reached error lies below the bound."""
        return self.reached < self.bound - ROUNDING


Cases = Mapping[tuple[int, int], Mapping[int, Fit]]
"""Fits by (kernel size, patch size) and number of heads, ascending."""


def fits(study: Study) -> list[Fit]:
    """The fits of a study, one per kernel size, patch size and number of heads, ascending."""
    restarts: dict[tuple[int, int, int], list[tuple[float, float]]] = {}
    for result in study.results:
        kernel_size, patch_size, num_heads = (result.place[axis] for axis in AXES)
        errors = restarts.setdefault((kernel_size, patch_size, num_heads), [])
        if result.trial and math.isfinite(result.value):
            errors.append((result.value, result.trial[names.EXPRESSIVITY_BOUND]))
    all_fits = []
    for place, errors in sorted(restarts.items()):
        reached, bound = min(errors, default=(math.nan, math.nan))
        all_fits.append(Fit(*place, bound, reached, len(errors)))
    return all_fits


def by_case(all_fits: Iterable[Fit]) -> Cases:
    """The fits by kernel and patch size."""
    cases: dict[tuple[int, int], dict[int, Fit]] = {}
    for fit in all_fits:
        cases.setdefault((fit.kernel_size, fit.patch_size), {})[fit.num_heads] = fit
    return cases


def csv(studies: Sequence[Study]) -> str:
    """The fits of the most recent study as CSV with the columns CSV_COLUMNS, in full precision."""
    rows = [dict(zip(CSV_COLUMNS, astuple(fit), strict=True)) for fit in fits(studies[0])]
    return csv_text(rows, CSV_COLUMNS)


def markdown(studies: Sequence[Study]) -> str:
    """All studies as Markdown, a section each."""
    return "\n".join([f"# {markdown_name(studies[0].sweep)}\n\n{_RULES}\n", *map(_markdown_section, studies)])


def latex_tables(studies: Sequence[Study]) -> str:
    """All studies as LaTeX, a `table` each (package booktabs)."""
    return "\n".join(
        latex_table(
            f"Distance from the convolution of a K×K kernel on P×P patches, {named_title(study)}: theorem 2's bound "
            "and the least error reached by gradient descent, with one head fewer than theorem 1 counts and with as "
            "many, relative to the convolution's norm.",
            study.label,
            _OVERVIEW_HEAD,
            [[*row[:3], *map(_latex_number, row[3:])] for row in _overview(by_case(fits(study)))],
            left_columns=0,
            notes=notes(study),
        )
        for study in studies
    )


def answer(study: Study) -> str:
    """The study in a few lines for the terminal: per kernel and patch size, the fits near the theorem's count."""
    all_fits = fits(study)
    lines = markdown_table(_OVERVIEW_HEAD, _overview(by_case(all_fits)))
    lines += ["", "Error relative to the convolution: theorem 2's bound, and the least over restarts."]
    lines += contradictions(all_fits)
    if study.missing:
        lines += [f"Missing: {len(study.missing)} of {len(study.results)} trials."]
    return "\n".join(lines)


def sentence(study: Study) -> str:
    """The errors with the theorem's number of heads and with one fewer, in a sentence; empty without fits at both."""
    pairs = [
        (fewer.reached, enough.reached)
        for case, by_heads in by_case(fits(study)).items()
        if (fewer := by_heads.get(heads_needed(*case) - 1)) and (enough := by_heads.get(heads_needed(*case)))
        if fewer.restarts and enough.restarts
    ]
    if not pairs:
        return ""
    least, most = min(fewer for fewer, _ in pairs), max(enough for _, enough in pairs)
    cases = f"{len(pairs)} pairs of kernel and patch size" if len(pairs) > 1 else "one kernel and patch size"
    return (
        f"Over {cases}, the theorem's number of heads reaches the convolution up to a relative error of "
        f"{error_text(most)}; with one head fewer, the error is at least {error_text(least)}."
    )


def contradictions(all_fits: Iterable[Fit]) -> list[str]:
    """A line per fit that lies below the bound."""
    return [
        f"VIOLATION: K = {fit.kernel_size}, P = {fit.patch_size}, {heads_text(fit.num_heads)}: reached "
        f"{error_text(fit.reached)} lies below the bound {error_text(fit.bound)}."
        for fit in all_fits
        if fit.contradicts
    ]


def _markdown_section(study: Study) -> str:
    all_fits = fits(study)
    lines = heading_lines(study)
    for line in contradictions(all_fits):
        lines += [f"**{line}**", ""]
    for (kernel_size, patch_size), by_heads in by_case(all_fits).items():
        count = heads_needed(kernel_size, patch_size)
        rows = []
        for heads, fit in by_heads.items():
            mark = " (theorem)" if heads == count else ""
            flag = " **below the bound**" if fit.contradicts else ""
            rows.append([f"{heads}{mark}", error_text(fit.bound), error_text(fit.reached) + flag])
        lines += [f"### K = {kernel_size}, P = {patch_size}", "", *markdown_table(["H", "bound", "reached"], rows)]
        lines += ["", _sentence(count, by_heads), ""]
    lines += [f"Restarts that have finished: {_restarts_text(all_fits)}."]
    lines += listed(study, "Missing", study.missing)
    return "\n".join([*lines, *settings_lines(study), ""])


def _sentence(count: int, by_heads: Mapping[int, Fit]) -> str:
    parts = [
        f"with {heads_text(heads)} the bound is {error_text(fit.bound)} and {error_text(fit.reached)} was reached"
        for heads in (count - 1, count)
        if (fit := by_heads.get(heads)) is not None
    ]
    return f"The theorem counts {heads_text(count)}: {', '.join(parts) or 'beyond this grid'}."


def _restarts_text(all_fits: Sequence[Fit]) -> str:
    least, most = min(fit.restarts for fit in all_fits), max(fit.restarts for fit in all_fits)
    return f"{most} in every case" if least == most else f"{least} to {most}, depending on the case"


def _overview(cases: Cases) -> list[list[str]]:
    """The rows below _OVERVIEW_HEAD."""
    rows = []
    for (kernel_size, patch_size), by_heads in cases.items():
        count = heads_needed(kernel_size, patch_size)
        row = [str(kernel_size), str(patch_size), str(count)]
        for heads in (count - 1, count):
            fit = by_heads.get(heads)
            row += ["-", "-"] if fit is None else [error_text(fit.bound), error_text(fit.reached)]
        rows.append(row)
    return rows


def _latex_number(text: str) -> str:
    """A number such as `2.13e-01` in LaTeX, with a power of ten."""
    if text == "-":
        return "--"
    mantissa, _, exponent = text.partition("e")
    return f"${mantissa} \\cdot 10^{{{int(exponent)}}}$" if exponent else latex(text)


def _heads_enough(study: Study) -> Iterator[Family]:
    for case, by_heads in by_case(fits(study)).items():
        if (fit := by_heads.get(heads_needed(*case))) is not None:
            zero = HOLDS if fit.reached <= ZERO_ERROR else FAILS if fit.bound > ZERO_ERROR else UNDECIDED
            yield [(_case(*case), _judged(fit, zero))]


def _heads_necessary(study: Study) -> Iterator[Family]:
    """Judges the cases in which a general kernel needs the theorem's number. An even-sized kernel, or one on few
    channels or on a small image, needs fewer, which agrees with theorem 2."""
    for case, by_heads in by_case(fits(study)).items():
        is_general = _general_heads(study, *case) == heads_needed(*case)
        if is_general and (fit := by_heads.get(heads_needed(*case) - 1)) is not None:
            above = FAILS if fit.reached <= ZERO_ERROR else HOLDS if fit.bound > ZERO_ERROR else UNDECIDED
            yield [(_case(*case), _judged(fit, above))]


def _patches_save_heads(study: Study) -> Iterator[Family]:
    """Judges the number of heads on pixels minus that on patches, for the cases in which the theorem saves heads."""
    cases = by_case(fits(study))
    for (kernel_size, patch_size), on_patches in cases.items():
        on_pixels = cases.get((kernel_size, 1))
        if on_pixels is None or heads_needed(kernel_size, patch_size) == heads_needed(kernel_size, 1):
            continue
        (least, reached), (least_on_patches, reached_on_patches) = _needed(on_pixels), _needed(on_patches)
        low, high = least - reached_on_patches, reached - least_on_patches
        verdict = HOLDS if low > 0 else FAILS if high <= 0 else UNDECIDED
        restarts = min(fit.restarts for fit in (*on_pixels.values(), *on_patches.values()))
        saved = reached - reached_on_patches
        yield [(_case(kernel_size, patch_size), Judged(verdict, saved, low, high, restarts))]


def _judged(fit: Fit, verdict: str) -> Judged:
    verdict = FAILS if fit.contradicts else verdict if fit.restarts else UNDECIDED
    return Judged(verdict, fit.reached, fit.bound, fit.reached, fit.restarts)


def _general_heads(study: Study, kernel_size: int, patch_size: int) -> int:
    fit = next(iter(study.trials), study.params)
    channels, grid_size = fit["fit_channels"], fit["fit_image_size"] // patch_size
    return general_kernel_heads(kernel_size, patch_size, channels, channels, grid_size)


def _case(kernel_size: int, patch_size: int) -> str:
    return f"K{kernel_size}-P{patch_size}"


def _place_text(place: str) -> str:
    """The place of a claim in words, such as `K = 3, P = 1`."""
    return ", ".join(f"{part[0]} = {part[1:]}" for part in place.split("-"))


def _needed(by_heads: Mapping[int, Fit]) -> tuple[float, float]:
    """The least number of heads that the bound allows, and the least number that reached the convolution."""
    impossible = [heads for heads, fit in by_heads.items() if fit.bound > ZERO_ERROR]
    reached = [heads for heads, fit in by_heads.items() if fit.reached <= ZERO_ERROR]
    return max(impossible, default=0) + 1, min(reached, default=math.inf)


QUESTION = Question(
    order=30,
    axes=AXES,
    sentence=sentence,
    tables=Tables(markdown=markdown, csv=csv, latex=latex_tables, answer=answer),
    caption="Distance from a convolution against the number of heads: theorem 2's bound and the least error "
    "that gradient descent reached. A vertical line marks the number of heads of theorem 1.",
    claims=(
        Claim(
            order=10,
            name="heads_enough",
            statement="The theorem's number of heads expresses the convolution: the error reached is zero",
            unit=RELATIVE_ERROR,
            place_text=_place_text,
            least_n=1,
            judge=_heads_enough,
            rule="Heads that a convolution needs: no seeds are compared. The interval runs from theorem 2's bound, "
            "which nothing can undercut, to the error that was reached, relative to the convolution's norm; up to "
            f"{ZERO_ERROR:g} counts as zero, and what lies below the bound refutes it. Here n counts restarts.",
        ),
        Claim(
            order=20,
            name="heads_necessary",
            statement="One head fewer does not express it, where a general kernel needs as many: the error stays "
            "clearly above zero",
            unit=RELATIVE_ERROR,
            place_text=_place_text,
            least_n=1,
            judge=_heads_necessary,
        ),
        Claim(
            order=30,
            name="patches_save_heads",
            statement="On patches a convolution needs fewer heads than on pixels",
            unit=HEADS,
            place_text=_place_text,
            least_n=1,
            judge=_patches_save_heads,
        ),
    ),
)
