"""The sweep expressivity: the error of H heads fitted to a convolution, by gradient descent and by theorem 2's bound.

Errors are distances of the two operators relative to the convolution's Frobenius norm. `reached` is the least error
over the finished restarts; none can lie below `bound`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cvit.analysis.display.csv_text import csv_text
from cvit.analysis.display.notes import notes
from cvit.analysis.display.settings import heading_lines, listed, settings_lines
from cvit.analysis.display.tables import Tables
from cvit.analysis.display.text import error_text, latex, latex_table, markdown_name, markdown_table
from cvit.analysis.display.titles import named_title
from cvit.analysis.display.wording import csv_value, heading, heads_text, plain_text
from cvit.analysis.questions import HEADS, RELATIVE_ERROR, Claim, Question
from cvit.analysis.statistics.fits import (
    ZERO_ERROR,
    Case,
    Cases,
    Fit,
    by_case,
    fits,
    further_parameters,
    heads_between,
    least_restarts,
    restarts_text,
)
from cvit.analysis.statistics.pairs import Family
from cvit.analysis.statistics.studies import Study
from cvit.analysis.statistics.verdicts import FAILS, HOLDS, UNDECIDED, Judged
from cvit.analysis.store.axes import KERNEL_SIZE, NUM_HEADS, PATCH_SIZE

AXES = (KERNEL_SIZE, PATCH_SIZE, NUM_HEADS)
FURTHER_AXES = tuple(Case._field_defaults)
"""The axes that a study may have beside them."""

_RULES = (
    "Distance of an attention layer with H heads from the convolution of a random K×K kernel on P×P patches, relative "
    "to the convolution's norm. Bound: theorem 2, no layer comes closer. Reached: the least error over the restarts of "
    "gradient descent that have finished. A dash: nothing to take it from."
)
_ERRORS_HEAD = ("theorem's heads", "bound, one fewer", "reached, one fewer", "bound", "reached")


def csv(studies: Sequence[Study]) -> str:
    """The fits of the most recent study as CSV, in full precision: kernel and patch size, further parameters of the
    convolution where it has any, number of heads, bound, reached error and finished restarts."""
    all_fits = fits(studies[0])
    places = (KERNEL_SIZE, PATCH_SIZE, *further_parameters(fit.case for fit in all_fits))
    rows = [
        {name: csv_value(getattr(fit.case, name)) for name in places}
        | {NUM_HEADS: fit.num_heads, "bound": fit.bound, "reached": fit.reached, "restarts": fit.restarts}
        for fit in all_fits
    ]
    return csv_text(rows, (*places, NUM_HEADS, "bound", "reached", "restarts"))


def markdown(studies: Sequence[Study]) -> str:
    """All studies as Markdown, a section each."""
    return "\n".join([f"# {markdown_name(studies[0].sweep)}\n\n{_RULES}\n", *map(_markdown_section, studies)])


def latex_tables(studies: Sequence[Study]) -> str:
    """All studies as LaTeX, a `table` each (package booktabs)."""
    tables = []
    for study in studies:
        head, rows = _overview(by_case(fits(study)))
        num_places = len(head) - len(_ERRORS_HEAD) + 1
        tables.append(
            latex_table(
                f"Distance from the convolution of a K×K kernel on P×P patches, {named_title(study)}: theorem 2's "
                "bound and the least error reached by gradient descent, with one head fewer than theorem 1 counts and "
                "with as many, relative to the convolution's norm.",
                study.label,
                head,
                [[*map(latex, row[:num_places]), *map(_latex_number, row[num_places:])] for row in rows],
                left_columns=0,
                notes=notes(study),
            )
        )
    return "\n".join(tables)


def answer(study: Study) -> str:
    """The study in a few lines for the terminal: per case, the fits near the theorem's count."""
    all_fits = fits(study)
    lines = markdown_table(*_overview(by_case(all_fits)))
    lines += ["", "Error relative to the convolution: theorem 2's bound, and the least over restarts."]
    lines += contradictions(all_fits)
    if study.missing:
        lines += [f"Missing: {len(study.missing)} of {len(study.results)} trials."]
    return "\n".join(lines)


