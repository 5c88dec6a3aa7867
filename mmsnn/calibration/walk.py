"""One walk over the network, neuron layer by neuron layer, with the ANN's activations beside the SNN's spikes.

Only the outputs of neurons are kept (activations as floats, spikes as one bit per step or, where neurons have a closed
form, how many there are); what lies between two layers of neurons is recomputed from them, and an entry is dropped
behind its last reader. Calibrating a layer therefore costs the simulation of that layer, or in closed form one pass
through it, not of the network up to it: the whole is linear in depth.
"""
import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx

from ..machine import return_freed_memory
from ..neurons.model import State, by_channel
from ..simulation.loop import TimeLoop, chunk_steps_for
from ..simulation.network import SpikingNetwork, neuron_name
from ..simulation.operations import source_of
from ..simulation.plan import Env, Plan, is_neuron, neuron_of
from .batches import Batch, call_with, tensors_of
from .store import Store, mean_spikes, own_pages, pack_levels, pack_spikes, unpack_levels, unpack_spikes

TIDY = 8  # batches after which memory is returned


class Sweep:
    """The walk's state: calibration inputs, and the stored outputs of the layers that are still needed.

    Args:
        snn: the network, with thresholds; its neurons and weights are calibrated in place while walking.
        batches: calibration inputs, as :func:`mmsnn.calibrate` has checked them; image sizes may differ from batch to
            batch.
        store: where activations and spikes go.
        blockwise: whether blocks, whose weights are calibrated together, may have several layers: see
            :func:`blocks_of`.
        closed_form: whether layers put out what their neurons make of the mean current, instead of being simulated.
    """

    def __init__(self, snn: SpikingNetwork, batches: Sequence[Batch], store: Store, blockwise: bool = False,
                 closed_form: bool = False) -> None:
        self.snn = snn
        self.closed_form = closed_form
        self.batches = batches
        self.store = store
        self.device = tensors_of(batches[0])[0].device
        # The ANN's stream must not see weights that have been calibrated on the way.
        self.ann = copy.deepcopy(snn.network)
        self._ann_nodes = dict(zip(snn.graph.nodes, self.ann.graph.nodes))
        nodes = snn.neuron_nodes
        self.blocks = [Block(self, block, nodes) for block in (blocks_of(snn) if blockwise else [[n] for n in nodes])]
        self.layers = [layer for block in self.blocks for layer in block.layers]
        self._backwards = True
        self._last_reader: dict[fx.Node, Layer] = {}
        for block in self.blocks:
            for layer in block.layers:
                self._last_reader.update(dict.fromkeys([layer.node, *layer.plan.sources], block.last))

    def __iter__(self) -> Iterator['Layer']:
        """Walk the layers in order; behind each, forget what no later layer reads."""
        for layer in self.layers:
            yield layer
            for one in layer.block.layers:
                one.forget()
            for node, last in list(self._last_reader.items()):
                if last is layer:
                    for index in range(len(self.batches)):
                        for kind in ('activation', 'spikes', 'rate'):
                            self.store.drop((kind, node, index))
                    del self._last_reader[node]

    def indices(self) -> Iterator[int]:
        """The numbers of the batches, upwards and downwards by turns.

        Where files hold more than the system can cache, a pass so begins with what the one before has left there.
        Batches of many sizes leave holes in the heap, which are given back from time to time.
        """
        self._backwards = not self._backwards
        order = range(len(self.batches))
        for count, index in enumerate(reversed(order) if self._backwards else order, 1):
            yield index
            if count % TIDY == 0:
                return_freed_memory()


