"""The entry point of every sweep script: from the command line to requests, and from errors to exit codes."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cvit.config import ConfigError
from cvit.data.images import DataError
from cvit.engine import environment, exit_codes
from cvit.engine.declaration import Sweep
from cvit.engine.planning.request import Request
from cvit.engine.recording.lease import LeaseLost
from cvit.engine.signals import stop_on_sigterm
from cvit.engine.terminal.cli import parse, parts_asked_for
from cvit.redaction import Redacting
from cvit.storage import StorageError, without_waiting
from cvit.streams import make_streams_last


@without_waiting()
def main(*sweeps: Sweep) -> None:
    """Runs the sweeps of a script one after another. Bad input ends it with one line and exit code 2, before anything
    is created or started. The output never shows the passwords and keys of URLs."""
    environment.prepare()
    make_streams_last()
    sys.stdout, sys.stderr = Redacting(sys.stdout), Redacting(sys.stderr)
    stop_on_sigterm()
    try:
        sys.exit(_run_script(sweeps, sys.argv[1:]))
    except LeaseLost as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(exit_codes.LEASE_LOST)
    except (ConfigError, DataError, StorageError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(exit_codes.BAD_INPUT)
    except KeyboardInterrupt:  # before anything was started
        sys.exit(exit_codes.INTERRUPTED)


def _run_script(sweeps: Sequence[Sweep], argv: Sequence[str]) -> int:
    """Runs the sweeps that the arguments ask for; returns the worst of their exit codes."""
    started_at = time.monotonic()
    asked: list[tuple[Sweep, Request]] = []
    for sweep in parts_asked_for(sweeps, argv):
        request = parse(sweep, argv, sweeps if len(sweeps) > 1 else ())
        if request is None:
            return exit_codes.FINISHED  # the help is printed
        asked.append((sweep, request))
    from rich.console import Console

    from cvit.engine.run_all import exit_code_of, run_sweeps

    return exit_code_of(run_sweeps(asked, Console(soft_wrap=True), started_at))
