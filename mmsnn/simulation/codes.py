"""What neurons hand on as bytes: small integers, in units of the threshold, and what keeps sums of changes within them.
"""
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..neurons.differential import Differential
from ..neurons.layer import IFNeuron

BYTE = 255
LARGEST_SPIKE = 64  # differences are told apart up to 64 thresholds


class Code(NamedTuple):
    """How what a layer of neurons hands on is stored as bytes: ``code = k + zero_point``, in units of its threshold.

    A rate code hands on the spikes of a step. Differential coding hands on the sum of what has been sent, y, which
    follows a target, the activation in units of the threshold, however many steps there are. It comes to lie beyond
    the target by a quarter of the largest spike at most: that of 3/4 h to 3/2 h is h. So the byte holds y for all T if
    it holds the targets and that margin; larger ones are cut.

    Attributes:
        zero_point: the code of 0.
        low, high: the least and the largest target.
        halves: whether targets are known to half a threshold only, as the middle of [k/2, (k+1)/2). Whatever decides
            on the next spike, 1/2, 3/2, 3, 6 ... thresholds of difference, is a multiple of a half, so that the same is
            sent, but where a difference is exactly one of them.
    """

    zero_point: int
    low: int = 0
    high: int = BYTE
    halves: bool = False

    def encode(self, value: Tensor, threshold: Tensor) -> Tensor:
        """Bytes of what is handed on; ``threshold`` is broadcastable."""
        return (torch.round(value / threshold) + self.zero_point).to(torch.uint8)

    def decode(self, code: Tensor, threshold: Tensor) -> Tensor:
        """What was handed on; the inverse of :meth:`encode`."""
        return (code.to(threshold.dtype) - self.zero_point) * threshold

    def target(self, activation: Tensor) -> Tensor:
        """The target for an activation in units of the threshold."""
        if not self.halves:
            return activation.clamp(self.low, self.high)
        return torch.round(2 * activation - .5).clamp(2 * self.low, 2 * self.high) * .5 + .25

    def change(self, rule: Differential, difference: Tensor) -> Tensor:
        """What is sent for a difference between target and sum, all in units of the threshold."""
        usual = not rule.uniform and not isinstance(rule.scale, Tensor) and rule.scale == 1
        if self.halves and usual and difference.device.type == 'cpu':  # of a quarter nothing is left
            change = torch.round(nearest_power(difference)).clamp(-rule.largest, rule.largest)
            rounds = not isinstance(rule.dead_zone, Tensor) and rule.dead_zone == .5
            return change if rounds else torch.where(difference.abs() > rule.dead_zone, change, 0.)
        return rule.nearest(difference)


def nearest_power(value: Tensor) -> Tensor:
    """The nearest power of two, the larger one of two equally near, of either sign; of 0 it is 0.

    For numbers of at most 16 binary digits. It rounds to a mantissa of one digit as Dekker splits a number (*A
    Floating-Point Technique for Extending the Available Precision*, 1971), in a third of the time of comparisons. A
    compiler that merges a product and a sum would break it.
    """
    above = value * (1 + 2. ** -23)  # a tie is not rounded to even but up
    large = above * (2. ** 23 + 1)
    return large - (large - above)


def code_of(neuron: IFNeuron) -> Code | None:
    """The code of what a layer hands on, or None where a byte does not hold it."""
    rule = neuron.rule
    if not isinstance(rule, Differential):
        if rule.coding == 'differential':
            return None
        zero_point = 0 if rule.lowest >= 0 else 128
        return Code(zero_point) if rule.lowest + zero_point >= 0 and rule.highest + zero_point <= BYTE else None
    # Beyond the target lies a quarter of the largest spike at most, or half of the smallest while sizes shrink.
    margin = max(0 if rule.uniform else rule.highest // 4, rule.highest // rule.largest // 2)
    zero_point = margin if neuron.activation is None else 128
    low, high, halves = margin - zero_point, BYTE - margin - zero_point, in_halves(rule, neuron.time_steps)
    if halves:
        high = min(high, BYTE // 2)
    return Code(zero_point, low, high, halves) if high >= rule.reach - 1 and rule.highest <= LARGEST_SPIKE else None


def in_halves(rule: Differential, time_steps: int) -> bool:
    """Whether the dead zones of all steps are multiples of half a threshold, the last one is a half."""
    steps = [rule.at(step, time_steps) for step in range(time_steps)]
    zones = [float(each.dead_zone * each.scale) for each in steps]
    return zones[-1] == .5 and all(zone % .5 == 0 for zone in zones)


class Decoder(nn.Module):
    """The values that a layer hands on, of their bytes, (N, ...).

    Args:
        neuron: the layer.
        code: of its bytes.
        dimensions: of one step.
    """

    threshold: Tensor

    def __init__(self, neuron: IFNeuron, code: Code, dimensions: int) -> None:
        super().__init__()
        self.code = code
        self.register_buffer('threshold', neuron.threshold.view(-1, *[1] * (dimensions - 2)).clone())

    def forward(self, codes: Tensor) -> Tensor:
        return self.code.decode(codes, self.threshold)
