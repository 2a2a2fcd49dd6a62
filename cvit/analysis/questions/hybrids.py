"""The sweep hybrids: accuracy by the number of blocks, the last ones, that are attention."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from cvit.analysis.display.accuracy_tables import Comparison, Layout
from cvit.analysis.display.wording import fraction_text
from cvit.analysis.questions import POINTS, Claim, Question
from cvit.analysis.statistics.pairs import Family, differences, judged_family
from cvit.analysis.statistics.stats import Summary, paired_difference
from cvit.analysis.statistics.studies import BASELINE, TREATMENT, Study, gains_over
from cvit.analysis.store.axes import ATTENTION_BLOCKS, FRACTION, SCHEME
from cvit.init.schemes import REFERENCES

TWIN, RESNET = "convolution", "resnet"
Cell = dict[str, Any]


def num_blocks(study: Study, value: int | None) -> int:
    """The number of attention blocks that a value of the axis stands for: None for all blocks."""
    return _depth(study) if value is None else value


def _depth(study: Study) -> int:
    """The number of blocks, which all trials of the study share."""
    return next(row["depth"] for row in (study.params, *study.trials) if "depth" in row)


def everywhere(study: Study) -> list[int | None]:
    """The values of the axis, at most two, with which all blocks are attention."""
    return [value for value in study.values(ATTENTION_BLOCKS) if num_blocks(study, value) == _depth(study)]


def hybrids_minus_all(study: Study) -> list[Summary]:
    """Accuracy of each hybrid minus that of attention in all blocks, on the same seeds, by scheme."""
    results = [result for result in study.results if result.place[SCHEME] not in REFERENCES]
    summaries = [
        replace(difference, place={**difference.place, ATTENTION_BLOCKS: value})
        for value in _hybrid_values(study)
        for whole in everywhere(study)[:1]
        for difference in paired_difference(results, ATTENTION_BLOCKS, value, whole)
    ]
    return sorted(summaries, key=study.order_of)


def _hybrid_values(study: Study) -> list[int | None]:
    return [value for value in study.values(ATTENTION_BLOCKS) if value not in everywhere(study)]


def _less_attention_is_better(study: Study, scheme: str) -> Iterator[Family]:
    whole = everywhere(study)[:1]
    if scheme in study.schemes and whole:
        places = _places(study, _hybrid_values(study))
        yield _family(study, places, scheme, [(place | {ATTENTION_BLOCKS: whole[0]}, scheme) for place in places])


def _is_ahead_of(study: Study, other: str) -> Iterator[Family]:
    """Compares two phases with another scheme at every number of blocks; a reference is the same at all of them."""
    if {TREATMENT, other} <= set(study.schemes):
        places = _places(study, [*_hybrid_values(study), *everywhere(study)[:1]])
        yield _family(study, places, TREATMENT, [(place, other) for place in places])


def _family(study: Study, places: list[Cell], scheme: str, others: list[tuple[Cell, str]]) -> Family:
    """The verdicts on a scheme at all places, less another cell each."""
    gains = [
        differences(study, place | {SCHEME: scheme}, other | {SCHEME: of_scheme})
        for place, (other, of_scheme) in zip(places, others, strict=True)
    ]
    names = [f"{FRACTION}={p[FRACTION]},{ATTENTION_BLOCKS}={num_blocks(study, p[ATTENTION_BLOCKS])}" for p in places]
    return judged_family(names, gains, line=0.0)


def _places(study: Study, values: list[int | None]) -> list[Cell]:
    return [{FRACTION: share, ATTENTION_BLOCKS: value} for share in study.values(FRACTION) for value in values]


def _place_text(place: str) -> str:
    """The place of a claim in words, such as `5 %, last 2 blocks`."""
    values = dict(part.split("=") for part in place.split(","))
    blocks = values[ATTENTION_BLOCKS]
    return f"{fraction_text(float(values[FRACTION]))}, last {'block' if blocks == '1' else f'{blocks} blocks'}"


QUESTION = Question(
    order=45,
    axes=(FRACTION, ATTENTION_BLOCKS, SCHEME),
    layout=Layout(
        comparisons=(
            Comparison(
                kind="hybrid_minus_all_attention",
                heading="less all blocks, for",
                summaries=hybrids_minus_all,
                title="Attention in the last blocks less attention in all of them, on the same seeds",
            ),
            Comparison(
                kind="less_the_twin",
                heading="less the twin, for",
                summaries=partial(gains_over, baseline=TWIN),
                title="Less the twin alone, on the same seeds",
            ),
        ),
    ),
    caption="Test accuracy against the number of blocks, the last ones, that are attention; the blocks before them are "
    "convolutions. A panel per share of the training images. Dotted lines are references, which have no attention. "
    "Means over seeds with 95 % intervals.",
    claims=(
        Claim(
            order=130,
            name="hybrid_beats_attention",
            statement=f"With attention in the last blocks only, {TREATMENT} is more accurate than with attention in "
            "all",
            unit=POINTS,
            place_text=_place_text,
            judge=partial(_less_attention_is_better, scheme=TREATMENT),
        ),
        Claim(
            order=131,
            name="random_hybrid_beats_attention",
            statement=f"So is {BASELINE}, whose first blocks then are convolutions from random weights",
            unit=POINTS,
            place_text=_place_text,
            judge=partial(_less_attention_is_better, scheme=BASELINE),
        ),
        Claim(
            order=132,
            name="two_phases_pay_in_hybrids",
            statement=f"With this many blocks of attention, {TREATMENT} is more accurate than {BASELINE}",
            unit=POINTS,
            place_text=_place_text,
            judge=partial(_is_ahead_of, other=BASELINE),
        ),
        Claim(
            order=133,
            name="hybrid_beats_the_twin",
            statement=f"With this many blocks of attention, {TREATMENT} is more accurate than its twin, a convolution "
            "in all blocks",
            unit=POINTS,
            place_text=_place_text,
            judge=partial(_is_ahead_of, other=TWIN),
        ),
        Claim(
            order=134,
            name="hybrid_beats_resnet",
            statement=f"With this many blocks of attention, {TREATMENT} is more accurate than a ResNet of its size",
            unit=POINTS,
            place_text=_place_text,
            judge=partial(_is_ahead_of, other=RESNET),
        ),
    ),
)
