"""The init schemes by name. A new one is a file beside this one, a line here and a name in `config.InitSchemeName`."""

from collections.abc import Callable

from cvit.config import TrialConfig
from cvit.init.conv_structured import conv_structured
from cvit.init.random import initialise, random
from cvit.init.two_phase import two_phase
from cvit.models.vit import VisionTransformer
from cvit.stages import Stage
from cvit.vocabulary import CONVOLUTION

InitScheme = Callable[[TrialConfig, VisionTransformer | None], tuple[VisionTransformer, dict[str, float]]]
"""(trial, model of the convolution phase or None) → model of the attention phase, metrics measured on the way."""

INIT_SCHEMES: dict[str, InitScheme] = {
    "random": random,
    "two_phase": two_phase,
    "conv_structured": conv_structured,
}


def initial_model(stage: Stage, parent: VisionTransformer | None) -> tuple[VisionTransformer, dict[str, float]]:
    """The model that a stage starts from, on the CPU, and metrics measured on the way (such as the transfer's error).

    Args:
        parent: the trained model of `stage.parent`, where the stage has one.
    """
    if stage.phase == CONVOLUTION:
        twin = VisionTransformer(stage.trial.model, CONVOLUTION, stage.trial.init.convolution_form)
        initialise(twin, stage.trial.seed)
        return twin, {}
    return INIT_SCHEMES[stage.trial.init.init_scheme](stage.trial, parent)
