"""The environment variables that Ray, MLflow and torch need. The libraries read them at import, so `prepare` is called
before any of them is imported."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # cvit.engine.run handles Ctrl-C, as one clean stop.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # The state of a sweep is in the storage; Tune's own snapshots are never read.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # The display prints one line per fault; without this, Tune prints a list of tracebacks at the end.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Under `uv run`, Ray would upload the working folder to its workers, whatever its size. They have the code already.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}

_REFUSED_BY_TUNE = ("TUNE_RESULT_DIR", "RAY_AIR_LOCAL_CACHE_DIR", "RAY_STORAGE")
"""Variables of earlier versions of Ray, which ask for a folder of results. The state of a sweep is in its storage; Tune
ends with an error if one of them is set."""

TOKEN = "RAY_AUTH_TOKEN"
"""The token of a Ray that starts here, where it cannot be kept in the home folder."""

NO_HOME = "/nonexistent"
"""The home folder of a user that has none: a name without a folder, where nobody can lay a file for others."""

_MLFLOW = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # The tracker itself retries an unreachable server, in the background. MLflow's own retries would take minutes, and
    # would create a run twice if only the answer was lost.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}

# Workers inherit these. Without them glibc returns the memory of every large tensor to the system and faults it in
# again, which took a sixth of the time of a training step on a CPU.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
}


def prepare() -> None:
    """Sets every variable that the user has not set, and removes those with which Ray cannot work."""
    for name, value in (_RAY | _MLFLOW | _MALLOC).items():
        os.environ.setdefault(name, value)
    try:
        Path.home()
    except RuntimeError:  # no HOME, and a user without an entry, as in some containers: libraries end at `~`
        os.environ["HOME"] = NO_HOME
    for name in _REFUSED_BY_TUNE:
        os.environ.pop(name, None)
    options = os.environ.get("PYTHONWARNINGS", "").split(",")
    if any(option.startswith("error") for option in options):
        # Ray's own processes import libraries that warn; as an error, the first warning ends them.
        os.environ["PYTHONWARNINGS"] = ",".join(option for option in options if not option.startswith("error"))
        warnings.simplefilter("default")


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Within the context, the environment as `prepare` leaves it; afterwards as it was, for a program that goes on."""
    with kept():
        prepare()
        yield


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Puts the variables back that change within the context, but for Ray's token: libraries read it once a process."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in before.keys() | os.environ.keys():
            if before.get(name) != os.environ.get(name) and name != TOKEN:
                if name in before:
                    os.environ[name] = before[name]
                else:
                    del os.environ[name]
