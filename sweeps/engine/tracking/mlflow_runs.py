"""What is known of single MLflow runs: of those to be written, and of those that are there."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cvit import vocabulary as v
from cvit.config import as_text

MAX_TAG_LENGTH = 5000


@dataclass
class TrackedRun:
    """What the journal says about one run and MLflow has not got yet.

    Attributes:
        study_key: empty as long as the journal's record of the trial or study itself is missing.
        tags: to be written; once MLflow has them they are forgotten.
        status: the trial's, once it has ended.
        cells: the study's grids.
        may_exist: a create was sent whose answer has not come.
        taken_up: an earlier session has copied a part of it.
        copied: the steps of which that part is, by metric, once they are asked for.
    """

    key: str
    study_key: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    start_time_ms: int | None = None
    points: list[list[Any]] = field(default_factory=list)
    status: str | None = None
    end_time_ms: int | None = None
    cells: list[dict[str, Any]] = field(default_factory=list)
    run_id: str | None = None
    opened: bool = False
    changed: bool = False
    may_exist: bool = False
    taken_up: bool = False
    copied: dict[str, set[int]] = field(default_factory=dict)

    @property
    def is_study(self) -> bool:
        return self.key == self.study_key

    def settle(self) -> None:
        """MLflow has everything that is known by now."""
        self.points, self.params, self.tags, self.changed = [], {}, {}, False


def key_of(run: Any) -> str:
    """The key of a run that MLflow has; of one that is not ours, its id."""
    tags = run.data.tags
    return tags.get(v.TAG_TRIAL_KEY) or tags.get(v.TAG_STUDY_KEY) or run.info.run_id


def all_runs(client: Any, experiment_id: str) -> Iterator[Any]:
    """The runs of an experiment, page by page."""
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def run_name(cell: dict[str, Any]) -> str:
    """The scheme first: the UI's column of names is narrow."""
    scheme = [str(cell["init_scheme"])] if "init_scheme" in cell else []
    return " ".join(scheme + [f"{axis}={as_text(value)}" for axis, value in cell.items() if axis != "init_scheme"])


def in_parts(tag: str, text: str) -> dict[str, str]:
    """A text that is too long for one tag, in several: tag, tag.1, tag.2, …"""
    parts = [text[start : start + MAX_TAG_LENGTH] for start in range(0, len(text), MAX_TAG_LENGTH)]
    return {tag if number == 0 else f"{tag}.{number}": part for number, part in enumerate(parts)}
