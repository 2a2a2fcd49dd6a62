"""Functions that tests have called in processes that are forked from the warm process."""

import os
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection

from cvit.engine.execution.shared import Layout, attach


def say(connection: Connection, files: Sequence[int], *words: object) -> None:
    """Sends the ids of this process and its parent, what it was told, the beginnings of the files, and its modules."""
    contents = [os.pread(file, 5, 0) for file in files]
    connection.send((os.getpid(), os.getppid(), words, contents, [*sys.modules]))


def end(connection: Connection, files: Sequence[int], exit_code: int, last_words: str = "") -> None:
    """Ends this process with an exit code or, if it is negative, by a signal."""
    os.write(2, last_words.encode())
    if exit_code < 0:
        os.kill(os.getpid(), -exit_code)
    os._exit(exit_code)


def double(number: float) -> float:
    """Twice a number; raises an error if it is negative, and kills its process if it is not a number."""
    if number != number:
        os._exit(1)
    if number < 0:
        raise ValueError("of two\nlines")
    return 2 * number


def wait(connection: Connection, files: Sequence[int]) -> None:
    """Waits until the connection ends."""
    connection.recv()


def change(connection: Connection, files: Sequence[int], layout: Layout) -> None:
    """Changes the images of the driver's, and sends its sum before and after."""
    dataset = attach(layout, files[0])
    assert dataset is not None
    array = dataset.train.images
    before = array.sum()
    array += 1
    connection.send((before, array.sum()))
