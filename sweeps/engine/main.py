"""The entry point of every sweep script."""

import sys
from pathlib import Path

from cvit.config import ConfigError
from cvit.data.images import DataError
from cvit.storage import StorageError
from sweeps.engine.cli import parse
from sweeps.engine.declaration import Sweep

EXIT_BAD_INPUT = 2


def main(sweep: Sweep) -> None:
    """Runs a sweep script. Bad input ends it with one line and exit code 2 before anything is created or started."""
    try:
        request = parse(sweep, sys.argv[1:])
        if request is None:
            sys.exit(0)
        # Torch, pandas and MLflow take seconds to import; help and wrong options are answered before.
        from sweeps.engine.run import run

        sys.exit(run(sweep, request))
    except (ConfigError, DataError, StorageError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
