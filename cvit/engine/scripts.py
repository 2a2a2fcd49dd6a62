"""The sweep scripts: their folder, `sweeps/` of a checkout or its copy in an installed package, and their names."""

from collections.abc import Mapping
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = _PACKAGE / "sweeps"
SWEEPS_FOLDER = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "sweeps"


def sweep_scripts() -> Mapping[str, Path]:
    """The scripts by the names that the command line has for them, such as `low-data` for `low_data.py`."""
    paths = sorted(SWEEPS_FOLDER.glob("*.py"))
    return {path.stem.replace("_", "-"): path for path in paths if path.stem != "__init__"}
