"""The tables of a sweep as four functions: those of its question, or the general ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from cvit.analysis.display import accuracy_tables, metric_tables
from cvit.analysis.display.accuracy_tables import Layout
from cvit.analysis.statistics.studies import Study
from cvit.vocabulary import TEST_ACCURACY


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The tables of a sweep, as texts.

    Attributes:
        markdown, csv, latex: all studies of the sweep, most recent first.
        answer: one study in a few lines for the terminal.
    """

    markdown: Callable[[Sequence[Study]], str]
    csv: Callable[[Sequence[Study]], str]
    latex: Callable[[Sequence[Study]], str]
    answer: Callable[[Study], str]


def general_tables(studies: Sequence[Study], layout: Layout) -> Tables:
    """The general tables: by a layout if the answer is test accuracy, else plain tables of the metric of the answer."""
    if any(study.metric != TEST_ACCURACY for study in studies):
        return Tables(
            markdown=metric_tables.markdown,
            csv=metric_tables.csv,
            latex=metric_tables.latex_tables,
            answer=metric_tables.answer,
        )
    return Tables(
        markdown=partial(accuracy_tables.markdown, layout=layout),
        csv=partial(accuracy_tables.csv, layout=layout),
        latex=partial(accuracy_tables.latex_tables, layout=layout),
        answer=partial(accuracy_tables.answer, layout=layout),
    )
