"""`resnet`, a reference: a small residual network of about as many parameters."""

from cvit.config import TrialConfig
from cvit.models.reference import ResidualNetwork


def resnet(config: TrialConfig) -> ResidualNetwork:
    """The network, uninitialised."""
    return ResidualNetwork(config.model)
