"""Shares of the training images as numbers of images. Shares that are the same images are one cell of a table.

A class gives at least one image, so small shares of few images may be the same images. A sweep trains them once; an
earlier request, or another one, may have trained them under another share.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cvit.analysis.statistics.stats import Result
from cvit.analysis.store.axes import FRACTION


@dataclass(frozen=True)
class Shares:
    """The shares of the images in a study, as far as its trials say how many images they are.

    Attributes:
        num_images: the number of training images by share.
        merged: by share, the other shares that are the same images.
    """

    num_images: Mapping[float, int]
    merged: Mapping[float, Sequence[float]]

    def count_at(self, place: Mapping[str, Any]) -> int | None:
        """The number of training images at a place on the axes; None if it is unknown or varies."""
        if FRACTION in place:
            return self.num_images.get(place[FRACTION])
        return next(iter(self.num_images.values())) if len(self.num_images) == 1 else None

    def notes(self) -> list[str]:
        """Sentences about shares that are the same images, for the foot of a table."""
        return [
            f"{', '.join(map(_percent, others))} of the images are the same {self.num_images[share]} images as "
            f"{_percent(share)}."
            for share, others in self.merged.items()
        ]


def shares_of(trials: Iterable[Mapping[str, Any]]) -> Shares:
    """The shares of the images in the trials of a study."""
    counts: dict[float, set[int | None]] = {}
    for trial in trials:
        if FRACTION in trial:
            counts.setdefault(trial[FRACTION], set()).add(trial.get("train_images"))
    known = {share: next(iter(numbers)) for share, numbers in counts.items() if len(numbers) == 1}
    num_images = {share: number for share, number in sorted(known.items()) if number is not None}
    largest = {number: share for share, number in num_images.items()}
    merged: dict[float, list[float]] = {}
    for share, number in num_images.items():
        if share != largest[number]:
            merged.setdefault(largest[number], []).append(share)
    return Shares(num_images, merged)


def one_per_subset(results: Sequence[Result], shares: Shares) -> list[Result]:
    """The results with one share for the same images, in some order. If its own trial has no result, that of another
    share of the same images counts."""
    name_of = {other: share for share, others in shares.merged.items() for other in others}
    if not name_of or not all(FRACTION in result.place for result in results):
        return list(results)
    by_place: dict[tuple[Any, ...], Result] = {}
    for result in sorted(results, key=lambda result: result.place[FRACTION] in name_of):
        share = result.place[FRACTION]
        named = replace(result, place={**result.place, FRACTION: name_of.get(share, share)})
        key = (*named.place.values(), named.seed)
        if key not in by_place or (by_place[key].missing and not named.missing):
            by_place[key] = named
    return list(by_place.values())


def _percent(share: float) -> str:
    return f"{100 * share:.10g} %"
