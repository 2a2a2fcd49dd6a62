"""`convolution`, a reference: the convolutional twin alone, trained for the whole budget."""

from cvit.config import TrialConfig
from cvit.models.vit import VisionTransformer
from cvit.vocabulary import REFERENCE


def convolution(config: TrialConfig) -> VisionTransformer:
    """The twin, uninitialised."""
    return VisionTransformer(config.model, REFERENCE, config.init.convolution_form)
