"""Removes passwords and keys from text that others may read."""

import re
from typing import Any, TextIO

_USER_INFO = re.compile(r"(?<=://)(?:[^\s/@\"':]+:(?!\d+/)[^\s@\"']*|[^\s/@\"']+)@")
"""`user:password@` or `token@` after a scheme. A password may contain slashes; a port with a path is no password."""

_PARAMETER = re.compile(
    r"(?i)([?&](?!viewStateShareKey=)(?:[\w-]*(?:key|password|secret|token|signature)[\w-]*)=)[^\s&\"']+"
)
"""A parameter with a secret. The key of a view in MLflow's UI is kept: it is no secret, and the address needs it."""


def redacted(text: str) -> str:
    """The text without its secrets: `scheme://user:password@host?secret_key=…` → `scheme://***@host?secret_key=***`."""
    return _PARAMETER.sub(r"\1***", _USER_INFO.sub("***@", text))


class Redacting:
    """A text stream that writes redacted text to another stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
