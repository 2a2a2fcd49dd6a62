"""The studies that the presets of every sweep make on digits, by the keys that version d709f53 gave them.

A preset whose settings change makes another study: its results so far stand in another section of the tables. Where
that is meant, the new key belongs here; where only the spelling of a preset has changed, or a recipe, it must not.
"""

import runpy
from pathlib import Path

import pytest

from cvit.engine import declaration
from cvit.engine.declaration import Sweep
from cvit.engine.planning.trials import study_of
from cvit.engine.terminal.cli import parse
from cvit.tasks import task_named
from tests.support.plans import all_sweeps, digits
from tests.support.scripts import ROOT

STUDIES = {
    "full_grid": {
        "laptop": "bb349c3d4a744d05",
        "smoke": "fb548b5218722d50",
        "reference": "0ec4fd5676296bd8",
    },
    "depth": {
        "laptop": "5b888563a02d112e",
        "smoke": "5b888563a02d112e",
        "reference": "5b888563a02d112e",
    },
    "expressivity": {
        "laptop": "c4edec16eb174b1d",
        "smoke": "c4edec16eb174b1d",
        "reference": "c4edec16eb174b1d",
    },
    "head_count": {
        "laptop": "adb157b31f77c1ec",
        "smoke": "1597470b8005f3a1",
        "reference": "b5df0402b8fcb8b0",
    },
    "init_schemes": {
        "laptop": "25f78660e1cd4b5b",
        "smoke": "2f0630d6921a2691",
        "photographs": "3175a1ab9d3369c1",
        "reference": "6041c3935fbaa22b",
    },
    "low_data": {
        "laptop": "8c11094deb0fe4c2",  # since it has budgets in steps and in FLOPs; e93b09cbba830ce2 before
        "smoke": "9b5cf57f51634cc0",
        "photographs": "05bb727cfdc91ba7",
        "reference": "13599e8f9fcba276",
    },
    "no_warmup": {
        # Since two axes vary two phases; those before were b87a89984be59259, cbebf793214dd304 and 0dfdf299753a95dd.
        "laptop": "c20aefb89db320a5",
        "smoke": "6e86d78d4049c0ac",
        "photographs": "92f7234b316bd077",
        "reference": "bd4e5ebbe5a2c42d",
    },
    "patch_size": {
        "laptop": "1ea2f4aea95bd0d5",
        "smoke": "7b76bb9d51cfea35",
        "photographs": "e20172518ae3dbab",
        "reference": "23562368bd6f614c",
    },
    "tuned": {
        "laptop": "286b877834b14c0c",
        "smoke": "d4ea51e9d82b4dfb",
        "photographs": "c40c3dbec3a094e4",
        "reference": "ce44f227c66a60f9",
    },
}
FIRST_SETTINGS = Path(__file__).parent / "settings"
"""The files of sweeps/settings/ as they first were. A new result of a search in place of one makes other studies, as it
should, and takes no new keys here."""


@pytest.fixture(scope="module")
def sweeps() -> dict[str, Sweep]:
    """All sweeps, declared anew with the first settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(declaration, "SETTINGS_FOLDER", FIRST_SETTINGS)
        scripts = [runpy.run_path(str(ROOT / script)) for script in dict(all_sweeps())]
    return {value.name: value for script in scripts for value in script.values() if isinstance(value, Sweep)}


@pytest.mark.parametrize("name", STUDIES)
def test_presets_make_the_studies_that_they_made_before(name: str, sweeps: dict[str, Sweep]) -> None:
    sweep = sweeps[name]
    info = digits() if task_named(sweep.task).needs_data else None
    requests = {preset: parse(sweep, ["--preset", preset]) for preset in sweep.presets}
    keys = {preset: study_of(sweep, request, info).key for preset, request in requests.items() if request}
    assert keys == STUDIES[name]
