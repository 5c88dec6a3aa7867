"""What a simulation costs: spikes, and the synaptic operations that they cause.

A spike that arrives at a convolution or linear layer is added, weighted, to every output it is connected to: one
synaptic operation each. A negative spike counts as one, a burst of k spikes as k.
"""
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeGuard

import torch
from torch import Tensor, fx, nn

from ..simulation.network import SpikingNetwork, neuron_name
from ..simulation.operations import module_of
from ..simulation.plan import Env, evaluate, is_neuron

Weighted = nn.Linear | nn.modules.conv._ConvNd  # layers whose outputs are connected to their inputs


@dataclass
class Cost:
    """Sums over all images seen.

    Attributes:
        images: how many.
        spikes: of each layer of neurons.
        neurons: of each layer of neurons, summed over images (image sizes may differ).
        synaptic_operations: caused by the spikes of each layer of neurons.
        analog_macs: multiply-accumulate operations on the image itself: the layers before the first neurons, which
            direct coding computes once per image.
        ann_macs: of the whole ANN.
    """

    images: int = 0
    spikes: dict[str, float] = field(default_factory=dict)
    neurons: dict[str, int] = field(default_factory=dict)
    synaptic_operations: dict[str, float] = field(default_factory=dict)
    analog_macs: int = 0
    ann_macs: int = 0

    def per_image(self) -> dict[str, float]:
        """Synaptic operations, spikes per neuron (during all T steps), and MACs, averaged over the images."""
        images = max(self.images, 1)
        return dict(synaptic_operations=sum(self.synaptic_operations.values()) / images,
                    spikes_per_neuron=sum(self.spikes.values()) / max(sum(self.neurons.values()), 1),
                    analog_macs=self.analog_macs / images, ann_macs=self.ann_macs / images)


class CostCounter:
    """Counts the cost of every simulation of a network while it is active::

        with CostCounter(snn) as counter:
            snn(images)
        print(counter.cost.per_image())
    """

    def __init__(self, snn: SpikingNetwork) -> None:
        self.snn = snn
        self.cost = Cost()
        self._handles: list = []
        self._recorders: dict[str, Callable[[float], None]] = {}
        self._fan_out: dict[str, float] = {}
        self._shapes: dict[tuple, tuple] = {}

    def __enter__(self) -> 'CostCounter':
        self._handles = [self.snn.register_forward_pre_hook(self._before, with_kwargs=True)]
        for name, neuron in self.snn.neurons.items():
            self._recorders[name] = self._recorder(name)
            neuron.recorders.append(self._recorders[name])
        return self

    def __exit__(self, *_exception) -> None:
        for handle in self._handles:
            handle.remove()
        for name, recorder in self._recorders.items():
            self.snn.neurons[name].recorders.remove(recorder)
        self._handles, self._recorders = [], {}

    def _before(self, _snn: SpikingNetwork, args: tuple, kwargs: dict) -> None:
        values = self.snn.bind(*args, **kwargs)
        key = tuple(tuple(value.shape[1:]) for value in values.values() if isinstance(value, Tensor))
        if key not in self._shapes:
            self._shapes[key] = analyse(self.snn, values)
        self._fan_out, neurons, analog_macs, ann_macs = self._shapes[key]
        images = next(len(value) for value in values.values() if isinstance(value, Tensor))
        self.cost.images += images
        self.cost.analog_macs += analog_macs * images
        self.cost.ann_macs += ann_macs * images
        for name, count in neurons.items():
            self.cost.neurons[name] = self.cost.neurons.get(name, 0) + count * images

    def _recorder(self, name: str) -> Callable[[float], None]:
        def record(count: float) -> None:
            self.cost.spikes[name] = self.cost.spikes.get(name, 0) + count
            operations = count * self._fan_out.get(name, 0.)
            self.cost.synaptic_operations[name] = self.cost.synaptic_operations.get(name, 0.) + operations
        return record


@torch.no_grad()
def analyse(snn: SpikingNetwork, values: Env) -> tuple[dict[str, float], dict[str, int], int, int]:
    """Count connections by passing one image through the ANN.

    Args:
        snn: the network.
        values: of its placeholders; the first image of the batch is used.

    Returns:
        For each layer of neurons the mean number of outputs that a neuron is connected to (its fan-out) and the
        number of neurons; the MACs of the layers before the first neurons, and those of the whole ANN.
    """
    env = {node: value[:1] if isinstance(value, Tensor) else value for node, value in values.items()}
    fan_out: dict[str, float] = {}
    neurons: dict[str, int] = {}
    analog = total = 0
    for node in (*snn.plan.static, *snn.plan.varying):
        module = snn.plan.modules[node]
        env[node] = evaluate(node, env, module)
        if is_neuron(node):
            name = neuron_name(node)
            neurons[name], fan_out[name] = env[node].numel(), fan_out.get(name, 0.)
        elif has_weights(module):
            incoming = node.all_input_nodes[0]
            macs = connections(module, env[incoming], env[node])
            total += macs
            if node not in snn.plan.varies:
                analog += macs
            for source in feeding_neurons(incoming):
                name = neuron_name(source)
                fan_out[name] = fan_out.get(name, 0.) + macs / env[incoming].numel()
    return fan_out, neurons, analog, total


def has_weights(module: nn.Module | None) -> TypeGuard[Weighted]:
    """True for convolutions and linear layers, whose outputs are connected to their inputs."""
    return isinstance(module, Weighted)


def connections(module: Weighted, incoming: Tensor, outgoing: Tensor) -> int:
    """Multiply-accumulate operations of a convolution or linear layer, those with padding included."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return incoming.numel() * module.weight[0].numel()
    return outgoing.numel() * module.weight[0].numel()


def feeding_neurons(node: fx.Node) -> set[fx.Node]:
    """The layers of neurons whose spikes reach a node through nothing but weightless operations."""
    found, stack, seen = set(), [node], set()
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        if is_neuron(current):
            found.add(current)
            continue
        module = module_of(current)
        if module is None or not any(True for _ in module.parameters()):
            stack.extend(current.all_input_nodes)
    return found
