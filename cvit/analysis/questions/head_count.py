"""The sweep head_count: accuracy by number of heads, at a fixed width of a head and of all heads together."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from cvit.analysis.display.accuracy_tables import Column, Comparison, Layout
from cvit.analysis.display.wording import label
from cvit.analysis.questions import POINTS, Claim, Question
from cvit.analysis.statistics.pairs import Family, differences, judged_family
from cvit.analysis.statistics.stats import Summary, paired_difference
from cvit.analysis.statistics.studies import TREATMENT, Study
from cvit.analysis.statistics.verdicts import MARGIN
from cvit.analysis.store.axes import INNER_DIM, NUM_HEADS, SCHEME


def nine_minus_fewer(study: Study) -> list[Summary]:
    """Accuracy with 9 heads, on sequences 3, minus that with fewer, on the same seeds: a summary per width, number of
    heads and scheme.

    `num_heads` is the smaller number. Empty if the grid lacks 9 heads (3) or a smaller number.
    """
    summaries = [
        replace(difference, place={**difference.place, NUM_HEADS: heads})
        for heads in study.values(NUM_HEADS)
        if heads < study.needed_heads
        for difference in paired_difference(study.results, NUM_HEADS, study.needed_heads, heads)
    ]
    return sorted(summaries, key=study.order_of)


def _head_dim(study: Study, place: Mapping[str, Any]) -> tuple[float]:
    widths = {trial["head_dim"] for trial in study.trials_at(place)}
    if not widths:
        widths = {place[INNER_DIM] // place[NUM_HEADS] if place[INNER_DIM] else study.head_dim or math.nan}
    return (next(iter(widths)) if len(widths) == 1 else math.nan,)


def _nine_beat_fewer(study: Study) -> Iterator[Family]:
    yield from _nine_against(study, lambda heads: heads < study.needed_heads, line=0.0)


def _nine_match_more(study: Study) -> Iterator[Family]:
    yield from _nine_against(study, lambda heads: heads > study.needed_heads, line=-MARGIN)


def _nine_against(study: Study, is_other: Callable[[int], bool], line: float) -> Iterator[Family]:
    """Judges accuracy with 9 heads, on sequences 3, minus that with each other number, at all widths together."""
    if study.needed_heads not in study.values(NUM_HEADS) or TREATMENT not in study.schemes:
        return
    others = [heads for heads in study.values(NUM_HEADS) if is_other(heads)]
    places = [{INNER_DIM: width, NUM_HEADS: heads} for width in study.values(INNER_DIM) for heads in others]
    family = [
        differences(study, place | {NUM_HEADS: study.needed_heads, SCHEME: TREATMENT}, place | {SCHEME: TREATMENT})
        for place in places
    ]
    names_of_places = [",".join(f"{axis}={value}" for axis, value in place.items()) for place in places]
    yield judged_family(names_of_places, family, line)


def _place_text(place: str) -> str:
    """The place of a claim in words, such as `1 head, inner width 144`."""
    values = dict(part.split("=") for part in place.split(","))
    return ", ".join(label(axis, int(values[axis])) for axis in (NUM_HEADS, INNER_DIM))


QUESTION = Question(
    order=40,
    axes=(INNER_DIM, NUM_HEADS, SCHEME),
    layout=Layout(
        columns=(Column("head_dim", ("head_dim",), _head_dim),),
        comparisons=(
            Comparison(
                kind="nine_minus_fewer",
                heading="{heads} heads less these, with",
                summaries=nine_minus_fewer,
                title="{heads} heads less fewer, on the same seeds",
            ),
        ),
    ),
    caption="Test accuracy against the number of heads, at a fixed width of a head and of all heads together. "
    "Means over seeds with 95 % intervals.",
    claims=(
        Claim(
            order=40,
            name="nine_beat_fewer",
            statement=f"With 9 heads (sequences: 3) {TREATMENT} is more accurate than with fewer",
            unit=POINTS,
            place_text=_place_text,
            judge=_nine_beat_fewer,
        ),
        Claim(
            order=50,
            name="nine_match_more",
            statement=f"With 9 heads (sequences: 3) {TREATMENT} is no less accurate than with more",
            unit=POINTS,
            place_text=_place_text,
            judge=_nine_match_more,
        ),
    ),
)
