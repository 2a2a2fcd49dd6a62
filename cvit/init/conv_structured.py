"""`conv_structured`: the attention pattern of the paper's theorem 1 with random weights, without a first phase."""

from cvit.config import TrialConfig
from cvit.init.random import initialise
from cvit.init.two_phase import two_phase
from cvit.models.vit import VisionTransformer
from cvit.vocabulary import CONVOLUTION


def conv_structured(
    config: TrialConfig, parent: VisionTransformer | None
) -> tuple[VisionTransformer, dict[str, float]]:
    """A transformer that computes the same as an untrained convolutional twin."""
    assert parent is None
    twin = VisionTransformer(config.model, CONVOLUTION, config.init.convolution_form)
    initialise(twin, config.seed)
    return two_phase(config, twin)
