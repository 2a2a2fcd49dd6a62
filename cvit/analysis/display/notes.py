"""The notes below the tables of a study: with what its trials were trained, and which shares are the same images."""

from collections import Counter

from cvit.analysis.display.titles import is_smoke
from cvit.analysis.statistics.stats import STATES_WITH_RESULT
from cvit.analysis.statistics.studies import Study
from cvit.analysis.store.axes import FRACTION
from cvit.analysis.store.frames import TRAINED_WITH
from cvit.vocabulary import TRAINING

IN_BRACKETS = "In brackets after a share of the training data: the number of images."
OF_SMOKE = "Preset smoke: a few steps of a small model, which show that everything runs; its numbers answer nothing."
OF_OTHER_SMOKE = "Preset smoke: a few places of the grid, which show that everything runs."
"""The same for a task without training, such as fits: those of smoke presets are as exact as any."""
UNKNOWN = "unknown"
_WORDS = {
    "code_version": "code version",
    "torch_version": "torch",
    "device": "device",
    "cpu_capability": "CPU capability",
}


def notes(study: Study) -> list[str]:
    """The sentences below a study's table: that it is a smoke test, if it is one, the meaning of the numbers after
    shares, which shares are the same images, and with what the trials were trained, if that differs."""
    mixed = [
        f"Trained with more than one {_WORDS[column]}: "
        + "; ".join(f"{value} ({count} trial{'' if count == 1 else 's'})" for value, count in values.items())
        + "."
        for column, values in trained_with(study).items()
        if len(values) > 1 or any(" and " in value for value in values)
    ]
    in_brackets = [IN_BRACKETS] if FRACTION in study.axes and study.shares.num_images else []
    of_smoke = [OF_SMOKE if study.task == TRAINING else OF_OTHER_SMOKE] if is_smoke(study) else []
    return [*of_smoke, *in_brackets, *study.shares.notes(), *mixed]


def trained_with(study: Study) -> dict[str, Counter[str]]:
    """The numbers of trials that have a result, by column of TRAINED_WITH and by what they were trained with.
    A trial that was trained with several, such as its two phases, has them joined by "and"."""
    trials = [r.trial for r in study.results if r.trial is not None and r.state in STATES_WITH_RESULT]
    values = {column: [trial.get(column) or UNKNOWN for trial in trials] for column in TRAINED_WITH}
    return {column: Counter(text.replace(", ", " and ") for text in texts) for column, texts in values.items()}


def trained_with_text(study: Study) -> str:
    """The software and hardware that all trials say they have in common, such as `torch 2.9.0`."""
    single = {column: next(iter(values)) for column, values in trained_with(study).items() if len(values) == 1}
    return ", ".join(f"{_WORDS[column]} {value}" for column, value in single.items() if value != UNKNOWN)
