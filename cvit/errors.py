"""The text of errors, and the errors of a storage that refuses or does not answer."""


class Refused(OSError):
    """A storage refuses, and trying again cannot help: access denied, no such bucket, a link in the way, a file of a
    later version. The message is one line."""


class NoAnswer(TimeoutError):
    """A request to a storage was given up after its time limit. It may still be carried out."""


def one_line(error: BaseException) -> str:
    """An error's message in one line; the name of its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__
