"""The text of errors."""


def one_line(error: BaseException) -> str:
    """An error's message in one line; the name of its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__
