"""Libraries that take long to import, imported in a thread while this process waits for something else.

Two threads must not import the same libraries at the same time: where these import one another in a circle, as those of
pandas do, one thread may find one of them half made. So one thread at a time imports beside the main thread, and only
what the main thread does not.
"""

import contextlib
import importlib
import threading
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def imported_meanwhile(*names: str) -> Iterator[None]:
    """Imports modules while the context does something else; they are there when it ends."""
    thread = threading.Thread(target=import_all, args=(names,), name="imports", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def import_all(names: Sequence[str]) -> None:
    """Imports modules. An error is raised where they are used: importing them again raises it again."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
