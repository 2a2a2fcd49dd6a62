"""The text of errors and messages, and the errors of a storage that refuses or does not answer."""

import re
from collections.abc import Iterable

_NOISE = re.compile(
    r"(?:HTTPS?Connection(?:Pool)?\([^()]*\)|<[\w.]+ object at 0x[0-9a-f]+>): "
    r"|Max retries exceeded with url: \S+ | \[SQL: .*| \(Background on this error at: \S+\)"
)
"""The parts of the messages of urllib3 and SQLAlchemy that say nothing to a person."""

_MOST_NAMES = 3


class Refused(OSError):
    """A storage refuses, and trying again cannot help: access denied, no such bucket, a link in the way, a file of a
    later version. The message is one line."""


class NoAnswer(TimeoutError):
    """A request to a storage was given up after its time limit. It may still be carried out."""


def one_line(error: BaseException) -> str:
    """An error's message in one line; the name of its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def short_line(error: BaseException, limit: int) -> str:
    """An error's message in one line of a limited length. The reason, which stands at the end, is kept."""
    line = one_line(error)
    if len(line) > limit:
        line = _NOISE.sub("", line)
    if len(line) <= limit:
        return line
    reason = line.find("(Caused by ")
    end = limit * 2 // 3 if reason < 0 else min(len(line) - reason, limit * 3 // 4)
    return f"{line[: limit - end - 3]} … {line[-end:]}"


def printable(text: str) -> str:
    """The text with control characters and undecodable bytes of file names escaped, so that any terminal prints it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def some_of(names: Iterable[str]) -> str:
    """The first names of many, and how many more there are."""
    *first, last = names = list(names)
    if len(names) > _MOST_NAMES:
        return f"{', '.join(names[:_MOST_NAMES])} and {len(names) - _MOST_NAMES} more"
    return f"{', '.join(first)} and {last}" if first else last


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as "1 image" or "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
