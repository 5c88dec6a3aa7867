"""Convolutions on 8-bit integers: spikes are small integers times a threshold, which moves into the weights [Eq. 5].

With spikes k h of the channels before, and weights W that are rounded to 8 bits per output channel::

    sum(W k h) = scale * sum(q k),    q = round(W h / scale),    scale = max |W h| / 127

The sum of integers is exact in 32 bits: no order of summing changes a bit of it. Spikes are stored as bytes with a zero
point, and oneDNN multiplies bytes faster than any other format.
"""
import itertools
import logging
import weakref
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .codes import BYTE, Code, code_of
from .operations import computes_as, source_of
from .plan import Plan, is_neuron

LARGEST = 127  # of rounded weights; -128 is left out so that the range is symmetric
WEIGHT_BITS = 8


def integer_layers(plan: Plan) -> dict[fx.Node, fx.Node]:
    """The convolutions that can work on integers, each with the layer of neurons that it reads.

    One of so many products that 32 bits might not hold their sum, more than 66,000 for an output, cannot.

    Raises:
        ValueError: no convolution can, because no layer's spikes fit into a byte.
    """
    found, refused = {}, {}
    for node in plan.varying:
        module = plan.modules[node]
        if not computes_as(module, (nn.Conv2d,)) or len(node.all_input_nodes) != 1 or not is_neuron(source_of(node)):
            continue
        source = source_of(node)
        neuron = plan.modules.get(source)
        fits = module.weight[0].numel() * LARGEST * BYTE < 2 ** 31  # the largest sum there can be
        if isinstance(module.padding, str) or module.padding_mode != 'zeros' or neuron is None \
                or neuron.channel_axis != 1 or not fits:
            continue
        if code_of(neuron) is None:
            refused[source] = neuron
        else:
            found[node] = source
    if refused and not found:
        node, neuron = next(iter(refused.items()))
        raise ValueError(
            f"dtype='int8' stores what neurons hand on in a byte, and {neuron.rule!r} at {node.target} hands on more "
            "than that. Use fewer sizes, or dtype='bfloat16'")
    return found


def coded_layers(plan: Plan, layers: Mapping[fx.Node, fx.Node]) -> dict[fx.Node, Code]:
    """The layers of neurons that hand on bytes, of the spikes that ``layers`` read or of sums."""
    found = {}
    for node in plan.varying:
        neuron = plan.modules[node]
        if is_neuron(node) and (node in layers.values() or neuron.rule.coding == 'differential'):
            code = code_of(neuron) if neuron.channel_axis == 1 else None
            if code is not None:
                found[node] = code
    return found


