"""The ResNets for CIFAR of He et al. (2016), section 4.2, which mmpretrain does not have."""
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from .registry import MODELS


class Block(BaseModule):
    """Two 3x3 convolutions and a shortcut: the identity, an option-A slice or an option-B projection."""

    def __init__(self, in_channels: int, channels: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.stride = stride
        self.padding = (channels - in_channels) // 2
        self.downsample = None
        if projection and (stride > 1 or in_channels != channels):
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False),
                                            nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            shortcut = self.downsample(x)
        elif self.padding or self.stride > 1:
            shortcut = F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, self.padding, self.padding))
        else:
            shortcut = x
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + shortcut)


@MODELS.register_module()
class CifarResNet(BaseModule):
    """ResNet of depth 6n + 2: three stages of n blocks at 32, 16 and 8 pixels.

    Args:
        depth: 20, 32, 44, 56 or 110.
        base_channels: of the first stage; 16 in He et al., 64 in the calibration paper (appendix B.2).
        shortcut: where the size changes: ``'A'``, a strided slice with zero channels around it, or ``'B'``, a 1x1
            convolution.
        init_cfg: initialisation of the weights; Kaiming's by default.

    Raises:
        ValueError: no such depth or shortcut.
    """

    def __init__(self, depth: int, base_channels: int = 16, shortcut: str = 'A',
                 init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg or dict(type='Kaiming', layer='Conv2d'))
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f'depth must be 6n + 2, such as 20, 32 or 56, not {depth}')
        if shortcut not in ('A', 'B'):
            raise ValueError(f"shortcut must be 'A' or 'B', not {shortcut!r}")
        self.conv1 = nn.Conv2d(3, base_channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(base_channels)
        self.relu = nn.ReLU(inplace=True)
        in_channels = base_channels
        for stage in range(3):
            channels = base_channels * 2 ** stage
            blocks = []
            for index in range((depth - 2) // 6):
                blocks.append(Block(in_channels, channels, 2 if stage and not index else 1, shortcut == 'B'))
                in_channels = channels
            self.add_module(f'layer{stage + 1}', nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Return the last feature map of images (N, 3, 32, 32): ((N, 4 base_channels, 8, 8),)."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))),
