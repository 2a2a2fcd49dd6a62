"""Errors of the command line as one sentence that says what to type instead."""

from collections.abc import Sequence

from cyclopts import CoercionError, CycloptsError, RepeatArgumentError, UnusedCliTokensError

from cvit.errors import one_line

SEEDS = "--seeds"


def explained(error: CycloptsError, argv: Sequence[str], axes: Sequence[str]) -> str:
    """The error of a command line in one line.

    Args:
        axes: the options that take several values.
    """
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        option, values = _option_with(argv, error.unused_tokens[0])
        if option is None:
            return f"{error.unused_tokens[0]!r} is not an option: options begin with --"
        if len(values) <= len(error.unused_tokens):
            return f"{option} takes no value, but {values[0]!r} follows it"
        return _too_many(option, len(values), axes)
    if isinstance(error, RepeatArgumentError) and error.token.keyword is not None:
        return _too_many(error.token.keyword, sum(_name(argument) == error.token.keyword for argument in argv), axes)
    if isinstance(error, CoercionError) and error.token is not None:
        return one_line(error) + _hint(error.token.keyword, error.token.value)
    return one_line(error)


def _too_many(option: str, count: int, axes: Sequence[str]) -> str:
    if option == SEEDS:
        return f"{SEEDS} takes one value, the number of seeds: {SEEDS} {count} is for the seeds 0 to {count - 1}"
    return f"{option} takes one value in this sweep; several values are taken by {', '.join(axes)}"


def _hint(option: str | None, value: str) -> str:
    if "," in value:
        return f" {option} takes one value."
    if value.endswith("%"):
        return " Give a share of 1: 0.01 for 1%."
    return ""


def _name(argument: str) -> str:
    return argument.partition("=")[0]


def _option_with(argv: Sequence[str], surplus: str) -> tuple[str | None, list[str]]:
    """The option that a surplus value follows, with all values behind it; None if the value follows no option."""
    groups: list[tuple[str, list[str]]] = []
    for argument in argv:
        if argument.startswith("--"):
            option, has_value, value = argument.partition("=")
            groups.append((option, [value] if has_value else []))
        elif groups:
            groups[-1][1].append(argument)
    with_surplus = [(option, values) for option, values in groups if surplus in values]
    behind_another = [(option, values) for option, values in with_surplus if surplus in values[1:]]
    return (behind_another or with_surplus or [(None, [])])[0]
