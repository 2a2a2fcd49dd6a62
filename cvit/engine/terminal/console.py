"""The console of a program that goes on after its sweeps: its own output, in a terminal, a notebook, or a file."""

import sys
from typing import Any

from rich.console import Console

from cvit.redaction import redacted
from cvit.streams import Lasting


class RedactingConsole(Console):
    """A console that shows no passwords and keys of URLs, wherever it prints."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints objects, texts redacted."""
        super().print(*(redacted(each) if isinstance(each, str) else each for each in objects), **options)


def console_of_program(quiet: bool) -> Console:
    """A console on `sys.stdout` as it is now; it neither replaces the stream nor fails with it."""
    if quiet or sys.stdout is None:
        return Console(quiet=True, force_terminal=False, force_jupyter=False)
    return RedactingConsole(file=Lasting(sys.stdout), soft_wrap=True)  # type: ignore[arg-type]
