"""Removes passwords and keys from text that others may read. In doubt it hides too much: a host, say, or a path."""

import functools
import re
from collections.abc import Mapping
from typing import Any, TextIO

_HIDDEN = "***"

# Addresses: scheme://user:password@host

_LOCAL_ADDRESS = re.compile(r"(?:\d+\.\d+\.\d+\.\d+|localhost|\[[0-9a-fA-F:.]+\])(?::\d+)?(?:[/?#\s]|$)")
"""The beginning of an address that is no user: the `@` in `127.0.0.1:5000/a@b` belongs to the path."""
_PORT = re.compile(r"\d+(?!\w)")
_QUOTED_SCHEME = re.compile(r"(['\"`])[\w+.-]+$")
_QUOTE_IN_QUOTES = re.compile(r"\\?'\"'\"'|\\['\"]")
"""A quote in quotes, as `shlex.quote` and `repr` write it."""
_ENCODED_USER_INFO = re.compile(r"(?i)(?<=%3A%2F%2F)[^\s&]{1,500}%40")
_BARE_USER_INFO = re.compile(r"(?<![\w/.+%-])(?!mailto:)[\w.+%-]+:[^\s@:/]+@(?=[\w.-]*\w)")
"""`user:password@host` whose scheme was forgotten."""

# Parameters: password=… in an address, a connection string, a command, a header, or JSON

_WORDS = r"pass(?:word|wd|phrase)|pwd|secret|token|credentials?|signature|odbc_connect"
"""The words that make a name that of a secret, wherever it is."""
_KEYS = r"(?:api|access|account|secret|private|shared|shared_?access|signing|encryption|master)[_-]?key(?:[_-]?id)?"
_IN_CAMEL_CASE = r"\w{0,60}(?-i:Password|Token|Secret|AccessKey)"
_STRONG = rf"(?:[\w.-]{{0,60}}[_.-])?(?:{_WORDS}|{_KEYS}|auth|authorization|sig)|{_IN_CAMEL_CASE}"
_START = r"(?:&amp;|[?&#]|%(?:3F|26|3B|23)|\\u0026)"
"""The beginning of a parameter in an address, as it is, percent-encoded, or escaped by HTML or JSON."""
_NAME = rf"(?:[\w.%-]{{0,60}}(?:{_WORDS}|key)[\w.-]{{0,60}}?|(?:[\w.-]{{0,60}}[_.-])?(?:sig|auth|pass|pw))"
_IN_BRACES = r"\{(?:[^}\n]|\}\}){0,200}\}"

_IN_CONNECTION = re.compile(rf"(?i)((?<!&amp);{_NAME}=)(?:{_IN_BRACES}|[^;&\n]*(?=;)|[^\s&]+)")
"""A part of a connection string, such as `;PWD={a b};`."""
_IN_ADDRESS = re.compile(rf"(?i)({_START}(?!viewStateShareKey=){_NAME}(?:=|%3D))(?:(?!%26)[^\s&])+")
"""A parameter of an address. The key of a view in MLflow's UI is kept: it is no secret, and the address needs it."""
_IN_TEXT = re.compile(
    rf"(?i)(?<![\w.;-])((?:--)?(?:{_STRONG})['\"]?\s*(?:=|:(?!//))\s*(?:(?:basic|bearer|token|digest)\s+)?)"
    r"(?:'(?:[^'\\\n]|\\.)*'(?!\S*')|\"(?:[^\"\\\n]|\\.)*\"(?!\S*\")|"
    rf"{_IN_BRACES}|[^\s&]+)"
)
_OPTION = re.compile(rf"(?i)(?<!\S)(--(?:[\w-]*-)?(?:{_WORDS}|{_KEYS}|auth)\s+)(?!-)\S+")
_SCHEME_OF_HEADER = re.compile(r"\b((?i:basic|bearer)\s+)(?=\S*[\d=+/]|\S*[a-z]\S*[A-Z])[\w.~+/=-]{4,}")
"""The content of a header `Authorization`, without its name: `Basic dXNlcjpwdw==`, but not `Basic authentication`."""
_TRAILING = "'\"`)]}>,.;:!"

