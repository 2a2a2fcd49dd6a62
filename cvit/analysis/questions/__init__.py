"""The questions: how the analysis treats each sweep. A question is a file in this folder with the name of its sweep.

The file holds `QUESTION`, and everything in it is optional. A sweep without a file gets general tables, a general
figure and a general caption. A figure of its own is a file of the same name in `figures/` with a function `draw`.
"""

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

from cvit.analysis.display.accuracy_tables import GENERAL_LAYOUT, Layout
from cvit.analysis.display.sentences import gain_sentence
from cvit.analysis.display.tables import Tables, general_tables
from cvit.analysis.display.wording import in_words_of
from cvit.analysis.statistics.pairs import Family
from cvit.analysis.statistics.studies import Study, read_studies, require_axes
from cvit.analysis.statistics.variants import with_variants
from cvit.analysis.statistics.verdicts import LEAST_PAIRS
from cvit.analysis.store.frames import Frames

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = "points"
STEPS_SHARE = "% of the steps"
FLOPS_SHARE = "% of the FLOPs"
SECONDS_SHARE = "% of the seconds"
PAIRED_UNITS = (POINTS, STEPS_SHARE, FLOPS_SHARE, SECONDS_SHARE)
"""The units of claims about differences on the same seeds, whose numbers are fractions; they have one rule."""
RELATIVE_ERROR = "relative error"
HEADS = "heads"
DECADES = "decades of the learning rate"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper that a sweep tests.

    Attributes:
        name: the name in claims.csv, where the place of the verdict follows it.
        statement: the claim in one sentence, without its full stop.
        unit: one of PAIRED_UNITS, RELATIVE_ERROR, HEADS, DECADES, or another one.
        judge: study → its verdicts, in families; the verdicts of a family are judged together.
        rule: whole sentences about how it is judged, if the common rule does not say so.
        least_n: the smallest n, of pairs or of what `rule` says, with which it can be judged.
        place_text: the place of a verdict → the place in words.
        order: the place among all claims; claims without one come last.
    """

    name: str
    statement: str
    unit: str
    judge: Callable[[Study], Iterable[Family]]
    rule: str = ""
    least_n: int = LEAST_PAIRS
    place_text: Callable[[str], str] = str
    order: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Question:
    """The way a sweep is shown and judged.

    Attributes:
        axes: the axes, init scheme included, that its studies vary, in the order of the layout's tables; empty for any.
        further_axes: axes that some of its studies vary beside these.
        variants: further axes that its studies may vary, whose values become part of the scheme's name.
        layout: the content of its tables of accuracies.
        tables: tables of its own, in place of those by the layout.
        winners: studies → a file with the winners of searches, as `cvit.settings` reads it; empty without a winner.
        caption: the text below its figure; empty for the general caption.
        curves: the metrics whose whole history its tables, figure or claims need.
        claims: the claims of the paper that it tests.
        sentence: study → a sentence with its answer in numbers; by default, one with the paired gain.
        order: the place in the report; sweeps without one come last.
    """

    axes: tuple[str, ...] = ()
    further_axes: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    layout: Layout = GENERAL_LAYOUT
    tables: Tables | None = None
    winners: Callable[[Sequence[Study]], str] | None = None
    caption: str = ""
    curves: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    sentence: Callable[[Study], str] = gain_sentence
    order: float = math.inf


def question_of(sweep: str) -> Question:
    """The question of a sweep; an empty one for a sweep without a file."""
    module = _module(__name__, sweep)
    return Question() if module is None else module.QUESTION


def studies_of(frames: Frames, sweep: str) -> list[Study]:
    """The studies of a sweep as its question shows them, most recent first.

    Raises:
        TableError: a study varies other axes than the tables of its sweep show.
    """
    question = question_of(sweep)
    studies = [arranged(study, question) for study in read_studies(frames, sweep)]
    require_axes(studies, question.axes, question.further_axes)
    return studies


def arranged(study: Study, question: Question) -> Study:
    """A study with the variants of its question as schemes, and with its axes in the question's order if it has no
    others."""
    study = with_variants(study, question.variants)
    has_others = not {*study.axes} <= {*question.axes}
    return study if question.tables or has_others else study.with_axes_like(question.axes)


def all_questions() -> dict[str, Question]:
    """The questions of all files, by sweep."""
    return {sweep: question_of(sweep) for sweep in _modules_of(__name__)}


def curves_of(sweep: str) -> tuple[str, ...]:
    """The metrics of a sweep whose whole history is needed."""
    return question_of(sweep).curves


def tables_of(sweep: str, studies: Sequence[Study]) -> Tables:
    """The tables of a sweep: those of its question, else the general ones by its layout."""
    question = question_of(sweep)
    return question.tables or general_tables(studies, question.layout)


def draw_figure(sweep: str, studies: Sequence[Study]) -> "Figure":
    """The figure of a sweep: that of its file in `figures/`, else the general one."""
    module = _module(f"{__name__}.figures", sweep) or importlib.import_module("cvit.analysis.display.general_figure")
    figure: Figure = module.draw(studies)
    for text in figure.findobj(lambda artist: hasattr(artist, "get_text")):
        shown: str = text.get_text()  # pyright: ignore[reportAttributeAccessIssue]
        if (words := in_words_of(studies, shown)) != shown:
            text.set_text(words)  # pyright: ignore[reportAttributeAccessIssue]
    return figure


def _module(package: str, name: str) -> ModuleType | None:
    """The module with a name in a package; None if there is no such file."""
    return importlib.import_module(f"{package}.{name}") if name in _modules_of(package) else None


@cache
def _modules_of(package: str) -> tuple[str, ...]:
    path = importlib.import_module(package).__path__
    return tuple(sorted(module.name for module in pkgutil.iter_modules(path) if not module.ispkg))
