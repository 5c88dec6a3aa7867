"""What a simulation costs: spikes, and the synaptic operations that they cause.

A spike that arrives at a convolution or linear layer is added, weighted, to every output it is connected to: one
synaptic operation each. A negative spike counts as one, a burst of k spikes as k.
"""
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from ..simulation.network import SpikingNetwork, neuron_name
from ..simulation.operations import NORMS, module_of, reads_shape, source_of
from ..simulation.plan import Env, is_neuron
from ..simulation.rectifiers import varying_nodes
from ..simulation.weighted import Weighted, has_weights, weighted_input

# They make several elements of one, or add elements that are not connected to any neuron.
GROWING = (nn.Upsample, *(getattr(nn, f'{kind}{dimensions}d') for dimensions in (1, 2, 3) for kind in (
    'ZeroPad', 'ConstantPad', 'CircularPad', 'ReflectionPad', 'ReplicationPad')))
GROWING_FUNCTIONS = {F.pad, F.interpolate, torch.repeat_interleave, torch.tile, 'repeat', 'expand', 'expand_as',
                     'repeat_interleave', 'tile'}


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
    """

    images: int = 0
    spikes: dict[str, float] = field(default_factory=dict)
    events: dict[str, float] = field(default_factory=dict)
    neurons: dict[str, int] = field(default_factory=dict)
    synaptic_operations: dict[str, float] = field(default_factory=dict)
    analog_macs: int = 0
    ann_macs: int = 0
    graded_operations: int = 0

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
        total.analog_macs += cost.analog_macs
        total.ann_macs += cost.ann_macs
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
        self._handles: list = []
        self._recorders: dict[str, Callable[[float, float], None]] = {}
        self._fan_out: dict[str, float] = {}
        self._shapes: dict[tuple, _Connectome] = {}

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
        key = tuple(tuple(value.shape) for value in values.values() if isinstance(value, Tensor))
        if key not in self._shapes:
            self._shapes[key] = analyse(self.snn, values)
            self._log(key)
        connectome = self._shapes[key]
        self._fan_out = connectome.fan_out
        self.cost.images += next(len(value) for value in values.values() if isinstance(value, Tensor))
        self.cost.analog_macs += connectome.analog
        self.cost.ann_macs += connectome.total
        self.cost.graded_operations += connectome.graded(self.snn.time_steps)
        for name, count in connectome.neurons.items():
            self.cost.neurons[name] = self.cost.neurons.get(name, 0) + count

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
            operations = count * self._fan_out.get(name, 0.)
            self.cost.synaptic_operations[name] = self.cost.synaptic_operations.get(name, 0.) + operations
        return record


@torch.no_grad()
def analyse(snn: SpikingNetwork, values: Env) -> '_Connectome':
    """Count connections by passing a batch through the ANN.

    Args:
        snn: the network.
        values: of its placeholders.

    Returns:
        For each layer of neurons the mean number of outputs that a neuron is connected to (``fan_out``) and the number
        of ``neurons``; the MACs of the layers before the first neurons (``analog``), and those of the whole ANN
        (``total``); the operations of graded ``units``.
    """
    connectome = _Connectome(snn.network, snn.graded)
    connectome.run(*values.values())
    connectome.env = {}
    return connectome


class _Connectome(fx.Interpreter):
    """Runs the ANN node by node, forgetting values that nobody needs, and counts what each node connects."""

    def __init__(self, network: fx.GraphModule, graded: Collection[str]) -> None:
        super().__init__(network)
        self.is_graded = set(graded)
        self.varies = varying_nodes(network.graph)
        self.fan_out: dict[str, float] = {}
        self.neurons: dict[str, int] = {}
        self.sizes: dict[fx.Node, int] = {}
        self.analog = self.total = 0
        self.units: dict[str, int] = {}  # what each graded unit computes in one step
        self.constant: set[str] = set()  # of them, those that compute once
        self.products = 0  # multiply-accumulates of graded units

    def graded(self, time_steps: int) -> int:
        """Operations of graded units in T steps."""
        return sum(count * (1 if name in self.constant else time_steps) for name, count in self.units.items())

    def run_node(self, n: fx.Node) -> Any:
        result = self._run(n)
        if isinstance(result, Tensor):
            self.sizes[n] = result.numel()
        return result

    def _run(self, n: fx.Node) -> Any:
        if is_neuron(n):
            result = super().run_node(n)
            self.neurons[neuron_name(n)] = result.numel()
            self.fan_out.setdefault(neuron_name(n), 0.)
            return result
        if n.name in self.is_graded:
            return self._run_graded(n)
        incoming = weighted_input(n, self.varies)
        if incoming is None:
            return super().run_node(n)
        module, given = module_of(n), self.env[incoming]
        if has_weights(module):
            result = super().run_node(n)
            macs = connections(module, given, result)
        else:
            with FlopCounterMode(display=False) as counter:
                result = super().run_node(n)
            macs = counter.get_total_flops() // 2
        self.total += macs
        if n not in self.varies:
            self.analog += macs
        elif reads_no_spikes(incoming, self.varies):
            self.units[n.name] = macs
            self.products += macs
            return result
        for source, copies in feeding_neurons(incoming, self.varies, self.sizes).items():
            self.fan_out[neuron_name(source)] += macs / given.numel() * copies
        return result

    def _run_graded(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        macs = counter.get_total_flops() // 2
        values = [value for value in (*(self.env[arg] for arg in n.all_input_nodes), result)
                  if isinstance(value, Tensor)]
        self.units[n.name] = macs or max((value.numel() for value in values), default=0)
        self.products += macs
        self.total += macs
        if n not in self.varies:
            self.constant.add(n.name)
        return result


def connections(module: Weighted, incoming: Tensor, outgoing: Tensor) -> int:
    """Multiply-accumulate operations of a convolution or linear layer, those with padding included."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return incoming.numel() * module.weight[0].numel()
    return outgoing.numel() * module.weight[0].numel()


