"""Watches the head of a cluster: if it is lost, Ray ends the driver within a minute, so the user must be told soon."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

_INTERVAL_S = 5.0
_MOST_FAILURES = 3


@contextlib.contextmanager
def watching(address: str, lost: Callable[[], None], interval_s: float = _INTERVAL_S) -> Iterator[None]:
    """Calls `lost` once, in a thread of its own, after three failed connections in a row.

    Args:
        address: host:port of the cluster's control store.
    """
    ended = threading.Event()
    host, _, port = address.rpartition(":")
    place = host.strip("[]"), int(port)

    def watch() -> None:
        failures = 0
        while not ended.wait(interval_s):
            try:
                socket.create_connection(place, timeout=interval_s).close()
                failures = 0
            # Whatever prevents the connection, the thread goes on watching.
            except Exception:  # noqa: BLE001
                failures += 1
            if failures == _MOST_FAILURES:
                lost()
                return

    thread = threading.Thread(target=watch, name="head-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