def sentence(study: Study) -> str:
    """The errors with the theorem's number of heads and with one fewer, in a sentence; empty without fits at both.
    Windows are left out, since a layer in them does not reach the convolution with any number of heads."""
    pairs = {
        case: (fewer.reached, enough.reached)
        for case, by_heads in by_case(fits(study)).items()
        if case.window_size is None
        if (fewer := by_heads.get(case.heads - 1)) and (enough := by_heads.get(case.heads))
        if fewer.restarts and enough.restarts
    }
    if not pairs:
        return ""
    least, most = min(fewer for fewer, _ in pairs.values()), max(enough for _, enough in pairs.values())
    one, several = "one kernel and patch size", f"{len(pairs)} pairs of kernel and patch size"
    if further_parameters(pairs):
        one, several = "one convolution", f"{len(pairs)} convolutions"
    return (
        f"Over {several if len(pairs) > 1 else one}, the theorem's number of heads reaches the convolution up to a "
        f"relative error of {error_text(most)}; with one head fewer, the error is at least {error_text(least)}."
    )


def contradictions(all_fits: Iterable[Fit]) -> list[str]:
    """A line per fit that lies below the bound."""
    return [
        f"VIOLATION: {case_text(fit.case)}, {heads_text(fit.num_heads)}: reached {error_text(fit.reached)} lies below "
        f"the bound {error_text(fit.bound)}."
        for fit in all_fits
        if fit.contradicts
    ]


def case_text(case: Case, among: Iterable[Case] = ()) -> str:
    """A case in words, such as `K = 3, P = 1`, or `K = 3, P = 2, 1-D, stride 2`; 2-D is named among others."""
    kernel, patch, *others = map(_part_text, case.place.split("-"))
    is_named = case.dimensions == Case(1, 1).dimensions and any(c.dimensions != case.dimensions for c in among)
    return ", ".join([kernel, patch, *([f"{case.dimensions}-D"] if is_named else []), *others])


def place_text(place: str) -> str:
    """The place of a claim in words, as `case_text`."""
    return ", ".join(map(_part_text, place.split("-")))


def _part_text(part: str) -> str:
    words = {"S": "stride", "D": "dilation", "W": "windows of"}
    if part[0].isdigit():
        return f"{part[0]}-D"
    if part[1:].isdigit():
        return f"{words[part[0]]} {part[1:]}" if part[0] in words else f"{part[0]} = {part[1:]}"
    return part


def _markdown_section(study: Study) -> str:
    all_fits = fits(study)
    lines = heading_lines(study)
    for line in contradictions(all_fits):
        lines += [f"**{line}**", ""]
    cases = by_case(all_fits)
    for case, by_heads in cases.items():
        count = case.heads
        rows = []
        for heads, fit in by_heads.items():
            mark = " (theorem)" if heads == count else ""
            flag = " **below the bound**" if fit.contradicts else ""
            rows.append([f"{heads}{mark}", error_text(fit.bound), error_text(fit.reached) + flag])
        lines += [f"### {case_text(case, cases)}", "", *markdown_table(["H", "bound", "reached"], rows)]
        lines += ["", _sentence(count, by_heads), ""]
    lines += [f"Restarts that have finished: {restarts_text(all_fits)}."]
    lines += listed(study, "Missing", study.missing)
    return "\n".join([*lines, *settings_lines(study, in_tables=FURTHER_AXES), ""])


def _sentence(count: int, by_heads: Mapping[int, Fit]) -> str:
    parts = [
        f"with {heads_text(heads)} the bound is {error_text(fit.bound)} and {error_text(fit.reached)} was reached"
        for heads in (count - 1, count)
        if (fit := by_heads.get(heads)) is not None
    ]
    return f"The theorem counts {heads_text(count)}: {', '.join(parts) or 'beyond this grid'}."