def feeding_neurons(node: fx.Node, varies: set[fx.Node], sizes: dict[fx.Node, int]) -> dict[fx.Node, float]:
    """The layers of neurons whose spikes reach a node through nothing but operations that connect no others.

    Args:
        node: what a layer weights.
        varies: see :func:`weighted_input`.
        sizes: the number of elements of each value.

    Returns:
        For each layer how many elements of the node's value there are for one of its own, where padding or upsampling
        made more of them: padding counts as in a convolution, whose connections to zeros are counted too.
    """
    found: dict[fx.Node, float] = {}
    stack, seen = [(node, 1.)], set()
    while stack:
        current, copies = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        if is_neuron(current):
            found[current] = copies
            continue
        if _passes_on(current, varies):
            if isinstance(module_of(current), GROWING) or current.target in GROWING_FUNCTIONS:
                copies *= max(1., sizes[current] / sizes[source_of(current)])
            stack += [(source, copies) for source in current.all_input_nodes]
    return found


def reads_no_spikes(node: fx.Node, varies: set[fx.Node]) -> bool:
    """Whether a value varies in time and holds sums of weighted spikes: a layer that reads it multiplies at each step."""
    stack, seen = [node], set[fx.Node]()
    while stack:
        current = stack.pop()
        if current in seen or current not in varies or is_neuron(current):
            continue
        seen.add(current)
        if weighted_input(current, varies) is not None:
            return True
        if _passes_on(current, varies):
            stack += current.all_input_nodes
    return False


def _passes_on(node: fx.Node, varies: set[fx.Node]) -> bool:
    """Whether an operation connects no others: what it gives are spikes where it reads spikes."""
    module = module_of(node)
    elementwise = module is None or isinstance(module, NORMS) or not any(True for _ in module.parameters())
    return elementwise and not reads_shape(node) and weighted_input(node, varies) is None
