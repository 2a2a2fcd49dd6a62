"""The entry point of every sweep script: from the command line to requests, and from errors to exit codes."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from cvit.data.images import DataError
from cvit.engine import environment, exit_codes
from cvit.engine.declaration import Sweep
from cvit.engine.invocation import Invocation, of_script
from cvit.engine.planning.request import Request
from cvit.engine.recording.lease import LeaseLost
from cvit.engine.signals import stop_on_sigterm
from cvit.engine.terminal.cli import parse, parts_asked_for, unknown_variables
from cvit.leaving import leave_quickly
from cvit.parameters import ConfigError
from cvit.redaction import Redacting
from cvit.storage import StorageError, without_waiting
from cvit.streams import make_streams_last


def main(*sweeps: Sweep) -> NoReturn:
    """Runs the sweeps of a script one after another, and ends the process."""
    run_command(lambda: sweeps, of_script(), sys.argv[1:])


@without_waiting()
def run_command(load: Callable[[], Sequence[Sweep]], started: Invocation, argv: Sequence[str]) -> NoReturn:
    """Runs sweeps one after another, and ends the process. Bad input ends it with one line and exit code 2, before
    anything is created or started. The output never shows the passwords and keys of URLs.

    Args:
        load: returns the sweeps; its errors are told like those of the options.
        argv: the options.
    """
    environment.prepare()
    leave_quickly()
    make_streams_last()
    sys.stdout, sys.stderr = Redacting(sys.stdout), Redacting(sys.stderr)
    stop_on_sigterm()
    try:
        sys.exit(_run(load(), started, argv))
    except LeaseLost as error:
        print(f"{started.name}: {error}", file=sys.stderr)
        sys.exit(exit_codes.LEASE_LOST)
    except (ConfigError, DataError, StorageError) as error:
        print(f"{started.name}: error: {error}", file=sys.stderr)
        sys.exit(exit_codes.BAD_INPUT)
    except KeyboardInterrupt:  # before anything was started
        sys.exit(exit_codes.INTERRUPTED)


def _run(sweeps: Sequence[Sweep], started: Invocation, argv: Sequence[str]) -> int:
    """Runs the sweeps that the arguments ask for; returns the worst of their exit codes."""
    started_at = time.monotonic()
    asked: list[tuple[Sweep, Request]] = []
    for sweep in parts_asked_for(sweeps, argv, started):
        request = parse(sweep, argv, sweeps if len(sweeps) > 1 else (), started)
        if request is None:
            return exit_codes.FINISHED  # the help is printed
        asked.append((sweep, request))
    for name in unknown_variables():
        print(f"{started.name}: {name} is not an option of any sweep, and is ignored", file=sys.stderr)
    from rich.console import Console

    from cvit.engine.run_all import exit_code_of, plans_as_json, run_sweeps

    if asked[0][1].as_json:
        print(plans_as_json(asked))
        return exit_codes.FINISHED
    return exit_code_of(run_sweeps(asked, Console(soft_wrap=True), started_at))