def _overview(cases: Cases) -> tuple[list[str], list[list[str]]]:
    """The heads and the rows of the table of all cases."""
    further = further_parameters(cases)
    rows = []
    for case, by_heads in cases.items():
        row = [plain_text(getattr(case, name)) for name in (KERNEL_SIZE, PATCH_SIZE, *further)]
        row += [str(case.heads)]
        for heads in (case.heads - 1, case.heads):
            fit = by_heads.get(heads)
            row += ["-", "-"] if fit is None else [error_text(fit.bound), error_text(fit.reached)]
        rows.append(row)
    return ["K", "P", *map(heading, further), *_ERRORS_HEAD], rows


def _latex_number(text: str) -> str:
    """A number such as `2.13e-01` in LaTeX, with a power of ten."""
    if text == "-":
        return "--"
    mantissa, _, exponent = text.partition("e")
    return f"${mantissa} \\cdot 10^{{{int(exponent)}}}$" if exponent else latex(text)


def _heads_enough(study: Study) -> Iterator[Family]:
    for case, by_heads in _without_windows(study).items():
        if (fit := by_heads.get(case.heads)) is not None:
            zero = HOLDS if fit.reached <= ZERO_ERROR else FAILS if fit.bound > ZERO_ERROR else UNDECIDED
            yield [(case.place, _judged(fit, zero))]


def _heads_necessary(study: Study) -> Iterator[Family]:
    """Judges the cases in which a general kernel needs the theorem's number. An even-sized kernel, or one on few
    channels or on a small image, needs fewer, which agrees with theorem 2."""
    for case, by_heads in _without_windows(study).items():
        if _is_general(study, case) and (fit := by_heads.get(case.heads - 1)) is not None:
            above = FAILS if fit.reached <= ZERO_ERROR else HOLDS if fit.bound > ZERO_ERROR else UNDECIDED
            yield [(case.place, _judged(fit, above))]


def _patches_save_heads(study: Study) -> Iterator[Family]:
    """Judges the number of heads on pixels minus that on patches, for the cases in which the theorem saves heads."""
    yield from _saved(study, patch_size=1)


def _strides_save_heads(study: Study) -> Iterator[Family]:
    """Judges the number of heads without stride minus that with one, where the theorem saves heads."""
    yield from _saved(study, stride=1)


def _causal_kernels_save_heads(study: Study) -> Iterator[Family]:
    """Judges the number of heads of a kernel that reaches both ways minus that of a causal one, where the theorem saves
    heads."""
    yield from _saved(study, causal=False)


def _saved(study: Study, **reference: Any) -> Iterator[Family]:
    cases = _without_windows(study)
    for case, by_heads in cases.items():
        other = case._replace(**reference)
        if other not in cases or other.heads == case.heads:
            continue
        (least, reached), (least_here, reached_here) = heads_between(cases[other]), heads_between(by_heads)
        low, high = least - reached_here, reached - least_here
        verdict = HOLDS if low > 0 else FAILS if high <= 0 else UNDECIDED
        restarts = least_restarts(by_heads, cases[other])
        yield [(case.place, Judged(verdict, reached - reached_here, low, high, restarts))]


def _dilation_adds_no_heads(study: Study) -> Iterator[Family]:
    """Judges the number of taps minus that of heads, for dilations by whole patches."""
    for case, by_heads in _without_windows(study).items():
        taps = case.kernel_size**case.dimensions
        if case.dilation == 1 or case.heads != taps or case.dilation % case.patch_size:
            continue
        least, reached = heads_between(by_heads)
        verdict = HOLDS if reached <= taps else FAILS if least > taps else UNDECIDED
        spared = Judged(verdict, taps - reached, taps - reached, taps - least, least_restarts(by_heads))
        yield [(case.place, spared)]


