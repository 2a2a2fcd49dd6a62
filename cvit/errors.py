"""Errors as a person reads them."""


def one_line(error: BaseException) -> str:
    """An error's message in one line; its type, where it has no message."""
    return " ".join(str(error).split()) or type(error).__name__
