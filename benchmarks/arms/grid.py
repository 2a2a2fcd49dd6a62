"""All arms of throughput.py run this grid of trials: the one of sweeps/low_data.py with the same options."""

from collections.abc import Sequence

from cvit.data.datasets import DatasetInfo, describe
from cvit.engine.planning.progress import Progress
from cvit.engine.planning.request import Request
from cvit.engine.planning.rounds import first_round
from cvit.engine.terminal.cli import parse
from cvit.storage import Storage
from sweeps.low_data import SWEEP

SCRIPT = "sweeps/low_data.py"


def planned(options: Sequence[str]) -> tuple[Progress, DatasetInfo, Request]:
    """Plans the sweep with these options, and reads the results that its storage has.

    Raises:
        ConfigError, DataError: the sweep would refuse the options.
        SystemExit: they asked for the sweep's help, which is then printed.
    """
    request = parse(SWEEP, options)
    if request is None:
        raise SystemExit(0)
    info = describe(request.dataset, request.data_dir, download=False, image_size=request.image_size)
    return first_round(SWEEP, request, info, Storage.open(request.storage)), info, request
