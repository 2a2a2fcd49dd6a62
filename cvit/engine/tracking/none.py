"""No tracking: nothing is recorded outside the journal, from which tables and figures can be made just as well."""

from collections.abc import Mapping, Sequence, Set

from cvit.engine.tracking.backend import Backend, ExistingRun, NewRun
from cvit.parameters import ConfigError
from cvit.records import StudyRecord
from cvit.results import Point
from cvit.vocabulary import NO_TRACKING

SCHEMES = (NO_TRACKING,)


def open(uri: str) -> Backend:
    """A backend that keeps nothing.

    Raises:
        ConfigError: the URI is more than the word.
    """
    if uri != NO_TRACKING:
        raise ConfigError(f"tracking URI {uri!r} is not valid: {NO_TRACKING} stands alone")
    return NoTracking()


class NoTracking:
    """A store that takes everything and keeps nothing."""

    title = "no store"

    def connect(self, sweep: str, study: StudyRecord) -> None:
        pass

    def existing(self, own: Set[str]) -> Sequence[ExistingRun]:
        return []

    def create(self, run: NewRun) -> str:
        return run.key

    def written_steps(self, run_id: str, metric: str) -> Set[int]:
        return set()

    def write(
        self, run_id: str, params: Mapping[str, object], tags: Mapping[str, str], points: Sequence[Point]
    ) -> None:
        pass

    def set_status(self, run_id: str, status: str, end_time_ms: int | None = None) -> None:
        pass

    def how_to_look(self) -> list[str]:
        return ["No tracking:         all results are in the journal; tables come from make_tables.py --storage"]
