"""Local threshold balancing [Bu et al., Inference-Scale Complexity in ANN-SNN Conversion, CVPR 2025]."""
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..distributed import number_of, owner, processes, send
from ..neurons.layer import IFNeuron
from ..neurons.model import by_channel
from ..neurons.thresholds import positive
from ..progress import progress_bar
from ..simulation.network import SpikingNetwork
from .batches import Batch, call_with, tensors_of

BATCHES = 160


@torch.no_grad()
def balanced_thresholds(snn: SpikingNetwork, batches: Iterable[Batch], channel_wise: bool = True,
                        count: int = BATCHES, progress: bool = False) -> dict[str, Tensor]:
    """Let thresholds grow until little of the ANN's activation exceeds them.

    From h = 0 on, each batch moves the thresholds of every layer by the gradient of the clipped part's square, and
    the layers behind receive what is left, z being a layer's input in the ANN::

        h += 2 mean(relu(z - h));   output clip(z, 0, h)

    Args:
        snn: a converted network.
        batches: calibration inputs, repeated as often as needed.
        channel_wise: one threshold per channel (the mean is over images and positions), or one per layer.
        count: batches in all; the published setting is 160.
        progress: show a progress bar.

    Returns:
        For each layer of neurons its thresholds, positive, shape (C,) or (1,).
    """
    thresholds: dict[str, Tensor] = {}

    def watch(name: str):
        def hook(neuron: nn.Module, _inputs: tuple, activation: Tensor) -> Tensor:
            assert isinstance(neuron, IFNeuron)
            values = by_channel(activation, neuron.channel_axis) if channel_wise else activation.reshape(1, -1)
            threshold = thresholds.get(name, values.new_zeros(len(values)))
            thresholds[name] = threshold + 2 * (values - threshold[:, None]).relu().mean(1)
            return torch.minimum(activation, neuron.per_channel(thresholds[name], activation))
        return hook

    handles = [neuron.register_forward_hook(watch(name)) for name, neuron in snn.neurons.items()]
    try:
        batches = list(batches)
        device = tensors_of(batches[0])[0].device
        number = number_of(batches, device)
        for step in progress_bar(range(count), 'thresholds', unit='batch', disable=not progress):
            process, index = owner(step % number)
            if step == 0 or process == processes()[0]:
                call_with(snn.network, batches[index])  # the first time everywhere, which tells the number of channels
            send(thresholds.values(), process)
    finally:
        for handle in handles:
            handle.remove()
    return {name: positive(threshold) for name, threshold in thresholds.items()}
