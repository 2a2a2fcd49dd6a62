"""Files with settings of init schemes: the winners of searches, so that nobody types settings.

A search writes them (`sweeps/tuned.py`, and `analysis/make_tables.py` too: `results/tuned.json`), every sweep takes
them (`--settings-from`), and presets take theirs from such files below `sweeps/settings/`. A file is JSON:

    {"format": 1, "searches": [{"dataset": "digits", "data_fraction": 0.05, …, "schemes": {"random": {"settings": …}}}]}

Of several searches the most recent stands first.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_origin

from cvit.config import PARAMETERS, TrialConfig
from cvit.errors import one_line
from cvit.init.schemes import SCHEMES
from cvit.parameters import CombinationError, ConfigError, Parameter, choices

FORMAT = 1
OF_THE_DATA = frozenset({"dataset", "data_fingerprint", "image_size", "in_channels", "num_classes", "dimensions"})
"""The parameters that the data set decides."""
NOT_SETTINGS = OF_THE_DATA | {"init_scheme", "seed"}
"""The parameters that no scheme can have of its own."""
SettingsOfSchemes = Mapping[str, Mapping[str, Any]]
"""Flat parameters by init scheme."""


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The settings that won an init scheme's search.

    Attributes:
        validation_accuracy: by which it won, a fraction: the mean over `seeds` seeds.
        trials: number of trials of the scheme's search.
    """

    settings: Mapping[str, Any]
    validation_accuracy: float | None = None
    seeds: int | None = None
    trials: int | None = None


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The winners of one search, and what it was made with.

    Attributes:
        data_fraction: share of the training images.
        model: the parameters of the model that all its trials share.
        training: the parameters of the training that all its trials share.
        command: the command that made it, or where the settings come from.
        code_version: with what the winners were trained.
        schemes: the winners by init scheme.
    """

    dataset: str
    data_fingerprint: str = ""
    data_fraction: float | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    code_version: str = ""
    schemes: Mapping[str, Winner]

    @property
    def settings(self) -> SettingsOfSchemes:
        """The settings by init scheme."""
        return {scheme: winner.settings for scheme, winner in self.schemes.items()}


@dataclass(frozen=True)
class SettingsFile:
    """A file with the results of searches, at least one, the most recent first."""

    path: str
    searches: tuple[SearchResult, ...]


def settings_text(searches: Sequence[SearchResult]) -> str:
    """The contents of a file with these results."""
    content = {"format": FORMAT, "searches": [dataclasses.asdict(search) for search in searches]}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def read_settings(path: str | Path) -> SettingsFile:
    """The results in a file.

    Raises:
        ConfigError: it cannot be read, or holds what is no setting of an init scheme; one line that names the file.
    """
    name = f"settings {str(path)!r}"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not JSON: {one_line(error)}") from error
    try:
        return SettingsFile(str(path), _searches(content))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _searches(content: Any) -> tuple[SearchResult, ...]:
    if not isinstance(content, dict) or "searches" not in content:
        raise ConfigError("not a file of settings, such as results/tuned.json of sweeps/tuned.py")
    if content.get("format") != FORMAT:
        raise ConfigError(f"format {content.get('format')!r} is not known to this version, which reads {FORMAT}")
    entries = content["searches"]
    if not isinstance(entries, list) or not entries:
        raise ConfigError("it has no search")
    return tuple(_search(entry) for entry in entries)


def _search(entry: Any) -> SearchResult:
    known = _known_fields(SearchResult, entry, "a search")
    for name in ("dataset", "schemes"):
        if not known.get(name):
            raise ConfigError(f"a search has no {name}")
    for scheme in known["schemes"]:
        if scheme not in SCHEMES:
            raise ConfigError(f"init_scheme {scheme!r} is not valid: one of {', '.join(SCHEMES)}")
    known["schemes"] = {scheme: _winner(scheme, winner) for scheme, winner in known["schemes"].items()}
    return SearchResult(**known)


def _winner(scheme: str, entry: Any) -> Winner:
    known = _known_fields(Winner, entry, scheme)
    if "settings" not in known:
        raise ConfigError(f"{scheme} has no settings")
    valid = [name for name in PARAMETERS if name not in NOT_SETTINGS]
    for name in known["settings"]:
        if name not in valid:
            raise ConfigError(f"{scheme}: {name!r} is not a setting of an init scheme; valid are {', '.join(valid)}")
    settings = {name: _value(scheme, PARAMETERS[name], value) for name, value in known["settings"].items()}
    try:
        # Whether patches and heads fit is seen with the data: the image here is large enough for all.
        image_size = 64 * max(1, settings.get("patch_size", 1))
        TrialConfig.from_flat({**settings, "init_scheme": scheme, "image_size": image_size})
    except CombinationError:
        pass
    except ConfigError as error:
        raise ConfigError(f"{scheme}: {error}") from error
    known["settings"] = settings
    return Winner(**known)


def _known_fields(record_class: type, entry: Any, name: str) -> dict[str, Any]:
    """The fields of a JSON object that this version knows."""
    if not isinstance(entry, dict):
        raise ConfigError(f"{name} is not an object")
    known = {f.name: entry[f.name] for f in dataclasses.fields(record_class) if f.name in entry}
    for field_name, value in known.items():
        if not isinstance(value, _KINDS.get(field_name, int | float | None)):
            raise ConfigError(f"{name}: {field_name} {value!r} is not valid")
    return known


_KINDS: Mapping[str, type] = {
    **dict.fromkeys(("dataset", "data_fingerprint", "command", "code_version"), str),
    **dict.fromkeys(("model", "training", "schemes", "settings"), dict),
}


def _value(scheme: str, parameter: Parameter, value: Any) -> Any:
    """A setting in the type of its parameter."""
    if value is None and parameter.default is None:
        return None
    name = f"{scheme}: {parameter.name}"
    if get_origin(parameter.type) is Literal:
        valid = choices(parameter.type)
        if value in valid:
            return value
        raise ConfigError(f"{name} {value!r} is not valid: one of {', '.join(valid)}")
    if type(value) is int and parameter.type is float and abs(value) <= sys.float_info.max:
        value = float(value)
    if type(value) is not parameter.type:
        raise ConfigError(f"{name} {value!r} is not of type {parameter.type.__name__}")
    return value
