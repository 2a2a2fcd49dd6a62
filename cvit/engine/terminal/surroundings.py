"""The facts about runs that the tracker takes from the storage and from the analysis, without pandas."""

from cvit.analysis.display.colours import colour_of
from cvit.engine.tracking.run_facts import Surroundings
from cvit.init.schemes import SCHEMES
from cvit.storage import Storage


def needed_at_the_end(sweep: str) -> tuple[str, ...]:
    """The modules that the end of a sweep needs, with pandas and scipy; there may be none for its question."""
    return ("cvit.engine.terminal.answer", f"cvit.analysis.questions.{sweep}")


def needed_for_files(sweep: str) -> tuple[str, ...]:
    """The modules that the tracker needs for the files of an answer, with matplotlib too."""
    drawing = ("cvit.analysis.display.narrow_figure", f"cvit.analysis.questions.figures.{sweep}")
    return (*needed_at_the_end(sweep), *drawing, "matplotlib.backends.backend_pdf", "matplotlib.backends.backend_svg")


def surroundings(storage: Storage) -> Surroundings:
    """The surroundings of the runs of a storage."""
    return Surroundings(storage.url, {scheme: colour_of(scheme) for scheme in SCHEMES})