class Layer:
    """One layer of neurons on the walk: what feeds it, for the ANN and for the SNN."""

    def __init__(self, sweep: Sweep, node: fx.Node, neuron_nodes: list[fx.Node]) -> None:
        self.sweep = sweep
        self.node = node
        self.name = neuron_name(node)
        self.neuron = neuron_of(node)
        self.current = source_of(node)
        self.plan = Plan(sweep.snn.graph, [self.current], neuron_nodes)
        self.loop = TimeLoop(sweep.snn.network, self.plan)
        self.block: Block
        self.norms: dict[int, Tensor] = {}  # the sum of each batch's squared activations, once it has been computed
        # The same segment of the untouched copy.
        twin = sweep._ann_nodes
        self._ann_plan = Plan(sweep.ann.graph, [twin[self.current]], [twin[n] for n in neuron_nodes])

    def _stored(self, kind: str, node: fx.Node, index: int) -> Tensor:
        return self.sweep.store.get((kind, node, index)).to(self.sweep.device)

    def inputs(self, plan: Plan, index: int) -> Env:
        """Values of the placeholders that a plan reads (of either graph: both name them alike)."""
        values = call_with(self.sweep.snn.bind, self.sweep.batches[index])
        bound = {node.target: value for node, value in values.items()}
        return {node: bound[node.target] for node in plan.inputs}

    def activation(self, index: int) -> Tensor:
        """The ANN's activation for one batch, shape (N, C, ...); computed at the first call, then stored."""
        key = 'activation', self.node, index
        if key not in self.sweep.store:
            twin = self.sweep._ann_nodes
            values = self.inputs(self._ann_plan, index)
            values |= {twin[node]: self._stored('activation', node, index) for node in self.plan.sources}
            self.sweep.store.put(key, self.neuron(self._ann_plan.analog(values)[twin[self.current]]))
        return self._stored(*key)

    def mean_inputs(self, plan: Plan, index: int) -> Env:
        """Input and mean incoming spikes of the SNN for one batch: values for ``plan.analog``."""
        values = self.inputs(plan, index)
        time_steps = self.sweep.snn.time_steps
        for node in plan.sources:
            if ('rate', node, index) in self.sweep.store:
                stored = self._stored('rate', node, index)
                values[node] = unpack_levels(stored, self._level(node, stored))
                continue
            planes = self._stored('spikes', node, index)
            threshold, lowest = self._coding(node, planes)
            values[node] = mean_spikes(planes, threshold, time_steps, lowest)
        return values

    def rate(self, index: int, keep: bool = False, each_step: bool = False) -> tuple[Tensor, Tensor | None]:
        """What this layer's neurons put out for one batch: in closed form or, by the walk's choice, simulated.

        Args:
            index: of the batch.
            keep: store the rate or the spikes, as the input of the layers behind.
            each_step: whether to sum up the spikes of each step, which a closed form does not tell.

        Returns:
            The firing rate, shape (N, C, ...), and the sum of the spikes of each step over images and positions,
            shape (T, C), float64, or None.
        """
        if self.sweep.closed_form:
            rate = self.neuron.rate(self.mean_current(index))
            if keep:
                self.sweep.store.put(('rate', self.node, index), pack_levels(rate, self._level(self.node, rate)))
            return rate, None
        snn = self.sweep.snn
        state: State | None = None
        total: Tensor  # these come with the first chunk
        planes: Tensor
        spikes: Tensor
        threshold: Tensor
        bias: Tensor
        start, neuron, rule, by_step = 0, self.neuron, self.neuron.rule, []
        for currents in self.currents(index):
            if state is None:
                state, total = neuron.start(currents[0]), torch.zeros_like(currents[0])
                threshold, bias = neuron.per_channel(neuron.threshold, total), neuron.per_channel(neuron.bias, total)
                if keep:
                    bits = (rule.highest - rule.lowest).bit_length()
                    planes = total.new_zeros((bits, -(-snn.time_steps // 8), *total.shape), dtype=torch.uint8)
                spikes = torch.empty_like(currents)
            spikes = spikes[:len(currents)]
            for step, (current, spike) in enumerate(zip(currents, spikes), start):
                if neuron.bias.ndim > 1:
                    bias = neuron.per_channel(neuron.bias[step], total)
                rule.at(float(step), snn.time_steps).step_in_place(current, bias, state, threshold, snn.time_steps,
                                                                   spike)
                total += spike
            if each_step:
                by_step += [by_channel(spike, neuron.channel_axis).sum(1, dtype=torch.float64) for spike in spikes]
            if keep:
                pack_spikes(planes, spikes, threshold, start, rule.lowest)
            start += len(spikes)
        if keep:
            self.sweep.store.put(('spikes', self.node, index), planes)
        return total / snn.time_steps, torch.stack(by_step) if each_step else None

    def mean_current(self, index: int) -> Tensor:
        """The mean current into the layer for one batch, which the mean of what comes in gives; shape (N, C, ...)."""
        store, key = self.sweep.store, ('current', self.node, index)
        if key in store:
            return self._stored(*key)
        current = self.plan.analog(self.mean_inputs(self.plan, index))[self.current]
        store.offer(key, current)
        return current

    def forget(self) -> None:
        """Drop the currents that are kept: a weight before the layer has changed, or nobody asks for them again."""
        for index in range(len(self.sweep.batches)):
            for kind in ('current', 'currents'):
                self.sweep.store.drop((kind, self.node, index))

    def currents(self, index: int) -> Iterator[Tensor]:
        """Yield the current into the layer for one batch, chunk after chunk of steps, shape (K, N, C, ...).

        They are kept while there is room: the next correction changes nothing before the layer.
        """
        snn, store, key = self.sweep.snn, self.sweep.store, ('currents', self.node, index)
        if key in store:
            kept = self._stored(*key)
            steps = snn.chunk_steps or chunk_steps_for(kept[0], snn.time_steps)
            yield from kept.split(steps)
            return
        values = self.inputs(self.plan, index)
        chunk_steps = snn.chunk_steps or chunk_steps_for(self.activation(index), snn.time_steps)
        if self.current not in self.plan.varies:  # constant: the stem
            current = self.plan.once(values)[self.current]
            for start in range(0, snn.time_steps, chunk_steps):
                steps = min(chunk_steps, snn.time_steps - start)
                yield current.unsqueeze(0).expand(steps, *current.shape)
            return

        planes = {node: self._stored('spikes', node, index) for node in self.plan.sources}
        coding = {node: self._coding(node, stored) for node, stored in planes.items()}

        def incoming(node: fx.Node, start: int, stop: int) -> Tensor:
            threshold, lowest = coding[node]
            return unpack_spikes(planes[node], threshold, start, stop, lowest)

        shapes = {node: stored.shape[2:] for node, stored in planes.items()}
        example = self.activation(index)
        made: Tensor | None = None
        if store.offers(example.nbytes * snn.time_steps):
            shape = snn.time_steps, *example.shape
            made = own_pages(shape, example.dtype) if example.device.type == 'cpu' else example.new_empty(shape)
        start = 0
        for chunk in self.loop.each_step(values, snn.time_steps, chunk_steps, incoming, shapes):
            currents = chunk[self.current]
            if made is not None:
                made[start:start + len(currents)] = currents
                start += len(currents)
            yield currents
        if made is not None:
            store.offer(key, made, copy=False)

    def _coding(self, node: fx.Node, planes: Tensor) -> tuple[Tensor, int]:
        """Threshold and least number of spikes a step that the packed spikes of a layer were made with."""
        neuron = neuron_of(node)
        return neuron.per_channel(neuron.threshold, planes[0, 0]), neuron.rule.lowest

    def _level(self, node: fx.Node, like: Tensor) -> Tensor:
        """What one spike adds to what a layer's neurons put out; broadcastable."""
        neuron = neuron_of(node)
        threshold = neuron.per_channel(neuron.threshold, like)
        return threshold if neuron.rule.coding == 'differential' else threshold / self.sweep.snn.time_steps


class Block:
    """Layers of neurons whose weights are calibrated together, on the error of the last one.

    Attributes:
        layers: in the order of the network.
        plan: computes the current into the last layer from the spikes of the layers before the block.
    """

    def __init__(self, sweep: Sweep, nodes: list[fx.Node], neuron_nodes: list[fx.Node]) -> None:
        self.layers = [Layer(sweep, node, neuron_nodes) for node in nodes]
        for layer in self.layers:
            layer.block = self
        self.plan = Plan(sweep.snn.graph, [self.last.current], set(neuron_nodes).difference(nodes))

    @property
    def last(self) -> Layer:
        return self.layers[-1]


def blocks_of(snn: SpikingNetwork) -> list[list[fx.Node]]:
    """Cut the network where everything that follows depends on one layer of neurons alone.

    Such places are the ends of residual blocks, and every layer of a network without branches.

    Returns:
        The call sites of the neurons of each block, in order.
    """
    plan = Plan(snn.graph, snn.neuron_nodes)
    last_use = {used: place for place, node in enumerate(plan.varying) for used in node.all_input_nodes}
    blocks: list[list[fx.Node]] = [[]]
    for place, node in enumerate(plan.varying):
        if is_neuron(node):
            blocks[-1].append(node)
            if not any(last_use.get(before, 0) > place for before in plan.varying[:place]):
                blocks.append([])
    return [block for block in blocks if block]
