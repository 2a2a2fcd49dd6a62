"""SIGTERM, as from a batch system, as a stop that is as clean as Ctrl-C."""

import contextlib
import signal
import threading
from collections.abc import Iterator


def stop_on_sigterm() -> None:
    """Lets SIGTERM raise KeyboardInterrupt from now on. Python lets only the main thread handle signals, so in another
    one this does nothing."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextlib.contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """Within the context, SIGTERM raises KeyboardInterrupt; afterwards it does what it did before."""
    before = signal.getsignal(signal.SIGTERM)
    stop_on_sigterm()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
