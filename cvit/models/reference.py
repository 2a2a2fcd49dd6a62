"""A small residual network (He et al. 2016), a convolutional reference beside the transformers."""

from torch import Tensor, nn
from torch.nn import functional as F

from cvit.config import ModelConfig
from cvit.models.layers import Conv2d, GroupNorm, Linear
from cvit.models.sizes import NORM_GROUPS, WIDENING, network_size


class ResidualNetwork(nn.Module):
    """The CIFAR network of He et al.: a 3×3 convolution, three groups of n basic blocks with w, 2w and 4w channels, the
    second and third beginning with stride 2, global average pooling, and a linear head. Group norm replaces batch norm.

    Its depth and width follow from the transformer's: n = depth / 3, rounded, at least 1, gives about as many blocks. w
    is the multiple of 4 for which the blocks have about as many weights as a transformer whose heads are together as
    wide as a token, (4 + 2 · mlp_ratio) · depth · embed_dim². Heads, patches and position encoding have no influence.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        num_blocks, width = network_size(config)
        self.stem = nn.Sequential(*_convolution(config.in_channels, width, 3, 1), nn.ReLU())
        blocks, channels = [], width
        for factor in WIDENING:
            for i in range(num_blocks):
                stride = 2 if i == 0 and factor > 1 else 1
                blocks.append(ResidualBlock(channels, factor * width, stride))
                channels = factor * width
        self.blocks = nn.Sequential(*blocks)
        self.head = Linear(channels, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, in_channels, image_size, image_size) → class logits (B, num_classes)."""
        return self.head(self.blocks(self.stem(images)).mean(dim=(-2, -1)))


class ResidualBlock(nn.Module):
    """relu(images + two normed 3×3 convolutions of them); a 1×1 convolution on the shortcut if the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *_convolution(in_channels, out_channels, 3, stride),
            nn.ReLU(),
            *_convolution(out_channels, out_channels, 3, 1),
        )
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(in_channels, out_channels, 1, stride))

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, ⌈H / stride⌉, ⌈W / stride⌉)."""
        return F.relu(self.shortcut(images) + self.residual(images))


def _convolution(in_channels: int, out_channels: int, kernel_size: int, stride: int) -> tuple[nn.Module, nn.Module]:
    convolution = Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return convolution, GroupNorm(NORM_GROUPS, out_channels)
