"""The answer of one study in a few lines, for the terminal at the end of a sweep."""

from analysis.display.accuracy_tables import Layout, answer
from analysis.display.wording import SCHEME
from analysis.layouts import LAYOUTS
from analysis.questions import expressivity, tuned
from analysis.statistics.studies import read_study
from analysis.store.frames import Frames


def answer_text(frames: Frames, study_key: str) -> str:
    """The answer of a study; for a sweep that has no answer of its own, the general table.

    Raises:
        KeyError: there is no such study.
    """
    study = read_study(frames, study_key)
    axes = {*study.axes, SCHEME}
    if study.sweep == expressivity.SWEEP and axes == {*expressivity.AXES, SCHEME}:
        return expressivity.answer(study)
    if study.sweep == tuned.SWEEP and axes == set(tuned.AXES):
        return tuned.answer(study)
    layout = LAYOUTS.get(study.sweep, Layout())
    return answer(study, layout if axes == set(layout.axes) else Layout())
