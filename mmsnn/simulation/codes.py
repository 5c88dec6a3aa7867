"""What neurons hand on as bytes: small integers, in units of the threshold, and what keeps sums of changes within them.
"""
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..neurons.differential import Differential
from ..neurons.layer import IFNeuron

BYTE = 255


class Code(NamedTuple):
    """How what a layer of neurons hands on is stored as bytes: ``code = k + zero_point``, in units of its threshold.

    A rate code hands on the spikes of a step. Differential coding hands on the sum of what has been sent, y, which
    follows a target, the activation in units of the threshold, however many steps there are. It comes to lie beyond
    the target by a quarter of the largest spike at most: that of 3/4 h to 3/2 h is h. So the byte holds y for all T if
    it holds the targets and that margin; larger ones are cut.

    Attributes:
        zero_point: the code of 0.
        low, high: the least and the largest target.
        whole: whether targets are rounded to whole thresholds first. What is sent in the end is the same; a difference
            of 2.5 thresholds or more, but less than 3, is met by 4 instead of 2.
    """

    zero_point: int
    low: int = 0
    high: int = BYTE
    whole: bool = False

    def encode(self, value: Tensor, threshold: Tensor) -> Tensor:
        """Bytes of what is handed on; ``threshold`` is broadcastable."""
        return (torch.round(value / threshold) + self.zero_point).to(torch.uint8)

    def decode(self, code: Tensor, threshold: Tensor) -> Tensor:
        """What was handed on; the inverse of :meth:`encode`."""
        return (code.to(threshold.dtype) - self.zero_point) * threshold

    def target(self, activation: Tensor) -> Tensor:
        """The target for an activation in units of the threshold."""
        limited = activation.clamp(self.low, self.high)
        return torch.round(limited) if self.whole else limited

    def largest(self, ceiling: float, threshold: Tensor) -> Tensor:
        """The largest target of an activation that is cut at ``ceiling``, where targets are whole."""
        return torch.round(ceiling / threshold).clamp(max=self.high)

    def change(self, rule: Differential, difference: Tensor) -> Tensor:
        """What is sent for a difference between target and sum, all in units of the threshold."""
        if self.whole and not rule.uniform and difference.device.type == 'cpu':
            return nearest_power(difference).clamp(-rule.highest, rule.highest)
        return rule.nearest(difference)


def nearest_power(value: Tensor) -> Tensor:
    """The nearest power of two, the larger one of two equally near, of whole numbers below 2**16 and 0; of either sign.

    Rounds to a mantissa of one bit as Dekker splits a number (*A Floating-Point Technique for Extending the Available
    Precision*, 1971): a third of the time of comparisons. Compilers that merge a product and a sum would break it.
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
    margin = 0 if rule.uniform else rule.highest // 4
    zero_point = margin if neuron.activation is None else 128
    code = Code(zero_point, margin - zero_point, BYTE - margin - zero_point, whole=rule.dead_zone == .5)
    return code if code.high >= 2 * rule.highest else None  # thresholds are chosen for what two steps reach


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
