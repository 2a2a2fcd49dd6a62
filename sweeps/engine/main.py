"""The entry point of every sweep script: request → plan → run."""

import sys
from pathlib import Path

from cvit.config import ConfigError
from cvit.data.datasets import describe
from cvit.data.images import DataError
from cvit.storage import Storage, StorageError
from sweeps.engine.checks import check_address, check_tracking_uri
from sweeps.engine.cli import Request, parse
from sweeps.engine.declaration import Sweep
from sweeps.engine.plan import Plan

EXIT_BAD_INPUT = 2


def main(sweep: Sweep) -> None:
    """Runs a sweep script. Bad input ends it with one line and exit code 2 before anything is created or started."""
    try:
        request = parse(sweep, sys.argv[1:])
        sys.exit(0 if request is None else _plan_and_run(sweep, request))
    except (ConfigError, DataError, StorageError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)


def _plan_and_run(sweep: Sweep, request: Request) -> int:
    check_tracking_uri(request.tracking_uri)
    check_address(request.address)
    storage = Storage.open(request.storage)
    if not request.dry_run:
        storage.check_writable()
    may_download = request.download and not request.dry_run
    info = describe(request.dataset, request.data_dir, download=may_download, image_size=request.image_size)
    plan = Plan.make(sweep, request, info, storage)
    # Torch, Ray and pandas take seconds to import: help and bad input are answered before.
    from sweeps.engine.run import run

    return run(plan, info, request, storage)
