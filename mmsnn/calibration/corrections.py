"""What calibrating a layer measures, and corrects in closed form: bias and initial potential [section 4.4]."""
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..distributed import largest as largest_of_all
from ..distributed import total
from ..neurons.layer import IFNeuron
from ..neurons.model import by_channel, with_channels
from ..neurons.pipelines import Pipeline
from ..neurons.thresholds import positive
from .walk import Layer


class Steps(Protocol):
    """Whatever counts the steps of a calibration, such as a progress bar."""

    def update(self, count: int = 1) -> None: ...


class Errors(NamedTuple):
    """How far a layer's firing rates are from the ANN's activations x, over all calibration images.

    Attributes:
        relative: ``sum (x - rate)**2 / sum x**2``.
        channel: mean of ``x - rate`` over images and positions, (C,).
        position: its mean over images alone, (C, H, W), where the pipeline calibrates per position.
        step: mean of ``x - s(t)`` over images and positions at each step t, (T, C), where it calibrates per step.
    """

    relative: float
    channel: Tensor
    position: Tensor | None = None
    step: Tensor | None = None


def measure(layer: Layer, pipeline: Pipeline, steps: Steps, keep: bool = False) -> Errors:
    """Simulate a layer over all batches; ``keep`` its spikes as the input of the layers behind."""
    by_position = pipeline.potential == 'position'
    position: Any = 0.  # like all sums, a tensor from the first batch on
    found: dict[int, list[Tensor]] = {}
    for index in range(len(layer.sweep.batches)) if by_position else layer.sweep.indices():
        activation = layer.activation(index)
        rate, by_step = layer.rate(index, keep, pipeline.bias_per_step)
        error, axis = with_channels(activation - rate), layer.neuron.channel_axis
        if index not in layer.norms:
            layer.norms[index] = activation.square().sum(dtype=torch.float64)
        found[index] = [torch.stack([
            error.square().sum(dtype=torch.float64), layer.norms[index],
            *error.new_tensor([len(error), error.numel() // error.shape[axis]], dtype=torch.float64)]),
            by_channel(error, axis).sum(1, dtype=torch.float64)]
        if by_position:  # maps: only their sum is kept
            position = position + error.sum(0, dtype=torch.float64)
        if by_step is not None:
            found[index].append(by_step)
        steps.update()
    # In one order, whichever the batches came in: squared errors, squares, images and positions; errors; spikes.
    sums, channel, *spikes = [sum(values) for values in zip(*(found[index] for index in sorted(found)))]
    total([sums, channel, *spikes] + [position] * by_position)
    squared, norm, images, count = sums.tolist()
    mean = (channel / count).float()
    step = None
    if pipeline.bias_per_step:
        activity = mean + (spikes[0].mean(0) / count).float()  # of the ANN
        step = activity - (spikes[0] / count).float()
    return Errors(squared / max(norm, 1e-30), mean,
                  (position / images).float() if by_position else None, step)


def correct_bias(neuron: IFNeuron, errors: Errors, pipeline: Pipeline, time_steps: int) -> None:
    """Add the mean error of each channel to its bias [section 4.4, LCP], or that of each step to the step's bias.

    Where the activation's slope is below one this corrects a part of the error only. On small trained networks of SiLU,
    GELU, hard-swish, tanh and sigmoid this was as good as dividing by the mean slope, and better than no correction.
    """
    neuron.bias = neuron.bias + (errors.channel if errors.step is None else errors.step)


def correct_potential(neuron: IFNeuron, errors: Errors, pipeline: Pipeline, time_steps: int) -> None:
    """Start T times the mean error higher, per position or, as the spatial mean, per channel [ACP, appendix B.4]."""
    error = errors.channel if errors.position is None else errors.position
    neuron.initial_potential = neuron.per_channel(neuron.initial_potential, error.unsqueeze(0)) + time_steps * error


def largest_current(layer: Layer, channel_wise: bool, steps: Steps) -> Tensor:
    """The largest current any neuron receives at any step, over all batches: (1,), or per channel, (C,)."""
    largest: Tensor | None = None
    for index in layer.sweep.indices():
        for currents in layer.currents(index):
            found = by_channel(currents.flatten(0, 1), layer.neuron.channel_axis).amax(1)
            largest = found if largest is None else torch.maximum(largest, found)
        steps.update()
    assert largest is not None
    largest = largest_of_all(largest)
    return positive(largest if channel_wise else largest.amax(0, keepdim=True))
