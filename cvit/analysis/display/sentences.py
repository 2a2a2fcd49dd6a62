"""Sentences that answer a study's question in numbers."""

from cvit.analysis.display.text import interval, percent
from cvit.analysis.display.wording import joined, labels
from cvit.analysis.statistics.stats import Estimate, Summary
from cvit.analysis.statistics.studies import GAIN, Study
from cvit.vocabulary import TEST_ACCURACY

_MOST_NUMBERS = 4
"""The largest number of differences that a sentence names one by one."""


def gain_sentence(study: Study) -> str:
    """The paired gain at each place, or the largest and the smallest where there are many; empty without a gain."""
    gains = [cell for cell in study.gain if cell.estimate.n] if study.metric == TEST_ACCURACY else []
    if not gains:
        return ""
    if len(gains) <= _MOST_NUMBERS:
        numbers = [f"{points_text(gain.estimate)}{_at(study, gain)}" for gain in gains]
        return f"{GAIN} on the same seeds: {joined(numbers)}."
    gains.sort(key=lambda gain: gain.estimate.mean)
    least, most = (f"{points_text(gain.estimate)}{_at(study, gain)}" for gain in (gains[0], gains[-1]))
    return f"{GAIN} on the same seeds, over {len(gains)} places: from {least} to {most}."


def points_text(estimate: Estimate) -> str:
    """A difference of accuracies with its interval, such as `+2.1 points [+0.4, +3.8]`."""
    limits = interval(estimate, sign="+")
    return f"{percent(estimate.mean, sign='+')} points" + (f" {limits}" if limits != "-" else "")


def _at(study: Study, cell: Summary) -> str:
    """The place of a difference, by the axes that vary."""
    varied = {axis: cell.place[axis] for axis in study.axes if len(study.values(axis)) > 1}
    place = ", ".join(text for axis, text in zip(study.axes, labels(study, cell.place), strict=True) if axis in varied)
    return f" at {place}" if place else ""
