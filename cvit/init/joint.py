"""`joint`: one set of weights is trained as a convolution and as attention in turn (after Zhang et al. 2021,
"Bootstrapping ViTs: Towards Liberating Vision Transformers from Pre-training", arXiv 2112.03552).

Even steps of the trial compute the weights as the factorized twin: each head passes on the values at its offset, and
queries, keys and relative bias are not used. Odd steps compute them as attention, and so do evaluation and test. There
is no switch between phases: each attention step continues from weights that a convolution step has just trained, with
one optimiser state and one schedule. What a step does not use does not move in it, as in `torch.optim.AdamW` for
parameters without a gradient. See `cvit.models.twin` and `cvit.training.readings`.

Both readings must agree at the start, so it starts like `conv_structured` with the factorized twin, whatever
`convolution_form` is.

The paper trains both readings of a batch together, and the ViT also learns from the intermediate features of the CNN.
Here each step has one reading and the common loss, so that every scheme takes the same number of steps.
"""

from dataclasses import replace

from cvit.config import TrialConfig
from cvit.init.conv_structured import conv_structured
from cvit.models.vit import VisionTransformer


def joint(config: TrialConfig, parent: VisionTransformer | None) -> tuple[VisionTransformer, dict[str, float]]:
    """A transformer that computes the same as its untrained factorized twin."""
    return conv_structured(replace(config, init=replace(config.init, convolution_form="factorized")), parent)
