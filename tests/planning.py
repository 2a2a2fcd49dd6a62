"""Plans made in the test process, from the same request as a user's."""

from pathlib import Path

from cvit.data.datasets import DatasetInfo, describe
from cvit.storage import Storage
from sweeps.engine.cli import parse
from sweeps.engine.plan import Plan
from sweeps.low_data import SWEEP

SMALL = (
    *("--data-fraction", "0.02", "0.05", "--init-scheme", "random", "two_phase", "--seeds", "2"),
    *("--embed-dim", "16", "--depth", "1", "--head-dim", "4", "--batch-size", "16", "--epochs", "0"),
    *("--min-steps", "24", "--evaluations", "2"),
)


def digits() -> DatasetInfo:
    return describe("digits", "data", download=False)


def make_plan(folder: Path, *options: str) -> Plan:
    """The plan of `low_data.py` with these options for a storage in `folder`."""
    request = parse(SWEEP, options)
    assert request is not None
    return Plan.make(SWEEP, request, digits(), Storage.open(str(folder)))
