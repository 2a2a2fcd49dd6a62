"""Standard output and standard error that a program outlives: closed, full, without a reader, or in ASCII only."""

import codecs
import contextlib
import os
import sys
from typing import Any, TextIO

_IN_ASCII = {"±": "+/-", "−": "-", "–": "-", "—": "-", "×": "x", "…": "...", "²": "^2", "µ": "u"}
"""Signs without which a number would lose its meaning, where the terminal has only ASCII."""


def _replaced(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = "".join(_IN_ASCII.get(sign, "?") for sign in error.object[error.start : error.end])
    return text, error.end


codecs.register_error("cvit.streams", _replaced)


class Lasting:
    """A text stream that writes to another one, and drops the text when that cannot be written any more, because its
    reader is gone or its disk is full: a training must not end with it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            self._give_up()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        """Sends what the stream still holds, and all that follows, nowhere."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_streams_last() -> None:
    """Makes `sys.stdout` and `sys.stderr` streams that never raise an error."""
    for descriptor in (0, 1, 2):
        # Otherwise the next file that is opened, such as the journal, gets the number of a closed standard stream, and
        # whatever a library prints goes there.
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = _lasting(sys.stdout, 1), _lasting(sys.stderr, 2)


def _lasting(stream: TextIO | None, descriptor: int) -> Any:
    if stream is None:  # closed before Python started
        stream = open(descriptor, "w", closefd=False)  # noqa: SIM115 - open until the process ends
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="cvit.streams")  # type: ignore[attr-defined]
    return Lasting(stream)
