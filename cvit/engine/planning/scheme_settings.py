"""The settings of single init schemes: those of the preset, and those of a file that the user names."""

from collections.abc import Mapping
from typing import Any

from cvit.data.datasets import DatasetInfo
from cvit.engine.declaration import Preset
from cvit.engine.planning.request import Request
from cvit.parameters import as_text
from cvit.settings import SearchResult, SettingsOfSchemes, read_settings

SCHEME = "init_scheme"


def settings_of_schemes(
    preset: Preset, request: Request, settings: Mapping[str, Any], info: DatasetInfo | None
) -> tuple[SettingsOfSchemes, tuple[str, ...]]:
    """The settings of every init scheme that has its own, and lines that say where they come from.

    What is given explicitly holds for every scheme. Below it are the settings of a file, and below those the preset's,
    of which a file leaves the fixed ones as they are. An axis of the grid has no setting.

    Args:
        settings: a value of every flat parameter, for schemes without settings of their own.

    Raises:
        ConfigError: the file cannot be read, or holds what is no setting.
    """
    of_file, notes = dict[str, Mapping[str, Any]](), tuple[str, ...]()
    if request.settings_from is not None and SCHEME in settings:
        file = read_settings(request.settings_from)
        search = _best_match(file.searches, request, settings, info)
        of_file, notes = search.settings, _notes(file.path, search, request, settings, info)
    of_schemes = {}
    for scheme in dict.fromkeys((*preset.scheme_settings, *of_file)):
        found = {n: v for n, v in of_file.get(scheme, {}).items() if n not in preset.fixed}
        merged = {**preset.scheme_settings.get(scheme, {}), **found}
        of_schemes[scheme] = {n: v for n, v in merged.items() if n not in request.given and n not in request.grid}
    return of_schemes, notes


def _best_match(
    searches: tuple[SearchResult, ...], request: Request, settings: Mapping[str, Any], info: DatasetInfo | None
) -> SearchResult:
    """The search on the sweep's data set and model, else the closest one; of equally close ones the most recent."""
    return min(
        searches,
        key=lambda search: (not _has_same_data(search, info), len(_other_model(search, request, settings))),
    )


def _has_same_data(search: SearchResult, info: DatasetInfo | None) -> bool:
    """True if a search saw the sweep's data set. Without a fingerprint, its name has to tell."""
    if info is None:
        return False
    return search.data_fingerprint == info.fingerprint if search.data_fingerprint else search.dataset == info.name


def _other_model(search: SearchResult, request: Request, settings: Mapping[str, Any]) -> list[str]:
    """Phrases about the parameters of the model in which a search differs from the sweep."""
    differing = []
    for name, value in search.model.items():
        own = request.grid.get(name, (settings.get(name, value),))
        if value not in own:
            differing.append(f"{name} {as_text(value)}, not {' '.join(map(as_text, own))}")
    return differing


def _notes(
    path: str, search: SearchResult, request: Request, settings: Mapping[str, Any], info: DatasetInfo | None
) -> tuple[str, ...]:
    asked = request.grid.get(SCHEME, (settings.get(SCHEME),))
    found = [scheme for scheme in asked if scheme in search.schemes]
    fraction = "" if search.data_fraction is None else f" ({100 * search.data_fraction:g} % of the images)"
    notes = [f"{' '.join(found) or 'no scheme'} from {path}: searched on {search.dataset}{fraction}"]
    if missing := [scheme for scheme in asked if scheme not in search.schemes]:
        notes.append(f"{' '.join(map(str, missing))} as in the preset, since the file does not have them")
    if info is not None and not _has_same_data(search, info):
        notes.append(f"note: the sweep runs on another data set, {info.name}")
    if differing := _other_model(search, request, settings):
        notes.append(f"note: the search had another model: {'; '.join(differing)}")
    return tuple(notes)
