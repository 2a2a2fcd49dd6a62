"""The init schemes by name. A new one is a file beside this one, a line here and a name in `config.InitSchemeName`."""

from collections.abc import Callable

from torch import nn

from cvit.config import TrialConfig
from cvit.init.conv_structured import conv_structured
from cvit.init.impulse import impulse
from cvit.init.local import local
from cvit.init.mimetic import mimetic
from cvit.init.random import initialise, random
from cvit.init.two_phase import two_phase
from cvit.models.reference import ResidualNetwork
from cvit.models.vit import VisionTransformer
from cvit.stages import TrainingStage
from cvit.vocabulary import ATTENTION, REFERENCE

InitScheme = Callable[[TrialConfig, VisionTransformer | None], tuple[VisionTransformer, dict[str, float]]]
"""(trial, model of the convolution phase or None) → model of the attention phase, metrics measured on the way."""

INIT_SCHEMES: dict[str, InitScheme] = {
    "random": random,
    "two_phase": two_phase,
    "conv_structured": conv_structured,
    "mimetic": mimetic,
    "impulse": impulse,
    "local": local,
}
"""Of the transformer; `config.REFERENCES` are other models, which start at random."""


def blank_model(stage: TrainingStage) -> nn.Module:
    """The architecture that a stage trains, uninitialised."""
    trial = stage.trial
    if stage.phase == REFERENCE and trial.init.init_scheme == "resnet":
        return ResidualNetwork(trial.model)
    return VisionTransformer(trial.model, stage.phase, trial.init.convolution_form)


def initial_model(stage: TrainingStage, parent: nn.Module | None) -> tuple[nn.Module, dict[str, float]]:
    """The model that a stage starts from, on the CPU, and metrics measured on the way (such as the transfer's error).

    Args:
        parent: the trained model of `stage.parent`, where the stage has one.
    """
    if stage.phase == ATTENTION:
        assert parent is None or isinstance(parent, VisionTransformer)
        return INIT_SCHEMES[stage.trial.init.init_scheme](stage.trial, parent)
    model = blank_model(stage)
    initialise(model, stage.trial.seed)
    return model, {}
