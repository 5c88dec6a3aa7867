"""K time steps as one graph, membrane potentials in and out: run operation by operation, compiled, or exported.

Time is an axis of its own in front of all others, (K, N, ...); how each operation gets around it is decided by
:mod:`mmsnn.simulation.folding`. A graph of one step has no such axis.
"""
from collections.abc import Mapping

import torch
from torch import fx

from .building import Builder, Kept
from .integers import coded_layers, integer_layers
from .native import native_layers
from .operations import reads_shape
from .plan import Plan, is_neuron


class Chunk:
    """K steps of a plan as one traced graph.

    Its arguments are, in this order, the values of ``static`` nodes, the stored spikes of the plan's sources at these
    steps, (K, N, ...), the biases of the neurons in ``stepped`` for these steps, (K, C), the number of the first step,
    and the tensors ``kept``. It returns the number of spikes of each layer of neurons (where ``record``), the values
    of the plan's targets at each step (where ``each_step``), and the new tensors ``kept`` (unless ``in_place``: then
    it has updated them).

    Args:
        plan: what to compute.
        dimensions: how many dimensions the tensor of each node has at one step.
        steps: K.
        dtype: of spikes, currents and weights; None leaves all as they are.
        record: whether to count spikes.
        each_step: whether to return the targets at each step instead of adding them up.
        in_place: whether to update the tensors kept.
        share: whether to call the network's own modules, not copies.
        tiled: whether neurons fire in tiles, see :class:`Firing`.
        integers: whether convolutions behind neurons work on 8-bit integers, see :mod:`mmsnn.simulation.integers`.
        whole: whether these are all steps: what neurons that send changes as bytes remember need not be kept.
    """

    def __init__(self, plan: Plan, dimensions: Mapping[fx.Node, int], steps: int, dtype: torch.dtype | None = None,
                 record: bool = False, each_step: bool = False, in_place: bool = True,
                 share: bool = True, tiled: bool = False, integers: bool = False, whole: bool = False) -> None:
        self.integer_layers = integer_layers(plan) if integers else {}
        self.coded = coded_layers(plan, self.integer_layers) if integers else {}
        self.native, within = native_layers(plan, self.integer_layers, self.coded, dimensions)
        self.plan, self.dimensions, self.steps, self.dtype = plan, dimensions, steps, dtype
        self.share, self.tiled = share and dtype is None, tiled
        varying = set(plan.varying)
        self.neurons = [node for node in plan.varying if is_neuron(node)]
        self.computed = [node for node in plan.varying if node not in within]
        self.static = [node for node in (*plan.inputs, *plan.static)
                       if varying.intersection(node.users) and node.op != 'get_attr']
        self.stepped = [node for node in self.neurons if plan.modules[node].bias.ndim > 1]
        self.targets = list(dict.fromkeys(node for node in plan.targets if node in plan.varies))
        self.kept: list[Kept] = []
        # Where sums are handed on, what is not affine works on sums, as in the ANN.
        self.sums = any(plan.modules[node].rule.coding == 'differential' for node in self.neurons)
        self.running = set() if self.sums else plan.running
        for node in self.running:
            if node not in dimensions:
                raise ValueError(f'{node.name} gives no single tensor, whose mean over time a rate code could follow: '
                                 "use a function that gives one, or pipeline='differential'")
        for node in plan.varying:
            if is_neuron(node):
                neuron = plan.modules[node]
                if whole and node in self.coded and neuron.rule.coding == 'differential':
                    continue
                self.kept += [Kept(node, 'neuron', index)
                              for index, _ in enumerate(neuron.rule.storage(neuron.time_steps))]
            elif node in self.running:
                self.kept += [Kept(node, 'sum', index) for index, _ in enumerate(self.running_inputs(node))]
                self.kept.append(Kept(node, 'total'))
        if not each_step:
            self.kept += [Kept(node, 'output') for node in self.targets]
        self.graph_module = Builder(self).build(record, each_step, in_place)

    @property
    def is_native(self) -> bool:
        """Whether all neurons are computed by ``native.cpp``: what is left is not worth compiling."""
        return bool(self.neurons) and set(self.neurons) <= self.native.keys()

    def running_inputs(self, node: fx.Node) -> list[fx.Node]:
        """The inputs whose mean over time a running node follows."""
        return [arg for arg in node.all_input_nodes if arg in self.plan.varies and not reads_shape(arg)]
