"""The folder of the sweep scripts: `sweeps/` of a checkout, or its copy in an installed package."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = _PACKAGE / "sweeps"
SWEEPS_FOLDER = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "sweeps"
