"""The second reading of an attention model: its weights computed as its convolutional twin, without attention."""

import torch
from torch import nn

from cvit.models.vit import VisionTransformer
from cvit.vocabulary import CONVOLUTION


def twin_reading(model: nn.Module) -> VisionTransformer:
    """The factorized twin of an attention model or of a pack of them.

    Its parameters are those of the model with the same names, not copies: all but queries, keys and relative bias.
    """
    assert isinstance(model, VisionTransformer)
    with torch.device("meta"):
        twin = VisionTransformer(model.config, CONVOLUTION, "factorized")
    for name, _ in list(twin.named_parameters()):
        module, _, kind = name.rpartition(".")
        setattr(twin.get_submodule(module), kind, model.get_parameter(name))
    return twin
