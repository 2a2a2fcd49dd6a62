"""A small residual network (He et al. 2016), a convolutional reference beside the transformers."""

from torch import Tensor, nn
from torch.nn import functional as F

from cvit.config import ModelConfig
from cvit.models.layers import Convolution, GroupNorm, Linear
from cvit.models.sizes import KERNEL_SIZE, NORM_GROUPS, WIDENING, network_size, stem_kernel, stem_stride


class ResidualNetwork(nn.Module):
    """The CIFAR network of He et al.: a 3×3 convolution, three groups of n basic blocks with w, 2w and 4w channels, the
    second and third beginning with stride 2, global average pooling, and a linear head. Group norm replaces batch norm.

    Its depth and width follow from the transformer's: n = depth / 3, rounded, at least 1, gives about as many blocks. w
    is the multiple of 4 for which the blocks have about as many weights as a transformer whose heads are together as
    wide as a token, (4 + 2 · mlp_ratio) · depth · embed_dim². Heads, patches and position encoding have no influence.

    On sequences convolutions have 3 taps. The first one of a long sequence has a stride that leaves 128 to 255 places,
    and a kernel that reaches one stride both ways.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        num_blocks, width = network_size(config)
        self.axes = config.dimensions
        stem = Convolution(config.in_channels, width, self.axes, stem_kernel(config), stem_stride(config))
        self.stem = nn.Sequential(stem, GroupNorm(NORM_GROUPS, width), nn.ReLU())
        blocks, channels = [], width
        for factor in WIDENING:
            for i in range(num_blocks):
                stride = 2 if i == 0 and factor > 1 else 1
                blocks.append(ResidualBlock(channels, factor * width, self.axes, stride))
                channels = factor * width
        self.blocks = nn.Sequential(*blocks)
        self.head = Linear(channels, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, in_channels, *shape) → class logits (B, num_classes); in a pack (M, ...)."""
        return self.head(self.blocks(self.stem(images)).mean(dim=tuple(range(-self.axes, 0))))


class ResidualBlock(nn.Module):
    """relu(images + two normed 3×3 convolutions of them); a 1×1 convolution on the shortcut if the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, axes: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            Convolution(in_channels, out_channels, axes, KERNEL_SIZE, stride),
            GroupNorm(NORM_GROUPS, out_channels),
            nn.ReLU(),
            Convolution(out_channels, out_channels, axes, KERNEL_SIZE, 1),
            GroupNorm(NORM_GROUPS, out_channels),
        )
        shortcut = (Convolution(in_channels, out_channels, axes, 1, stride), GroupNorm(NORM_GROUPS, out_channels))
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Sequential(*shortcut)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, *shape) → (B, out_channels, *shape / stride, rounded up)."""
        return F.relu(self.shortcut(images) + self.residual(images))
