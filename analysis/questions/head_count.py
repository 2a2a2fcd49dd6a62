"""The sweep head_count: accuracy by number of heads, where heads keep their width and where all together do."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from analysis.display.accuracy_tables import Column, Comparison, Layout
from analysis.display.wording import INNER_DIM, NUM_HEADS, SCHEME
from analysis.statistics.stats import Summary, paired_difference
from analysis.statistics.studies import Study
from cvit.config import THREE_BY_THREE


def nine_minus_fewer(study: Study) -> list[Summary]:
    """Accuracy with 9 heads less that with fewer, on the same seeds: a summary per width, number of heads and scheme.

    `num_heads` is the smaller number. Empty where the grid has no 9 heads or none fewer.
    """
    found = [
        replace(difference, axes={**difference.axes, NUM_HEADS: heads})
        for heads in study.values(NUM_HEADS)
        if heads < THREE_BY_THREE
        for difference in paired_difference(study.results, NUM_HEADS, THREE_BY_THREE, heads)
    ]
    return sorted(found, key=lambda cell: (study.row_of(cell), study.schemes.index(cell.axes[SCHEME])))


def _head_dim(study: Study, place: Mapping[str, Any]) -> tuple[float]:
    found = {trial["head_dim"] for trial in study.trials_at(place)}
    if not found:
        found = {place[INNER_DIM] // place[NUM_HEADS] if place[INNER_DIM] else study.head_dim or math.nan}
    return (next(iter(found)) if len(found) == 1 else math.nan,)


LAYOUT = Layout(
    axes=(INNER_DIM, NUM_HEADS, SCHEME),
    columns=(Column("head_dim", ("head_dim",), _head_dim),),
    comparisons=(
        Comparison(
            kind="nine_minus_fewer",
            heading="9 heads less these, with",
            summaries=nine_minus_fewer,
            title="9 heads less fewer, on the same seeds",
        ),
    ),
)
