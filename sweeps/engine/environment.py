"""The environment variables that the engine's libraries want, set in one place, before any of them is imported."""

import os
from collections.abc import Mapping

MLFLOW_ENVIRONMENT: Mapping[str, str] = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # The tracker tries an unreachable server again, in the background; MLflow's own retries would take minutes, and
    # would create a run twice where only the answer was lost.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def prepare() -> None:
    """Sets the variables that the user has not set."""
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
