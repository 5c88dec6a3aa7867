"""What a simulation costs: spikes, and the synaptic operations that they cause.

A spike that arrives at a convolution or linear layer is added, weighted, to every output it is connected to: one
synaptic operation each. A negative spike counts as one, a burst of k spikes as k.
"""
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ..simulation.network import SpikingNetwork
from ..simulation.plan import Env
from .connections import Connectome, analyse, connections

__all__ = ['Cost', 'CostCounter', 'connections', 'together']


OPERATIONS = 'ann_macs', 'analog_macs', 'graded_operations', 'synaptic_operations', 'event_operations'


@dataclass
class Cost:
    """Sums over all images seen.

    Attributes:
        images: how many.
        spikes: of each layer of neurons, by size: a burst of k, or a spike of k times the threshold, counts as k.
        events: the same, whatever their size.
        neurons: of each layer of neurons, summed over images (image sizes may differ).
        synaptic_operations: caused by the spikes of each layer of neurons.
        analog_macs: multiply-accumulate operations on the image itself: the layers before the first neurons, which
            direct coding computes once per image.
        ann_macs: of the whole ANN, graded units included.
        graded_operations: of graded units, see :attr:`SpikingNetwork.graded`, at all T steps: the multiply-accumulates
            of products, and one for each element that any other operation reads; and the multiply-accumulates of layers
            that read no spikes but what other layers give, as the output convolutions of a pyramid in a rate code.
        layers: the same by layer of weights, or graded unit, where the operations take place, by its name in the
            network: ``ann_macs``, ``analog_macs``, ``graded_operations``, ``synaptic_operations``, and
            ``event_operations``, where a spike of any size is one.
    """

    images: int = 0
    spikes: dict[str, float] = field(default_factory=dict)
    events: dict[str, float] = field(default_factory=dict)
    neurons: dict[str, int] = field(default_factory=dict)
    synaptic_operations: dict[str, float] = field(default_factory=dict)
    analog_macs: int = 0
    ann_macs: int = 0
    graded_operations: int = 0
    layers: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, layer: str, **operations: float) -> None:
        """Add to what a layer of weights, or graded unit, has computed."""
        sums = self.layers.setdefault(layer, dict.fromkeys(OPERATIONS, 0))
        for kind, count in operations.items():
            sums[kind] += count

    def per_image(self) -> dict[str, float]:
        """Synaptic operations by size and by events, spikes per neuron (in all T steps), and MACs, of a mean image."""
        images = max(self.images, 1)
        events = sum(operations * self.events[layer] / max(self.spikes[layer], 1)
                     for layer, operations in self.synaptic_operations.items())
        return dict(synaptic_operations=sum(self.synaptic_operations.values()) / images,
                    event_operations=events / images,
                    spikes_per_neuron=sum(self.spikes.values()) / max(sum(self.neurons.values()), 1),
                    analog_macs=self.analog_macs / images, ann_macs=self.ann_macs / images,
                    graded_operations=self.graded_operations / images)


def together(costs: list[Cost]) -> Cost:
    """The cost of a model's parts in one; the first tells how many images there were (others may see proposals)."""
    total = Cost(images=costs[0].images)
    for number, cost in enumerate(costs):
        for name in ('spikes', 'events', 'neurons', 'synaptic_operations'):
            getattr(total, name).update({f'{number}.{layer}' if number else layer: value
                                         for layer, value in getattr(cost, name).items()})
        for layer, operations in cost.layers.items():
            total.add(f'{number}.{layer}' if number else layer, **operations)
        total.analog_macs += cost.analog_macs
        total.ann_macs += cost.ann_macs
        total.graded_operations += cost.graded_operations
    return total


class CostCounter:
    """Counts the cost of every simulation of a network while it is active::

        with CostCounter(snn) as counter:
            snn(images)
        print(counter.cost.per_image())
    """

    def __init__(self, snn: SpikingNetwork) -> None:
        self.snn = snn
        self.cost = Cost()
        self._recorders: dict[str, Callable[[float, float], None]] = {}
        self._fan_out: dict[str, dict[str, float]] = {}
        self._shapes: dict[tuple, Connectome] = {}

    def __enter__(self) -> 'CostCounter':
        self.snn.recorders.append(self._simulated)
        for name, neuron in self.snn.neurons.items():
            self._recorders[name] = self._recorder(name)
            neuron.recorders.append(self._recorders[name])
        return self

    def __exit__(self, *_exception) -> None:
        self.snn.recorders.remove(self._simulated)
        for name, recorder in self._recorders.items():
            self.snn.neurons[name].recorders.remove(recorder)
        self._recorders = {}

    def _simulated(self, values: Env, steps: int) -> None:
        key = tuple(tuple(value.shape) for value in values.values() if isinstance(value, Tensor))
        if key not in self._shapes:
            self._shapes[key] = analyse(self.snn, values)
            self._log(key)
        connectome = self._shapes[key]
        self._fan_out = connectome.fan_out
        self.cost.images += next(len(value) for value in values.values() if isinstance(value, Tensor))
        self.cost.analog_macs += connectome.analog
        self.cost.ann_macs += connectome.total
        self.cost.graded_operations += connectome.graded(steps)
        for name, count in connectome.neurons.items():
            self.cost.neurons[name] = self.cost.neurons.get(name, 0) + count
        for name, operations in connectome.operations(steps):
            self.cost.add(name, **operations)

    def _log(self, key: tuple) -> None:
        """Say once how much graded units compute."""
        connectome = self._shapes[key]
        if len(self._shapes) == 1 and connectome.units:
            each = sum(connectome.units.values())
            logging.getLogger(__name__).info(
                '%d graded units do %.1f %% of the operations of the ANN at each step: %s', len(connectome.units),
                100 * each / max(connectome.total + each - connectome.products, 1),
                ', '.join(f'{name} ({count / each:.0%})' for name, count in connectome.units.items()))

    def _recorder(self, name: str) -> Callable[[float, float], None]:
        def record(events: float, count: float) -> None:
            self.cost.events[name] = self.cost.events.get(name, 0) + events
            self.cost.spikes[name] = self.cost.spikes.get(name, 0) + count
            fan_out = self._fan_out.get(name, {})
            operations = count * sum(fan_out.values())
            self.cost.synaptic_operations[name] = self.cost.synaptic_operations.get(name, 0.) + operations
            for layer, each in fan_out.items():
                self.cost.add(layer, synaptic_operations=count * each, event_operations=events * each)
        return record
