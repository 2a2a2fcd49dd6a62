"""Libraries that take long to import, imported in a thread while this process waits for something else.

Two threads must not import the same libraries at the same time: where these import one another in a circle, as those of
pandas do, one thread may find one of them half made. So what several threads need is imported by `import_all`.
"""

import contextlib
import importlib
import threading
from collections.abc import Iterator, Sequence

_one_at_a_time = threading.Lock()


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
    """Imports modules, once no other thread does. An error is raised where they are used: importing them again raises
    it again."""
    with _one_at_a_time:
        for name in names:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
