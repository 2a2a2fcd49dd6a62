"""Readies the fused operators for CPUs before a sweep trains, and says so where this machine cannot have them."""

import contextlib

from rich.console import Console

from cvit.engine.execution.forecast import Forecast
from cvit.engine.execution.workers import Workers
from cvit.engine.terminal.plan_text import print_lines
from cvit.engine.terminal.spinner import spinner
from cvit.native.library import Unavailable, is_compiled, is_switched_off, library_file


def ready_operators(console: Console, workers: Workers, forecast: Forecast) -> None:
    """Compiles the operators if workers on this machine need them and nobody has; without them, prints one line.

    Workers of a cluster do the same on their nodes, at their first training step.
    """
    if workers.device != "cpu" or not workers.is_here or is_switched_off():
        return
    compiling = spinner(console, "compiling the operators for this CPU, once", forecast)
    try:
        with contextlib.nullcontext() if is_compiled() else compiling:
            library_file()
    except Unavailable as reason:
        print_lines(console, [reason.notice])
