"""`two_phase`: attention starts by computing the convolution that the first phase has trained (paper, section 4)."""

from cvit.config import TrialConfig
from cvit.init.random import random
from cvit.init.transfer import transfer
from cvit.models.vit import VisionTransformer
from cvit.vocabulary import TRANSFER_WEIGHT_ERROR


def two_phase(config: TrialConfig, parent: VisionTransformer | None) -> tuple[VisionTransformer, dict[str, float]]:
    """A transformer that computes the same as the trained convolutional twin."""
    assert parent is not None
    model, _ = random(config, None)
    error = transfer(parent, model, config.attention_sharpness)
    return model, {TRANSFER_WEIGHT_ERROR: error}
