"""Axes and metrics in words: headings of columns, values in rows, and names in captions."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cvit.analysis.statistics.studies import Study
from cvit.analysis.statistics.variants import base_scheme
from cvit.analysis.store.axes import FRACTION, INNER_DIM, NUM_HEADS, SCHEME
from cvit.init.schemes import REFERENCES
from cvit.parameters import AUTO, as_text
from cvit.vocabulary import noun_of

_HEADINGS = {SCHEME: "scheme", FRACTION: "training data", NUM_HEADS: "heads", INNER_DIM: "width"}
_IN_CAPTIONS = {FRACTION: "share of the training images", NUM_HEADS: "number of heads", INNER_DIM: "width of the heads"}


def in_words_of(studies: Sequence[Study], text: str) -> str:
    """The text about studies, which speaks of recordings instead of images if the data of all of them are sequences."""
    nouns = {noun_of(study.params.get("dimensions")) for study in studies}
    if nouns != {noun_of(1)}:
        return text
    text = re.sub(r"\b([Aa])n image\b", r"\1 image", text)
    return re.sub(r"\bimage(s?)\b", r"recording\1", text)


def heading(axis: str) -> str:
    """The heading of the axis's column in a table, such as `patch size`."""
    return _HEADINGS.get(axis, axis.replace("_", " "))


def in_caption(axis: str) -> str:
    """The axis in a caption, such as `number of heads`."""
    return _IN_CAPTIONS.get(axis, axis.replace("_", " "))


def value_text(axis: str, value: Any, head_dim: int | None = None) -> str:
    """A value in a column under the axis's heading.

    Args:
        head_dim: the width of a head if `inner_dim` is not set; None if it is unknown.
    """
    if axis == FRACTION:
        return fraction_text(value)
    if axis == SCHEME:
        return scheme_text(value)
    if axis == INNER_DIM:
        return f"inner width {value}" if value else f"head_dim {'fixed' if head_dim is None else head_dim}"
    return plain_text(value)


def label(axis: str, value: Any, head_dim: int | None = None) -> str:
    """A value with the name of its axis, such as `patch size 4`."""
    text = value_text(axis, value, head_dim)
    if axis in (FRACTION, INNER_DIM):
        return text
    if axis == NUM_HEADS:
        return heads_text(value)
    return f"{heading(axis)} {text}"


def texts(study: Study, place: Mapping[str, Any]) -> list[str]:
    """A place on the study's axes as cells of a table."""
    return [cell_text(study, axis, place[axis]) for axis in study.axes]


def cell_text(study: Study, axis: str, value: Any) -> str:
    """A value in a column of a study's table; a share of the images has their number, if it is known."""
    text = value_text(axis, value, study.head_dim)
    count = study.shares.num_images.get(value) if axis == FRACTION else None
    return text if count is None else f"{text} ({count:,})"


def labels(study: Study, place: Mapping[str, Any]) -> list[str]:
    """A place on the study's axes as words that include the names of the axes."""
    return [label(axis, place[axis], study.head_dim) for axis in study.axes]


def csv_value(value: Any) -> Any:
    """A parameter's value in CSV files: a number in full precision; `auto` if it is not set."""
    return AUTO if value is None else value


def metric_text(metric: str) -> str:
    """A metric in a sentence, such as `test accuracy`."""
    return metric.replace("/", " ").replace("_", " ")


def scheme_text(scheme: str) -> str:
    """The name of an init scheme; references are marked."""
    return f"{scheme} (reference)" if base_scheme(scheme) in REFERENCES else scheme


def heads_text(count: int) -> str:
    """A number of heads, such as `1 head` or `9 heads`."""
    return f"{count} head{'' if count == 1 else 's'}"


def fraction_text(fraction: float) -> str:
    """A share as a percentage, such as `0.5 %`."""
    return f"{100 * fraction:.10g} %"


def plain_text(value: Any) -> str:
    """A parameter's value as text, `auto` if it is not set; floats without the noise of their last digits."""
    return f"{value:.10g}" if isinstance(value, float) else as_text(value)


def joined(texts: Sequence[str]) -> str:
    """Texts as an enumeration, such as `a, b and c`."""
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last
