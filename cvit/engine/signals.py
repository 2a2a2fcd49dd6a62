"""SIGTERM, as from a batch system, as a stop that is as clean as Ctrl-C; and moments in which neither may stop."""

import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Iterator


def stop_on_sigterm() -> None:
    """Lets SIGTERM raise KeyboardInterrupt from now on. Python lets only the main thread handle signals, so in another
    one this does nothing."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextlib.contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """Within the context, SIGTERM raises KeyboardInterrupt; afterwards it does what it did before, and so do the other
    signals for which Ray installs handlers of its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    stop_on_sigterm()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # one that Python did not install cannot be put back
                    signal.signal(number, handler)


@contextlib.contextmanager
def stops_wait() -> Iterator[None]:
    """Within the context, SIGINT and SIGTERM wait; at its end they do what they did before. It is for a few lines that
    must not be left halfway, such as the start of a process that nobody would end if its handle were lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not None  # one that Python did not install cannot be put back
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


@contextlib.contextmanager
def no_stop_lost() -> Iterator[None]:
    """At the end of the context, a SIGINT or SIGTERM that came in it and stopped nothing raises KeyboardInterrupt.

    A handler's exception is printed and forgotten where the interpreter calls back, for example into logging after a
    fork. Where other code starts processes, as Ray does, a stop is lost so now and then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    printed = sys.unraisablehook

    def but_for_stops(event: "sys.UnraisableHookArgs") -> None:
        if not isinstance(event.exc_value, KeyboardInterrupt | SystemExit):
            printed(event)

    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        there.setblocking(False)
        before = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
        sys.unraisablehook = but_for_stops
        try:
            yield
            with contextlib.suppress(BlockingIOError):  # no signal came
                if {signal.SIGINT, signal.SIGTERM} & {*here.recv(4096)}:
                    raise KeyboardInterrupt
        finally:
            sys.unraisablehook = printed
            signal.set_wakeup_fd(before)
