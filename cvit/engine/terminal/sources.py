"""Options that stand in a configuration file or in environment variables, read by cyclopts' own sources.

The command line decides first, then the variables, then the file, then the preset.
"""

import difflib
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App, CycloptsError
from cyclopts.config import Env, Toml, Yaml

from cvit.errors import one_line
from cvit.native.library import SWITCH
from cvit.parameters import ConfigError

if TYPE_CHECKING:
    from cyclopts.argument import ArgumentCollection

PREFIX = "CVIT_"
CONFIG = "config"
_NO_OPTIONS = (SWITCH, "CVIT_CHAOS_", "CVIT_HOST", "CVIT_INJECT", "CVIT_SCALE_")
"""Variables that are no options: one of the fused operators, and those of the project's own tests and benchmarks, which
sweeps inherit from them."""
_SUFFIXES = {".toml": Toml, ".yaml": Yaml, ".yml": Yaml}

ConfigFile = Toml | Yaml


class Variables(Env):
    """The environment variables `CVIT_…`, without the empty ones, which count as unset."""

    def __call__(self, app: App, commands: tuple[str, ...], arguments: "ArgumentCollection") -> None:
        super().__call__(app, commands, arguments)
        for argument in arguments:
            argument.tokens = [token for token in argument.tokens if token.source != self.source or token.value.strip()]


def variable_of(option: str) -> str:
    """The environment variable of an option: `CVIT_DATA_FRACTION` of `data_fraction`."""
    return PREFIX + option.upper()


def typed_value(option: str, argv: Sequence[str]) -> str | None:
    """The last value of an option on the command line; empty if the value is missing."""
    value = None
    for argument, following in zip(argv, [*argv, ""][1:], strict=True):
        if argument == f"--{option}":
            value = following
        elif argument.startswith(f"--{option}="):
            value = argument.removeprefix(f"--{option}=")
    return value


def value_of(option: str, argv: Sequence[str]) -> str | None:
    """The value of an option that is needed before all are parsed, such as the preset."""
    if (typed := typed_value(option, argv)) is not None:
        return typed
    if text := os.environ.get(variable_of(option), "").strip():
        return text
    file = config_file(argv)
    value = None if file is None else file.config.get(option)
    return None if value is None else str(value)


def config_file(argv: Sequence[str]) -> ConfigFile | None:
    """The configuration file that the command line or a variable names.

    Raises:
        ConfigError: it cannot be read, or is not a file of options.
    """
    typed = typed_value(CONFIG, argv)
    path = typed if typed is not None else os.environ.get(variable_of(CONFIG), "").strip() or None
    if path is None:
        return None
    name = f"config {path!r}"
    kind = _SUFFIXES.get(Path(path).suffix.lower())
    if kind is None:
        raise ConfigError(f"{name} is not valid: a file whose name ends with .toml, .yaml or .yml")
    file = kind(path, must_exist=True, use_commands_as_keys=False, encoding="utf-8")
    try:
        options = file.config
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
    except (CycloptsError, ValueError) as error:
        raise ConfigError(f"{name} cannot be read: {one_line(error.__cause__ or error)}") from error
    if not isinstance(options, dict):
        raise ConfigError(f"{name} is not valid: it holds {type(options).__name__}, not options with their values")
    return file


def check_file(file: ConfigFile, options: Collection[str]) -> None:
    """Raises ConfigError if a file has a key that is no option."""
    for key, value in file.config.items():
        name = str(key).replace("-", "_")
        if name not in options or name == CONFIG:
            raise ConfigError(f"config {str(file.path)!r}: {key!r} is not an option{_nearest(name, options)}")
        if isinstance(value, dict):
            raise ConfigError(f"config {str(file.path)!r}: {key!r} is a table; an option has a value or a list of them")


def unknown_variables(options: Collection[str]) -> list[str]:
    """The variables `CVIT_…` that are no option of any sweep and serve other things.

    Args:
        options: the options of all sweeps.

    Raises:
        ConfigError: the name of one of them is a misspelt option.
    """
    names = [name for name in sorted(os.environ) if name.startswith(PREFIX) and not name.startswith(_NO_OPTIONS)]
    unknown = [name for name in names if name.removeprefix(PREFIX).lower() not in options]
    for name in unknown:
        if nearest := difflib.get_close_matches(name.removeprefix(PREFIX).lower(), options, n=1, cutoff=_SIMILAR):
            raise ConfigError(f"variable {name} is not an option: did you mean {variable_of(nearest[0])}?")
    return unknown


_SIMILAR = 0.75
"""The similarity from which on a name counts as a misspelt one; with difflib's 0.6, CVIT_TEST would be CVIT_PRESET."""


def used_variables(options: Collection[str], argv: Sequence[str]) -> dict[str, str]:
    """The variables that set an option which the command line does not set."""
    variables = {option: variable_of(option) for option in sorted(options)}
    return {
        variable: value
        for option, variable in variables.items()
        if (value := os.environ.get(variable, "")).strip() and typed_value(option.replace("_", "-"), argv) is None
    }


def _nearest(name: str, options: Collection[str]) -> str:
    nearest = difflib.get_close_matches(name, sorted(options), n=1)
    return f": did you mean {nearest[0]}?" if nearest else "; --help-all lists them"
