"""The facts about runs that the tracker takes from the storage and from the analysis, without pandas."""

from cvit.analysis.display.colours import colour_of
from cvit.engine.tracking.run_facts import Surroundings
from cvit.init.schemes import SCHEMES
from cvit.storage import Storage

NEEDED_AT_THE_END = ("cvit.engine.terminal.answer",)
"""The modules that the end of a sweep needs, with pandas."""
NEEDED_FOR_FILES = (*NEEDED_AT_THE_END, "cvit.analysis.display.narrow_figure")
"""The modules that the tracker needs for the files of an answer, with matplotlib too."""


def surroundings(storage: Storage) -> Surroundings:
    """The surroundings of the runs of a storage."""
    return Surroundings(storage.url, {scheme: colour_of(scheme) for scheme in SCHEMES})
