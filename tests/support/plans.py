"""Makes plans in the test process, from the same request as a user's, and trains them without Ray."""

import time
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path

from cvit.data.datasets import DatasetInfo, describe, load
from cvit.results import Report
from cvit.stages import Stage
from cvit.storage import Storage
from cvit.tasks import task_named
from sweeps.engine.declaration import Sweep
from sweeps.engine.execution.in_process import train_stages
from sweeps.engine.execution.queue import StagePack
from sweeps.engine.execution.site import Site
from sweeps.engine.execution.timing import Timing
from sweeps.engine.execution.workers import this_process
from sweeps.engine.planning.plan import Plan
from sweeps.engine.planning.progress import Progress
from sweeps.engine.planning.request import Request
from sweeps.engine.planning.rounds import first_round
from sweeps.engine.recording.journal import Journal
from sweeps.engine.terminal.cli import parse, parts_asked_for
from sweeps.low_data import SWEEP
from tests.support.scripts import ROOT, sweeps_of

SMALL = (
    *("--data-fraction", "0.02", "0.05", "--init-scheme", "random", "two_phase", "--seeds", "2"),
    *("--embed-dim", "16", "--depth", "1", "--head-dim", "4", "--batch-size", "16", "--epochs", "0"),
    *("--min-steps", "24", "--evaluations", "2"),
)


def digits() -> DatasetInfo:
    return describe("digits", "data", download=False)


def make_progress(folder: Path, *options: str, sweep: Sweep = SWEEP) -> Progress:
    """Makes the plan of a sweep on digits with these options, and reads how far a storage in `folder` has come."""
    request = parse(sweep, options)
    assert request is not None
    info = digits() if task_named(sweep.task).needs_data else None
    return first_round(sweep, request, info, Storage.open(str(folder)))


def make_plan(folder: Path, *options: str, sweep: Sweep = SWEEP) -> Plan:
    """Makes the plan of a sweep on digits with these options."""
    return make_progress(folder, *options, sweep=sweep).plan


def all_sweeps() -> Iterator[tuple[str, Sweep]]:
    """Yields (script, sweep) of everything in sweeps/."""
    for path in sorted((ROOT / "sweeps").glob("*.py")):
        script = str(path.relative_to(ROOT))
        yield from ((script, sweep) for sweep in sweeps_of(script))


def requests_of(script: str, options: list[str]) -> dict[str, Request | None]:
    """Parses a script's command line into a request for each of its parts that is asked for, by sweep."""
    sweeps = sweeps_of(script)
    return {s.name: parse(s, options, sweeps if len(sweeps) > 1 else ()) for s in parts_asked_for(sweeps, options)}


class Finished:
    """This follower lists the stages in the order in which they are finished."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def started(self, name: str, pack: StagePack) -> None:
        """Ignored."""

    def reported(self, name: str, key: str, report: Report) -> None:
        """Takes down a stage's end."""
        if report.result is not None:
            self.keys.append(key)

    def ended(self, name: str, lines: Iterable[str] = ()) -> None:
        """Ignored."""


def walk(progress: Progress, folder: Path, limits: Mapping[Hashable, int] | None = None) -> list[Stage]:
    """Trains what is to be trained, without Ray, into a storage in `folder`; returns the stages in their order.

    Args:
        limits: stages in a pack at most, by shape; 1 where a shape is not named.
    """
    plan, storage, finished = progress.plan, Storage.open(str(folder)), Finished()
    dataset = load(digits()) if task_named(plan.study.task).needs_data else None
    site = Site(dataset, storage, this_process("cpu"), limits or {}, Timing(time.monotonic()))
    train_stages(progress, Journal(storage, plan.study.sweep), finished, site)
    return [plan.stages[key] for key in finished.keys]
