"""`two_phase`: attention starts by computing the convolution that the first phase has trained (paper, section 4)."""

from cvit.config import TrialConfig
from cvit.init.random import random
from cvit.init.transfer import lost_energies, transfer
from cvit.models.vit import VisionTransformer
from cvit.vocabulary import TRANSFER_LOST_ENERGY, TRANSFER_WEIGHT_ERROR


def two_phase(config: TrialConfig, parent: VisionTransformer | None) -> tuple[VisionTransformer, dict[str, float]]:
    """A transformer that computes the same as the trained convolutional twin; in windows, all of it that does not cross
    them."""
    assert parent is not None
    model, _ = random(config, None)
    error = transfer(parent, model, config.attention_sharpness)
    metrics = {TRANSFER_WEIGHT_ERROR: error}
    if config.model.windows != (None, None):
        lost = lost_energies(parent, model)
        metrics[TRANSFER_LOST_ENERGY] = max(lost.values())
        metrics |= {f"{TRANSFER_LOST_ENERGY}/block{block}": energy for block, energy in lost.items()}
    return model, metrics
