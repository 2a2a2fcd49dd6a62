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

from analysis.display.accuracy_tables import GENERAL_LAYOUT, Layout
from analysis.display.tables import Tables, general_tables
from analysis.statistics.pairs import Family
from analysis.statistics.studies import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = "points"
STEPS_SHARE = "% of the steps"
RELATIVE_ERROR = "relative error"
HEADS = "heads"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper that a sweep tests.

    Attributes:
        name: the name in claims.csv, where the place of the verdict follows it.
        statement: the claim in one sentence, without its full stop.
        unit: POINTS of accuracy or STEPS_SHARE, whose numbers are fractions, RELATIVE_ERROR, HEADS, or another one.
        judge: study → its verdicts, in families; the verdicts of a family are judged together.
        rule: whole sentences about how it is judged, if the common rule does not say so.
        order: the place among all claims; claims without one come last.
    """

    name: str
    statement: str
    unit: str
    judge: Callable[[Study], Iterable[Family]]
    rule: str = ""
    order: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Question:
    """The way a sweep is shown and judged.

    Attributes:
        axes: the axes, init scheme included, that its studies vary; empty for any axes.
        layout: the content of its tables of accuracies.
        tables: tables of its own, in place of those by the layout.
        winners: studies → a file with the winners of searches, as `cvit.settings` reads it; empty without a winner.
        caption: the text below its figure; empty for the general caption.
        curves: the metrics whose whole history its tables, figure or claims need.
        claims: the claims of the paper that it tests.
        order: the place in the report; sweeps without one come last.
    """

    axes: tuple[str, ...] = ()
    layout: Layout = GENERAL_LAYOUT
    tables: Tables | None = None
    winners: Callable[[Sequence[Study]], str] | None = None
    caption: str = ""
    curves: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    order: float = math.inf


def question_of(sweep: str) -> Question:
    """The question of a sweep; an empty one for a sweep without a file."""
    module = _module(__name__, sweep)
    return Question() if module is None else module.QUESTION


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
    module = _module(f"{__name__}.figures", sweep) or importlib.import_module("analysis.display.general_figure")
    return module.draw(studies)


def _module(package: str, name: str) -> ModuleType | None:
    """The module with a name in a package; None if there is no such file."""
    return importlib.import_module(f"{package}.{name}") if name in _modules_of(package) else None


@cache
def _modules_of(package: str) -> tuple[str, ...]:
    path = importlib.import_module(package).__path__
    return tuple(sorted(module.name for module in pkgutil.iter_modules(path) if not module.ispkg))
