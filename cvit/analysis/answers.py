"""The answer of one study in a few lines, for the terminal at the end of a sweep."""

from cvit.analysis import verdicts_text
from cvit.analysis.claims import verdicts_on
from cvit.analysis.display.accuracy_tables import GENERAL_LAYOUT
from cvit.analysis.display.fitting import fitted
from cvit.analysis.display.notes import notes
from cvit.analysis.display.tables import general_tables
from cvit.analysis.display.wording import in_words_of
from cvit.analysis.questions import arranged, question_of, tables_of
from cvit.analysis.statistics.studies import Study, read_study
from cvit.analysis.store.axes import SCHEME
from cvit.analysis.store.frames import Frames


def answer_text(frames: Frames, study_key: str, width: int | None = None) -> str:
    """The answer of a study: the table of its sweep, or the general table if it varies other axes than its sweep.

    Args:
        width: the number of characters of a line; by default, tables are as wide as they are.

    Raises:
        KeyError: there is no such study.
    """
    study = read_study(frames, study_key)
    question = question_of(study.sweep)
    study = arranged(study, question)
    axes = set(question.axes)
    has_axes_of_sweep = not axes or {*study.axes, SCHEME} == {*axes, SCHEME}
    tables = tables_of(study.sweep, [study]) if has_axes_of_sweep else general_tables([study], GENERAL_LAYOUT)
    waiting = _waiting(study) if has_axes_of_sweep else []
    text = "\n".join([tables.answer(study), *(["", *waiting] if waiting else []), *notes(study)])
    text = in_words_of([study], text)
    return text if width is None else fitted(text, width)


def _waiting(study: Study) -> list[str]:
    """A sentence that no claim can be judged yet, if there are pairs but too few. Verdicts are left to the report: some
    of them need curves, which are not loaded here."""
    judged = [verdict for claim in question_of(study.sweep).claims for verdict in verdicts_on(claim, study)]
    has_pairs = any(verdict.n for verdict in judged)
    return verdicts_text.summary(judged) if has_pairs and not any(v.can_be_judged for v in judged) else []
