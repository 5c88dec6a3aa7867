"""Which layers of weights the neurons of a network are connected to, and what those compute whatever the spikes."""
import operator
from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from ..conversion.folding import qualified_names
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
# They hand on a part of the elements; those that give several parts do so together with operator.getitem.
PARTS = {operator.getitem, torch.narrow, torch.select, torch.index_select, 'narrow', 'select', 'index_select'}
SPLITS = {torch.chunk, torch.split, torch.tensor_split, torch.unbind, 'chunk', 'split', 'split_with_sizes',
          'tensor_split', 'unbind'}


@torch.no_grad()
def analyse(snn: SpikingNetwork, values: Env) -> 'Connectome':
    """Count connections by passing a batch through the ANN.

    Args:
        snn: the network.
        values: of its placeholders.

    Returns:
        For each layer of neurons the mean number of outputs that a neuron is connected to, by layer of weights
        (``fan_out``), and the number of ``neurons``; the MACs of the layers before the first neurons (``analog``), and
        those of the whole ANN (``total``); the operations of graded ``units``.
    """
    connectome = Connectome(snn.network, snn.graded)
    connectome.run(*values.values())
    connectome.env = {}
    return connectome


class Connectome(fx.Interpreter):
    """Runs the ANN node by node, forgetting values that nobody needs, and counts what each node connects."""

    def __init__(self, network: fx.GraphModule, graded: Collection[str]) -> None:
        super().__init__(network)
        self.is_graded = set(graded)
        self.varies = varying_nodes(network.graph)
        self.fan_out: dict[str, dict[str, float]] = {}
        self.neurons: dict[str, int] = {}
        self.sizes: dict[fx.Node, int] = {}
        self.analog = self.total = 0
        self.units: dict[str, int] = {}  # what each graded unit computes in one step
        self.constant: set[str] = set()  # of them, those that compute once
        self.products = 0  # multiply-accumulates of graded units
        self.layers: list[tuple[str, dict[str, int]]] = []  # what each layer does once, by kind of operation
        self.places: dict[str, str] = {}  # the layer that each graded unit is

    def graded(self, time_steps: int) -> int:
        """Operations of graded units in T steps."""
        return sum(self._in_all(name, time_steps) for name in self.units)

    def _in_all(self, unit: str, time_steps: int) -> int:
        return self.units[unit] * (1 if unit in self.constant else time_steps)

    def operations(self, time_steps: int) -> Iterator[tuple[str, dict[str, int]]]:
        """What layers of weights and graded units do in T steps whatever the spikes, by the layers' names."""
        yield from self.layers
        for name, layer in self.places.items():
            yield layer, dict(graded_operations=self._in_all(name, time_steps))

    def run_node(self, n: fx.Node) -> Any:
        result = self._run(n)
        if isinstance(result, Tensor):
            self.sizes[n] = result.numel()
        return result

    def _run(self, n: fx.Node) -> Any:
        if is_neuron(n):
            result = super().run_node(n)
            self.neurons[neuron_name(n)] = result.numel()
            self.fan_out.setdefault(neuron_name(n), {})
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
        layer = qualified_names(n)[0]
        self.total += macs
        self.layers.append((layer, dict(ann_macs=macs, analog_macs=macs * (n not in self.varies))))
        if n not in self.varies:
            self.analog += macs
        elif reads_no_spikes(incoming, self.varies):
            self.units[n.name], self.places[n.name] = macs, layer
            self.products += macs
            return result
        for source, copies in feeding_neurons(incoming, self.varies, self.sizes).items():
            fan_out = self.fan_out[neuron_name(source)]
            fan_out[layer] = fan_out.get(layer, 0.) + macs / given.numel() * copies
        return result

    def _run_graded(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        macs = counter.get_total_flops() // 2
        values = [value for value in (*(self.env[arg] for arg in n.all_input_nodes), result)
                  if isinstance(value, Tensor)]
        self.units[n.name] = macs or max((value.numel() for value in values), default=0)
        self.places[n.name] = layer = qualified_names(n)[0]
        self.products += macs
        self.total += macs
        self.layers.append((layer, dict(ann_macs=macs)))
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
        For each layer how many elements of the node's value one of its neurons reaches on average: those of all ways
        together, more where padding or upsampling makes more of one, less where a way takes a part of the neurons.
        Padding counts as in a convolution, whose connections to zeros are counted too.
    """
    found: dict[fx.Node, float] = {}
    reached = {node: 1.}
    for current in reversed(node.graph.nodes):  # whoever reads a value comes before it
        copies = reached.get(current)
        if copies is None:
            continue
        if is_neuron(current):
            found[current] = copies
        elif _passes_on(current, varies):
            copies *= _share(current, sizes)
            for source in current.all_input_nodes:
                reached[source] = reached.get(source, 0.) + copies
    return found


def _share(node: fx.Node, sizes: dict[fx.Node, int]) -> float:
    """How many elements of a node's value there are, on average, for one that it reads."""
    grows = isinstance(module_of(node), GROWING) or node.target in GROWING_FUNCTIONS
    if not grows and node.target not in PARTS:
        return 1.
    source = source_of(node)
    if source.target in SPLITS:
        source = source_of(source)
    if node not in sizes or source not in sizes:
        return 1.
    share = sizes[node] / sizes[source]
    return max(1., share) if grows else min(1., share)


def reads_no_spikes(node: fx.Node, varies: set[fx.Node]) -> bool:
    """Whether a value holds weighted spikes, not spikes: a layer that reads it multiplies at each step."""
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
