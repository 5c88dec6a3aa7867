"""Small networks for the tests."""
import torch
import torch.nn.functional as F
from torch import nn


def leaves(value):
    """The tensors in nested tuples, lists and dicts."""
    return torch.utils._pytree.tree_flatten(value)[0]


def randomise_norms(model):
    """Give batch normalisation statistics and scales that matter when folded."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, .2)
            module.running_var.uniform_(.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, .5, 1.5)
                nn.init.normal_(module.bias, 0, .2)
    return model


class Residual(nn.Module):
    """Stem with max pooling, a residual block of one shared ReLU module, a max pooling between spiking layers."""

    def __init__(self, channels=6):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.MaxPool2d(2)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.fc = nn.Linear(channels, 5)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        out = self.relu(self.bn2(self.conv2(x)))
        out = self.conv3(out)
        out += x
        out = self.pool(self.relu(out))
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))


class Functional(nn.Module):
    """Every spelling of ReLU, padding, slicing, concatenation, products with constants."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu6 = nn.ReLU6()
        self.scale = nn.Parameter(torch.rand(4, 1, 1) + .5)
        self.norm = randomise_norms(nn.BatchNorm2d(8))  # behind a concatenation: cannot be folded, stays affine
        self.conv2 = nn.Conv2d(8, 4, 3, stride=2, padding=1)

    def forward(self, x):
        a = F.relu(self.conv(x))
        b = torch.relu(a[:, :2] - .3)
        b = F.pad(b, (0, 0, 0, 0, 1, 1))
        c = torch.cat([self.relu6(self.scale * a * 4 - .5), b], 1)
        d = self.conv2(self.norm(c)).relu()
        return {'low': a.relu(), 'high': (d, F.interpolate(d, scale_factor=2.))}


def three_layers():
    """1 x 1 convolutions on one position: 1 -> 2 -> 3 channels and a linear layer to 4 outputs; all weights 1."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 3, 1, bias=False), nn.ReLU(),
                        nn.Flatten(), nn.Linear(3, 4, bias=False))
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    return net