# Keys that are known by their look

_KNOWN = re.compile(
    r"\b(?:A[KS]IA[0-9A-Z]{12,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|hf_\w{20,}|eyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
)


def redacted(text: str) -> str:
    """The text without its secrets: `scheme://user:password@host?secret_key=…` → `scheme://***@host?secret_key=***`."""
    for pattern in (_IN_CONNECTION, _IN_ADDRESS):
        text = pattern.sub(_with_hidden_value, text)
    text = _ENCODED_USER_INFO.sub(f"{_HIDDEN}%40", _without_user_info(text))
    for pattern in (_IN_TEXT, _OPTION, _SCHEME_OF_HEADER):
        text = pattern.sub(_with_hidden_value, text)
    return _KNOWN.sub(_HIDDEN, text)


def without_secrets(value: Any) -> Any:
    """A value of JSON whose texts are redacted one by one, since a secret may hold a quote or a bracket."""
    if isinstance(value, str):
        return redacted(value) if len(value) > _LONGEST_REMEMBERED else _remembered(value)
    if isinstance(value, Mapping):
        return {name: without_secrets(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(part) for part in value]
    return value


_LONGEST_REMEMBERED = 100
_remembered = functools.lru_cache(maxsize=10_000)(redacted)
"""`redacted` for short texts: the trials of a sweep have most of their parameters in common."""


class Redacting:
    """A text stream that writes redacted text to another stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _without_user_info(text: str) -> str:
    """Hides the user of every address in a text, and what it has for a password."""
    first, *pieces = text.split("://")
    bodies: list[str] = []
    for piece in pieces:
        if bodies and not re.search(r"[\s/?#]", bodies[-1]):  # a user whose password begins with slashes
            bodies[-1] += f"://{piece}"
        else:
            bodies.append(piece)
    parts = [first]
    for number, body in enumerate(bodies):
        is_whole = number == 0 and re.fullmatch(r"[\w+.-]*", first) is not None
        end = len(body) if is_whole else _end_of_user_info(parts[-1], body)
        parts.append(_hide_user(body[:end]) + body[end:])
    return _BARE_USER_INFO.sub(f"{_HIDDEN}@", "://".join(parts))


def _end_of_user_info(before: str, body: str) -> int:
    """The place in what follows `://` up to which a password may go: the first blank, unless the address is quoted, or
    begins as none can that has no password."""
    blank = re.search(r"\s|$", body)
    assert blank is not None
    end = blank.start()
    if quoted := _QUOTED_SCHEME.search(before):
        return max(end, _QUOTE_IN_QUOTES.sub(lambda match: "_" * len(match[0]), body).find(quoted[1]))
    user, colon, rest = body[:end].partition(":")
    if colon and "@" not in body[:end] and not _PORT.match(rest) and not re.search(r"[/?#\[]", user):
        return len(body.partition("\n")[0])
    return end


def _hide_user(address: str) -> str:
    """An address without its user. Passwords may hold any sign, a slash or an `@` too, so they end at the last `@`."""
    authority = re.split(r"[/?#]", address, maxsplit=1)[0]
    before, at, host = address.rpartition("@")
    if not at or _LOCAL_ADDRESS.match(address):
        return address
    if ":" in before:
        return f"{_HIDDEN}@{host}"
    return f"{_HIDDEN}@{address.partition('@')[2]}" if "@" in authority else address


def _with_hidden_value(match: re.Match[str]) -> str:
    """A match whose first group is the name of a secret, with `***` for the rest, but the text's own punctuation."""
    value = match[0][len(match[1]) :]
    return match[0] if not value.strip(_TRAILING) else f"{match[1]}{_HIDDEN}{_end_of(value)}"


def _end_of(value: str) -> str:
    """The quotes and full stops after a value, which belong to the text around it."""
    is_quoted = value[0] in "'\"{" and value[-1] in "'\"}"
    return "" if is_quoted else value[len(value.rstrip(_TRAILING)) :]
