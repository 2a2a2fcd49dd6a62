"""The text of errors."""

from collections.abc import Iterable

_MOST_NAMES = 3


def one_line(error: BaseException) -> str:
    """An error's message in one line; the name of its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


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
