"""Makes plans in the test process, from the same request as a user's."""

from collections.abc import Iterator
from pathlib import Path

import torch

from cvit.data.datasets import DatasetInfo, describe, load
from cvit.results import load_result
from cvit.stages import Stage, TrainingStage
from cvit.storage import Storage
from cvit.training.loop import train_pack
from cvit.vocabulary import TRAINING
from sweeps.engine.declaration import Sweep
from sweeps.engine.execution.searcher import PlanSearcher
from sweeps.engine.planning.plan import Plan
from sweeps.engine.planning.request import Request
from sweeps.engine.terminal.cli import parse, parts_asked_for
from sweeps.low_data import SWEEP
from tests.support.scripts import ROOT, sweeps_of

CPU = torch.device("cpu")
SMALL = (
    *("--data-fraction", "0.02", "0.05", "--init-scheme", "random", "two_phase", "--seeds", "2"),
    *("--embed-dim", "16", "--depth", "1", "--head-dim", "4", "--batch-size", "16", "--epochs", "0"),
    *("--min-steps", "24", "--evaluations", "2"),
)


def digits() -> DatasetInfo:
    return describe("digits", "data", download=False)


def make_plan(folder: Path, *options: str, sweep: Sweep = SWEEP) -> Plan:
    """Makes the plan of a sweep on digits with these options for a storage in `folder`."""
    request = parse(sweep, options)
    assert request is not None
    return Plan.make(sweep, request, digits() if sweep.task == TRAINING else None, Storage.open(str(folder)))


def all_sweeps() -> Iterator[tuple[str, Sweep]]:
    """Yields (script, sweep) of everything in sweeps/."""
    for path in sorted((ROOT / "sweeps").glob("*.py")):
        script = str(path.relative_to(ROOT))
        yield from ((script, sweep) for sweep in sweeps_of(script))


def requests_of(script: str, options: list[str]) -> dict[str, Request | None]:
    """Parses a script's command line into a request for each of its parts that is asked for, by sweep."""
    sweeps = sweeps_of(script)
    return {s.name: parse(s, options, sweeps if len(sweeps) > 1 else ()) for s in parts_asked_for(sweeps, options)}


def train(stage: Stage, folder: Path) -> None:
    assert isinstance(stage, TrainingStage)
    for _ in train_pack([stage], load(digits()), Storage.open(str(folder)), CPU):
        pass


def walk(plan: Plan, folder: Path) -> list[Stage]:
    """Trains what the searcher suggests, one pack at a time, and returns the order."""
    searcher, order = PlanSearcher(plan, {}, {}), []
    while (suggestion := searcher.suggest(str(len(order)))) != PlanSearcher.FINISHED:
        assert isinstance(suggestion, dict)
        trial_id = str(len(order))
        for stage in suggestion["pack"]:
            train(stage, folder)
            result = load_result(Storage.open(str(folder)), stage.key)
            assert result is not None
            plan.results[stage.key] = result
            searcher.stage_done(stage.key)
            order.append(stage)
        searcher.on_trial_complete(trial_id)
    return order
