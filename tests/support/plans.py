"""Makes plans in the test process, from the same request as a user's, and trains them without Ray."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from cvit.data.datasets import DatasetInfo, describe, load
from cvit.engine.declaration import Sweep
from cvit.engine.execution.follower import Follower
from cvit.engine.execution.in_process import train_stages
from cvit.engine.execution.queue import StagePack
from cvit.engine.execution.site import Site
from cvit.engine.execution.timing import Timing
from cvit.engine.execution.workers import this_process
from cvit.engine.planning.plan import Plan
from cvit.engine.planning.progress import Outcome, Progress
from cvit.engine.planning.request import Request
from cvit.engine.planning.rounds import first_round
from cvit.engine.recording.journal import Journal
from cvit.engine.terminal.cli import parse, parts_asked_for
from cvit.results import Report
from cvit.stages import Stage
from cvit.storage import Storage
from cvit.tasks import task_named
from sweeps.low_data import SWEEP
from tests.support.scripts import ROOT, sweeps_of

SMALL = (
    *("--data-fraction", "0.02", "0.05", "--init-scheme", "random", "two_phase", "--seeds", "2"),
    *("--embed-dim", "16", "--depth", "1", "--head-dim", "4", "--batch-size", "16", "--epochs", "0"),
    *("--min-steps", "24", "--evaluations", "2", "--budget-unit", "steps"),
)


def digits() -> DatasetInfo:
    return describe("digits", "data", download=False)


def make_plan(folder: Path, *options: str, sweep: Sweep = SWEEP) -> Plan:
    """The plan of a sweep on digits with these options for a storage in `folder`."""
    return make_progress(folder, *options, sweep=sweep).plan


def make_progress(folder: Path, *options: str, sweep: Sweep = SWEEP) -> Progress:
    """That plan, or the first round of a search, and what the storage in `folder` has of it."""
    request = parse(sweep, options)
    assert request is not None
    info = digits() if task_named(sweep.task).needs_data else None
    return first_round(sweep, request, info, Storage.open(str(folder)))


def all_sweeps() -> Iterator[tuple[str, Sweep]]:
    """(script, sweep) of everything in sweeps/."""
    for path in sorted((ROOT / "sweeps").glob("*.py")):
        script = str(path.relative_to(ROOT))
        yield from ((script, sweep) for sweep in sweeps_of(script))


def requests_of(script: str, options: list[str]) -> dict[str, Request | None]:
    """What a script makes of a command line, a request for each of its parts that is asked for, by sweep."""
    sweeps = sweeps_of(script)
    return {s.name: parse(s, options, sweeps if len(sweeps) > 1 else ()) for s in parts_asked_for(sweeps, options)}


class Order:
    """A follower that notes the stages of every pack, in the order in which packs begin."""

    def __init__(self) -> None:
        self.packs: list[StagePack] = []

    def started(self, name: str, pack: StagePack) -> None:
        self.packs.append(pack)

    def waiting(self, line: str) -> None:
        pass

    def reported(self, name: str, key: str, report: Report) -> None:
        pass

    def ended(self, name: str, lines: Iterable[str] = ()) -> None:
        assert not list(lines)

    def noticed(self, line: str) -> None:
        raise AssertionError(line)


class Lines(Order):
    """A follower that keeps what is said about packs that failed and workers that hang."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def ended(self, name: str, lines: Iterable[str] = ()) -> None:
        self.lines += lines

    def noticed(self, line: str) -> None:
        self.lines.append(line)


def walk(progress: Progress, folder: Path) -> list[Stage]:
    """Trains what is to be trained in this process, one stage at a time, and returns the order."""
    order = Order()
    train_here(progress, folder, order)
    return [stage for pack in order.packs for stage in pack]


def train_here(progress: Progress, folder: Path, follower: Follower) -> dict[str, Outcome]:
    """Trains what is to be trained in this process, one stage at a time."""
    storage = Storage.open(str(folder))
    dataset = load(digits()) if task_named(progress.plan.study.task).needs_data else None
    site = Site(dataset, storage, this_process("cpu"), {}, Timing(time.monotonic()))
    return train_stages(progress, Journal(storage, progress.plan.study.sweep), follower, site)
