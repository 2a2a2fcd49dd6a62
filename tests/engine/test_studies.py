"""The studies that the presets of every sweep make on digits, by the keys that version d709f53 gave them.

A preset whose settings change makes another study: its results so far stand in another section of the tables. Where
that is meant, the new key belongs here; where only the spelling of a preset has changed, or a recipe, it must not.
"""

import pytest

from cvit.tasks import task_named
from sweeps.engine.planning.trials import study_of
from sweeps.engine.terminal.cli import parse
from tests.support.plans import all_sweeps, digits

STUDIES = {
    "full_grid": {
        "laptop": "bb349c3d4a744d05",
        "smoke": "fb548b5218722d50",
        "reference": "f95d4c98bdd3eec6",
    },
    "expressivity": {
        "laptop": "c4edec16eb174b1d",
        "smoke": "c4edec16eb174b1d",
        "reference": "c4edec16eb174b1d",
    },
    "head_count": {
        "laptop": "adb157b31f77c1ec",
        "smoke": "1597470b8005f3a1",
        "reference": "e88af93b43334595",
    },
    "init_schemes": {
        "laptop": "25f78660e1cd4b5b",
        "smoke": "2f0630d6921a2691",
        "reference": "a44e0f08ebb62d9a",
    },
    "low_data": {
        "laptop": "8c11094deb0fe4c2",  # since it has budgets in steps and in FLOPs; e93b09cbba830ce2 before
        "smoke": "9b5cf57f51634cc0",
        "photographs": "79bbb05a62d5fc39",
        "reference": "e15b693d5fbef5d6",
    },
    "no_warmup": {
        # Since two axes vary two phases; those before were b87a89984be59259, cbebf793214dd304 and 0dfdf299753a95dd.
        "laptop": "c20aefb89db320a5",
        "smoke": "6e86d78d4049c0ac",
        "reference": "e53421a36cb369a5",
    },
    "patch_size": {
        "laptop": "ded00556c95ed466",
        "smoke": "7b76bb9d51cfea35",
        "photographs": "1bfb9fb0e5784bf8",
        "reference": "6e283d4618b98436",
    },
    "tuned": {
        "laptop": "5b13b59b32ee5bfd",
        "smoke": "c83c95d4b3ad314e",
        "reference": "04add46e251c1156",
    },
}
SWEEPS = {sweep.name: sweep for _, sweep in all_sweeps()}


@pytest.mark.parametrize("name", STUDIES)
def test_presets_make_the_studies_that_they_made_before(name: str) -> None:
    sweep = SWEEPS[name]
    info = digits() if task_named(sweep.task).needs_data else None
    requests = {preset: parse(sweep, ["--preset", preset]) for preset in sweep.presets}
    keys = {preset: study_of(sweep, request, info).key for preset, request in requests.items() if request}
    assert keys == STUDIES[name]