def round_weights(weight: Tensor, threshold: Tensor, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Round the weights of a convolution to 8 bits for each output channel, thresholds folded into them.

    Args:
        weight: (C_out, C_in / groups, ...).
        threshold: of the neurons before, (1,) or (C_in,).
        groups: of the convolution.

    Returns:
        Integers from -127 to 127 of the shape of the weights, int8, and the scale of each output channel, (C_out,).
        Rounding what has been rounded, ``integers * scale / threshold``, gives the same again.
    """
    driven = weight.double() * _of_inputs(weight, threshold, groups)
    scale = driven.abs().flatten(1).amax(1) / LARGEST
    # A product of two numbers of 24 bits each has an error: what was rounded before must not move to a neighbour.
    scale = torch.where(scale > 0, scale, 1.).float()
    shape = -1, *[1] * (weight.ndim - 1)
    return (driven / scale.double().view(shape)).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


def _of_inputs(weight: Tensor, threshold: Tensor, groups: int) -> Tensor:
    """The threshold that each weight is multiplied with, broadcastable with (C_out, C_in / groups, ...)."""
    inputs = weight.shape[1]
    spread = threshold.double().expand(inputs * groups).view(groups, 1, inputs)
    spread = spread.expand(groups, weight.shape[0] // groups, inputs).reshape(weight.shape[0], inputs)
    return spread.view(*spread.shape, *[1] * (weight.ndim - 2))


@torch.no_grad()
def round_network(plan: Plan) -> None:
    """Round the weights of all convolutions that can work on integers, in place: what ``dtype='int8'`` computes with.

    Thresholds must have been chosen. Calibrating bias and potential afterwards absorbs the error of rounding.
    """
    layers = integer_layers(plan)
    uses = Counter(id(getattr(module, 'weight', None)) for module in plan.modules.values())
    for node, source in layers.items():
        conv, threshold = plan.modules[node], plan.modules[source].threshold
        if uses[id(conv.weight)] > 1:  # behind neurons of several thresholds: rounded for each call by itself
            continue
        integers, scale = round_weights(conv.weight, threshold, conv.groups)
        shape = -1, *[1] * (conv.weight.ndim - 1)
        rounded = integers.double() * scale.double().view(shape) / _of_inputs(conv.weight, threshold, conv.groups)
        conv.weight.copy_(rounded)


class IntegerConvolution(nn.Module):
    """A convolution of what neurons hand on, stored as bytes.

    Args:
        conv: the convolution.
        threshold: of the neurons before, (1,) or (C_in,).
        code: of what they hand on.
    """

    def __init__(self, conv: nn.Conv2d, threshold: Tensor, code: Code) -> None:
        super().__init__()
        self.weight, scale = round_weights(conv.weight.detach(), threshold, conv.groups)
        self.bias = None if conv.bias is None else conv.bias.detach().float().clone()
        self.scale = scale.contiguous()
        assert not isinstance(conv.padding, str)
        self.stride: list[int] = list(conv.stride)
        self.padding: list[int] = list(conv.padding)
        self.dilation: list[int] = list(conv.dilation)
        self.groups, self.zero_point = conv.groups, code.zero_point
        self.number = next(_numbers)
        self._zeros = torch.zeros(len(scale), dtype=torch.int32)
        self._packed: Tensor | None = None
        _LAYERS[self.number] = self

    def forward(self, codes: Tensor) -> Tensor:
        """Convolve codes, (N, C_in, H, W), uint8."""
        if has_integers() and codes.device.type == 'cpu':
            return torch.ops.mmsnn.integer_convolution(codes, self.number)
        values = codes.float() - self.zero_point
        sums = F.conv2d(values, self.weight.to(values), None, self.stride, self.padding, self.dilation, self.groups)
        result = sums * self.scale.to(values).view(-1, 1, 1)
        return result if self.bias is None else result + self.bias.to(values).view(-1, 1, 1)

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_packed': None}

    def convolve(self, codes: Tensor) -> Tensor:
        """The same by oneDNN, which wants its own arrangement of the weights: made once."""
        if self._packed is None:
            self._packed = torch.ops.onednn.qconv_prepack(
                self.weight, self.scale, 1., self.zero_point, self.stride, self.padding, self.dilation, self.groups,
                list(codes.shape))
        return torch.ops.onednn.qconv2d_pointwise(
            codes, 1., self.zero_point, self._packed, self.scale, self._zeros, self.bias, self.stride, self.padding,
            self.dilation, self.groups, 1., 0, torch.float32, 'none', [], '')


def convolved(conv: Any, x: Tensor) -> tuple[int, ...]:
    """The shape of what a convolution makes of ``x``."""
    sizes = [(size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1 for size, pad, dilation, kernel, stride
             in zip(x.shape[2:], conv.padding, conv.dilation, conv.weight.shape[2:], conv.stride)]
    return x.shape[0], conv.weight.shape[0], *sizes


_numbers = itertools.count()
_LAYERS: weakref.WeakValueDictionary[int, IntegerConvolution] = weakref.WeakValueDictionary()


def has_integers() -> bool:
    """Whether this torch, on this processor, has oneDNN's convolutions on bytes."""
    return _LIBRARY is not None


def check_integers() -> bool:
    """The same; says so where it has not."""
    if not has_integers():
        logging.getLogger(__name__).warning(
            "dtype='int8' needs a processor with AVX-512 VNNI or AMX and torch 2.4 or newer: the same integers are "
            'computed in float32, which is slower')
    return has_integers()


def _supported() -> bool:
    flags = torch.backends.cpu.get_cpu_capability() if hasattr(torch.backends, 'cpu') else ''
    return (hasattr(torch.library, 'register_fake') and torch.backends.mkldnn.is_available()
            and 'onednn' in torch.backends.quantized.supported_engines and 'AVX512' in flags.replace('_', '')
            and torch.cpu._is_vnni_supported())


def _define() -> torch.library.Library:
    """An operation of torch's own: a compiler takes it as it is.

    Registered without ``torch.library.custom_op``, whose calls take a quarter of a millisecond each.
    """
    library = torch.library.Library('mmsnn', 'FRAGMENT')
    library.define('integer_convolution(Tensor codes, int number) -> Tensor',
                   tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    library.impl('integer_convolution', lambda codes, number: _LAYERS[number].convolve(codes), 'CPU')

    @torch.library.register_fake('mmsnn::integer_convolution', lib=library)
    def _(codes: Tensor, number: int) -> Tensor:
        layer = _LAYERS[number]
        return torch.empty(convolved(layer, codes), dtype=torch.float32, device=codes.device,
                           memory_format=torch.channels_last)

    return library


_LIBRARY = _define() if _supported() else None