def _dimensions_multiply_heads(study: Study) -> Iterator[Family]:
    """Judges the number of heads in d dimensions minus the d-th power of that in one, where a general kernel needs what
    the theorem counts."""
    cases = _without_windows(study)
    for case, by_heads in cases.items():
        along_axis = case._replace(dimensions=1)
        if case.dimensions == 1 or along_axis not in cases:
            continue
        if not (_is_general(study, case) and _is_general(study, along_axis)):
            continue
        (least, reached), (least_along, reached_along) = heads_between(by_heads), heads_between(cases[along_axis])
        low, high = least - reached_along**case.dimensions, reached - least_along**case.dimensions
        verdict = HOLDS if low == high == 0 else FAILS if low > 0 or high < 0 else UNDECIDED
        restarts = least_restarts(by_heads, cases[along_axis])
        yield [(case.place, Judged(verdict, reached - reached_along**case.dimensions, low, high, restarts))]


def _windows_lose_what_crosses(study: Study) -> Iterator[Family]:
    """Judges the fits with a head for each offset: their error is the energy that crosses windows, below which no fit
    with more heads comes either."""
    for case, by_heads in by_case(fits(study)).items():
        if case.window_size is None or (fit := by_heads.get(case.heads)) is None:
            continue
        more = [other for heads, other in by_heads.items() if heads >= case.heads]
        met = HOLDS if fit.reached - fit.bound <= ZERO_ERROR else UNDECIDED
        yield [(case.place, _judged(fit, FAILS if any(other.contradicts for other in more) else met))]


def _judged(fit: Fit, verdict: str) -> Judged:
    verdict = FAILS if fit.contradicts else verdict if fit.restarts else UNDECIDED
    return Judged(verdict, fit.reached, fit.bound, fit.reached, fit.restarts)


def _without_windows(study: Study) -> Cases:
    """The cases in which a layer may attend to all patches: in windows none reaches the convolution."""
    return {case: by_heads for case, by_heads in by_case(fits(study)).items() if case.window_size is None}


def _is_general(study: Study, case: Case) -> bool:
    """True if a general kernel of the study needs the number of heads that the theorem counts."""
    fit = next(iter(study.trials), study.params)
    return case.is_general(fit["fit_channels"], fit["fit_image_size"])


QUESTION = Question(
    order=30,
    axes=AXES,
    further_axes=FURTHER_AXES,
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
            place_text=place_text,
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
            place_text=place_text,
            least_n=1,
            judge=_heads_necessary,
        ),
        Claim(
            order=30,
            name="patches_save_heads",
            statement="On patches a convolution needs fewer heads than on pixels",
            unit=HEADS,
            place_text=place_text,
            least_n=1,
            judge=_patches_save_heads,
        ),
        Claim(
            order=31,
            name="dimensions_multiply_heads",
            statement="In d dimensions a convolution needs the d-th power of its heads in one dimension",
            unit=HEADS,
            place_text=place_text,
            least_n=1,
            judge=_dimensions_multiply_heads,
        ),
        Claim(
            order=32,
            name="causal_kernels_save_heads",
            statement="A causal kernel needs fewer heads than one that reaches both ways",
            unit=HEADS,
            place_text=place_text,
            least_n=1,
            judge=_causal_kernels_save_heads,
        ),
        Claim(
            order=33,
            name="strides_save_heads",
            statement="With a stride a convolution needs fewer heads than without",
            unit=HEADS,
            place_text=place_text,
            least_n=1,
            judge=_strides_save_heads,
        ),
        Claim(
            order=34,
            name="dilation_adds_no_heads",
            statement="A dilation by whole patches needs no more heads than the kernel has taps, whatever it is",
            unit=HEADS,
            place_text=place_text,
            least_n=1,
            judge=_dilation_adds_no_heads,
        ),
        Claim(
            order=35,
            name="windows_lose_what_crosses",
            statement="A layer in windows loses the energy that crosses them with any number of heads, and no more",
            unit=RELATIVE_ERROR,
            place_text=place_text,
            least_n=1,
            judge=_windows_lose_what_crosses,
        ),
    ),
)
