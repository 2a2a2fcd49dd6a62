"""The sweeps that a script declares, found by the path of the script."""

import importlib.util
import sys
from pathlib import Path

from cvit.engine.declaration import Sweep
from cvit.parameters import ConfigError


def load_sweeps(path: Path) -> list[Sweep]:
    """The sweeps of a script, in the order of its lines.

    Raises:
        ConfigError: it declares none, or it names a file of settings that is wrong.
    """
    name = f"cvit.sweeps.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    sweeps = [value for value in vars(module).values() if isinstance(value, Sweep)]
    if not sweeps:
        raise ConfigError(f"script {str(path)!r} declares no sweep")
    return sweeps
