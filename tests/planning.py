"""Plans made in the test process, from the same request as a user's."""

import importlib
from collections.abc import Iterator
from pathlib import Path

from sweeping import ROOT

from cvit.data.datasets import DatasetInfo, describe
from cvit.storage import Storage
from cvit.vocabulary import TRAINING
from sweeps.engine.cli import Request, parse, parts_asked_for
from sweeps.engine.declaration import Sweep
from sweeps.engine.plan import Plan
from sweeps.low_data import SWEEP

SMALL = (
    *("--data-fraction", "0.02", "0.05", "--init-scheme", "random", "two_phase", "--seeds", "2"),
    *("--embed-dim", "16", "--depth", "1", "--head-dim", "4", "--batch-size", "16", "--epochs", "0"),
    *("--min-steps", "24", "--evaluations", "2"),
)


def digits() -> DatasetInfo:
    return describe("digits", "data", download=False)


def make_plan(folder: Path, *options: str, sweep: Sweep = SWEEP) -> Plan:
    """The plan of a sweep on digits with these options for a storage in `folder`."""
    request = parse(sweep, options)
    assert request is not None
    return Plan.make(sweep, request, digits() if sweep.task == TRAINING else None, Storage.open(str(folder)))


def sweeps_of(script: str) -> list[Sweep]:
    """The sweeps that a script such as `sweeps/low_data.py` declares, in the order of its lines."""
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    return [value for value in vars(module).values() if isinstance(value, Sweep)]


def all_sweeps() -> Iterator[tuple[str, Sweep]]:
    """(script, sweep) of everything in sweeps/."""
    for path in sorted((ROOT / "sweeps").glob("*.py")):
        script = str(path.relative_to(ROOT))
        yield from ((script, sweep) for sweep in sweeps_of(script))


def requests_of(script: str, options: list[str]) -> list[Request | None]:
    """What a script makes of a command line, a request for each of its parts that is asked for."""
    sweeps = sweeps_of(script)
    return [parse(s, options, sweeps if len(sweeps) > 1 else ()) for s in parts_asked_for(sweeps, options)]
