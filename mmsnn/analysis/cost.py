"""What a simulation costs: spikes, and the synaptic operations that they cause.

A spike that arrives at a convolution or linear layer is added, weighted, to every output it is connected to: one
synaptic operation each. A negative spike counts as one, a burst of k spikes as k.
"""
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from ..simulation.network import SpikingNetwork, neuron_name
from ..simulation.operations import NORMS, module_of, reads_shape, source_of
from ..simulation.plan import Env, is_neuron
from ..simulation.rectifiers import varying_nodes

# Products of values and weights that conversion has not turned into layers, such as weights that depend on the image.
PRODUCTS = {operator.matmul, torch.matmul, 'matmul', torch.mm, 'mm', torch.bmm, 'bmm', torch.addmm, 'addmm',
            torch.baddbmm, 'baddbmm', torch.addbmm, 'addbmm', torch.einsum, torch.tensordot, F.bilinear, F.linear,
            F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
# They make several elements of one, or add elements that are not connected to any neuron.
GROWING = (nn.Upsample, *(getattr(nn, f'{kind}{dimensions}d') for dimensions in (1, 2, 3) for kind in (
    'ZeroPad', 'ConstantPad', 'CircularPad', 'ReflectionPad', 'ReplicationPad')))
GROWING_FUNCTIONS = {F.pad, F.interpolate, torch.repeat_interleave, torch.tile, 'repeat', 'expand', 'expand_as',
                     'repeat_interleave', 'tile'}
Weighted: TypeAlias = nn.Linear | nn.modules.conv._ConvNd  # layers whose outputs are connected to their inputs


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
    events: dict[str, float] = field(default_factory=dict)
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
        key = tuple(tuple(value.shape) for value in values.values() if isinstance(value, Tensor))
        if key not in self._shapes:
            self._shapes[key] = analyse(self.snn, values)
        self._fan_out, neurons, analog_macs, ann_macs = self._shapes[key]
        self.cost.images += next(len(value) for value in values.values() if isinstance(value, Tensor))
        self.cost.analog_macs += analog_macs
        self.cost.ann_macs += ann_macs
        for name, count in neurons.items():
            self.cost.neurons[name] = self.cost.neurons.get(name, 0) + count

    def _recorder(self, name: str) -> Callable[[float, float], None]:
        def record(events: float, count: float) -> None:
            self.cost.events[name] = self.cost.events.get(name, 0) + events
            self.cost.spikes[name] = self.cost.spikes.get(name, 0) + count
            operations = count * self._fan_out.get(name, 0.)
            self.cost.synaptic_operations[name] = self.cost.synaptic_operations.get(name, 0.) + operations
        return record


@torch.no_grad()
def analyse(snn: SpikingNetwork, values: Env) -> tuple[dict[str, float], dict[str, int], int, int]:
    """Count connections by passing a batch through the ANN.

    Args:
        snn: the network.
        values: of its placeholders.

    Returns:
        For each layer of neurons the mean number of outputs that a neuron is connected to (its fan-out) and the
        number of neurons; the MACs of the layers before the first neurons, and those of the whole ANN.
    """
    connectome = _Connectome(snn.network)
    connectome.run(*values.values())
    return connectome.fan_out, connectome.neurons, connectome.analog, connectome.total


class _Connectome(fx.Interpreter):
    """Runs the ANN node by node, forgetting values that nobody needs, and counts what each node connects."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.varies = varying_nodes(network.graph)
        self.fan_out: dict[str, float] = {}
        self.neurons: dict[str, int] = {}
        self.sizes: dict[fx.Node, int] = {}
        self.analog = self.total = 0

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
        for source, copies in feeding_neurons(incoming, self.varies, self.sizes).items():
            self.fan_out[neuron_name(source)] += macs / given.numel() * copies
        return result


def has_weights(module: nn.Module | None) -> TypeGuard[Weighted]:
    """True for convolutions and linear layers, whose outputs are connected to their inputs."""
    return isinstance(module, Weighted)


def weighted_input(node: fx.Node, varies: set[fx.Node]) -> fx.Node | None:
    """The value that a convolution, linear layer or matrix product weights, or None for any other node.

    Of the operands of a product it is the one that varies in time; where none does, the first.
    """
    if has_weights(module_of(node)):
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    if node.target not in PRODUCTS:
        return None
    operands = [operand for operand in node.all_input_nodes if not reads_shape(operand)]
    return next((operand for operand in operands if operand in varies), next(iter(operands), None))


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
        module = module_of(current)
        elementwise = module is None or isinstance(module, NORMS) or not any(True for _ in module.parameters())
        if elementwise and not reads_shape(current) and weighted_input(current, varies) is None:
            if isinstance(module, GROWING) or current.target in GROWING_FUNCTIONS:
                copies *= max(1., sizes[current] / sizes[source_of(current)])
            stack += [(source, copies) for source in current.all_input_nodes]
    return found
