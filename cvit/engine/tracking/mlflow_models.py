"""Models in MLflow's store: a trained model that loads without this package."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NAME = "model"
_URI_VARIABLE = "MLFLOW_TRACKING_URI"


def log_model(uri: str, run_id: str, model: "torch.nn.Module", example: "torch.Tensor") -> None:
    """Logs a model to a run. It is exported as a graph (`pt2`), whose first dimension, the images, is free."""
    import torch
    from mlflow import pytorch
    from mlflow.models import infer_signature

    with torch.no_grad():
        signature = infer_signature(example.numpy(), model(example).numpy())
    with _tracking_uri(uri), _quietly():
        pytorch.log_model(
            model,
            name=NAME,
            signature=signature,
            input_example=example.numpy(),
            # Known here; to find it out, MLflow would run the model in another process.
            pip_requirements=[f"torch=={torch.__version__}"],
            run_id=run_id,
        )


@contextlib.contextmanager
def _tracking_uri(uri: str) -> Iterator[None]:
    """Sets MLflow's tracking URI, which this function of MLflow's takes from the process, and puts it back."""
    import mlflow

    before, in_environment = mlflow.get_tracking_uri(), os.environ.get(_URI_VARIABLE)
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
        if in_environment is None:
            os.environ.pop(_URI_VARIABLE, None)
        else:
            os.environ[_URI_VARIABLE] = in_environment


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keeps MLflow's and torch's remarks on the export from the screen."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
