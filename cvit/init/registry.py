"""The models that stages start from. The function of a scheme is found by name, in `cvit/init/<name>.py`."""

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from cvit.config import TrialConfig
from cvit.init.random import initialise
from cvit.init.schemes import SCHEMES
from cvit.models.vit import VisionTransformer
from cvit.stages import TrainingStage
from cvit.vocabulary import ATTENTION, REFERENCE

Start = Callable[[TrialConfig, VisionTransformer | None], tuple[VisionTransformer, dict[str, float]]]
"""The function of a scheme: (trial, model of the convolution phase or None) → model of the attention phase, metrics
measured on the way."""
Reference = Callable[[TrialConfig], nn.Module]
"""The function of a reference: trial → the model, uninitialised. It is then initialised at random."""


def start_of(init_scheme: str) -> Start:
    """The function of a scheme that initialises the transformer."""
    assert not SCHEMES[init_scheme].is_reference
    return _function_of(init_scheme)


def reference_named(init_scheme: str) -> Reference:
    """The function of a scheme that is another model."""
    assert SCHEMES[init_scheme].is_reference
    return _function_of(init_scheme)


def _function_of(init_scheme: str) -> Any:
    return getattr(importlib.import_module(f"cvit.init.{init_scheme}"), init_scheme)


def blank_model(stage: TrainingStage) -> nn.Module:
    """The architecture that a stage trains, uninitialised."""
    trial = stage.trial
    if stage.phase == REFERENCE:
        return reference_named(trial.init.init_scheme)(trial)
    return VisionTransformer(trial.model, stage.phase, stage.convolution_form)


def initial_model(stage: TrainingStage, parent: nn.Module | None) -> tuple[nn.Module, dict[str, float]]:
    """The model that a stage starts from, on the CPU, and metrics measured on the way (such as the transfer's error).

    Args:
        parent: the trained model of `stage.parent`; None if the stage has no parent.
    """
    if stage.phase == ATTENTION:
        assert parent is None or isinstance(parent, VisionTransformer)
        return start_of(stage.trial.init.init_scheme)(stage.trial, parent)
    model = blank_model(stage)
    initialise(model, stage.trial.seed)
    return model, {}
