"""A calibrated network as a graph of NIR, the Neuromorphic Intermediate Representation.

Pedersen et al., *Neuromorphic intermediate representation: A unified instruction set for interoperable brain-inspired
computing*, Nature Communications 2024. Spikes are 0 or 1 and every threshold is 1 there: NIR passes on spikes without
a value, and its readers take one threshold per layer.

With h the thresholds of a layer, one for each channel, and h' those of the layer whose spikes it receives, the weights
are normalised [Eq. 5 of the paper, with calibrated thresholds in the place of largest activations]::

    W_ij <- W_ij h'_j / h_i,    b_i <- (b_i + bias of the neuron_i) / h_i,    h_i <- 1

All potentials are thereby divided by h_i, so that the same spikes come at the same steps.
"""
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..neurons.layer import IFNeuron
from ..simulation.calls import arguments
from ..simulation.network import SpikingNetwork, neuron_name
from ..simulation.operations import is_max_pool, module_of, source_of
from ..simulation.plan import evaluate, is_neuron
from ..version import __version__
from .nir_terms import ExportError, Term, Terms, unsupported_options


def to_nir(snn: SpikingNetwork, example: Tensor):
    """Translate a calibrated network into a graph of NIR.

    The graph takes the image as a constant input current at every step (direct coding), in time steps of dt = 1; the
    mean of its output over ``time_steps`` steps is the network's output. NIR leaves open how the reset of a neuron is
    carried out in discrete time (subtracting the threshold and returning to zero are the same in continuous time), and
    so its reader has to be told: ``graph.metadata['reset']`` says which. Each neuron's ``metadata['threshold']`` holds
    what its spikes stood for. Grouped convolutions, strided slices and padded channels become plain convolutions with
    zeros in their weights.

    Args:
        snn: calibrated; plain spikes, no initial potential.
        example: an input, (1, C, H, W), whose size the graph is made for.

    Returns:
        A ``nir.NIRGraph``, its arrays in the precision of the network's parameters.

    Raises:
        ExportError: naming every node and option that NIR cannot express.
        RuntimeError: the network has not been calibrated.
    """
    snn._check_calibrated()
    return _Builder(snn, example).build()


class _Builder(Terms):
    """Walks the graph and translates one operation after the other."""

    @torch.no_grad()
    def build(self):
        self.problems += unsupported_options(self.snn)
        for node in self.snn.graph.nodes:
            if node.op == 'placeholder':
                self.terms[node] = self._placeholder(node)
            elif node.op == 'output':
                self._outputs(node)
            else:
                self._translate(node)
        if self.problems:
            raise ExportError('NIR cannot express this network:\n' + '\n'.join(f'  {line}' for line in self.problems))
        self._finish()
        reset = next((neuron.rule.reset for neuron in self.snn.neurons.values()), 'subtract')
        metadata = dict(made_by=f'mmsnn {__version__}', reset=reset, spike_condition='v >= v_threshold',
                        time_steps=self.snn.time_steps, dt=1., input='constant current', output='mean over time')
        return self.nir.NIRGraph(nodes=self.nodes, edges=self.edges, metadata=metadata)

    def _translate(self, node: fx.Node) -> None:
        module = module_of(node)
        self.values[node] = evaluate(node, self.values, module)
        read = [arg for arg in node.all_input_nodes if arg in self.terms]
        if not isinstance(self.values[node], Tensor) or (not read and node.op == 'get_attr'):
            return
        if any(self.terms[arg] is None for arg in read):
            self.terms[node] = None
            return
        try:
            self.terms[node] = self._handler(node, module)(node, module)
        except ExportError as problem:
            self.problems.append(f'{self._call_site(node, module)}: {problem}')
            self.terms[node] = None

    def _call_site(self, node: fx.Node, module: nn.Module | None) -> str:
        if module is None:
            return f'{node.name} ({getattr(node.target, "__name__", node.target)}())'
        return f'{neuron_name(node) if is_neuron(node) else node.name} ({type(module).__name__})'

    def _handler(self, node: fx.Node, module: nn.Module | None) -> Callable:
        modules: dict[type, Callable] = {
            IFNeuron: self._neuron, nn.Conv2d: self._convolve, nn.Linear: self._linear,
            nn.AvgPool2d: self._average, nn.AdaptiveAvgPool2d: self._adaptive_average,
            nn.Flatten: self._reshape, nn.Identity: self._reshape}
        functions: dict[object, Callable] = {
            F.adaptive_avg_pool2d: self._adaptive_average, torch.mean: self._mean, 'mean': self._mean,
            operator.add: self._add, torch.add: self._add, 'add': self._add,
            operator.getitem: self._slice, F.pad: self._pad}
        functions |= dict.fromkeys((torch.flatten, torch.reshape, torch.squeeze, 'flatten', 'reshape', 'view',
                                    'squeeze', 'contiguous', 'clone', 'detach'), self._reshape)
        if is_max_pool(node):
            raise ExportError('NIR has no max pooling; train the ANN with average pooling (mmsnn.AveragePooled)')
        found = functions.get(node.target) if module is None else next(
            (handler for kind, handler in modules.items() if isinstance(module, kind)), None)
        if found is None:
            raise ExportError('has no counterpart in NIR; replace it in the ANN by convolutions, linear layers, '
                              'average pooling, additions and flattening')
        return found

    # Inputs and outputs

    def _placeholder(self, node: fx.Node) -> list[Term] | None:
        value = self.values[node]
        if not isinstance(value, Tensor):
            return None
        return [self._term(node, self.nir.Input(np.array(value.shape[1:])))]

    def _outputs(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            if is_neuron(source) and self.snn.readout == 'potential':
                self.problems.append(f"{neuron_name(source)}: readout='potential' rectifies the mean current, and the "
                                     "graph ends with spikes; convert with readout='spikes'")
            terms = self.terms[source]
            if terms is not None:
                shape = np.array(self.values[source].shape[1:])
                name = self._unique('output')
                self._add_node(name, self.nir.Output(shape), [self._scaled(term, source) for term in terms])

    # Neurons

    def _neuron(self, node: fx.Node, neuron: IFNeuron) -> list[Term]:
        source, shape = source_of(node), self.values[node].shape[1:]
        threshold, bias = (self._per_channel(value, shape[0]) for value in (neuron.threshold, neuron.mean_bias))
        terms = self._terms_of(source)
        # The bias goes where weights are changed anyway.
        holder = next((term for term in terms if self._absorbs(term)), terms[0])
        currents = [self._scaled(term, source, 1 / threshold, bias / threshold if term is holder else None)
                    for term in terms]
        ones = np.ones(tuple(shape), dtype=self._array(threshold).dtype)
        name = self._add_node(self._unique(neuron_name(node)), self.nir.IF(
            r=ones, v_threshold=ones.copy(), v_reset=np.zeros_like(ones),
            metadata=dict(threshold=self._array(threshold))), currents)
        return [Term(name, threshold, False)]

    # Affine operations

    def _convolve(self, node: fx.Node, conv: nn.Conv2d) -> list[Term]:
        if conv.padding_mode != 'zeros' or isinstance(conv.padding, str):
            raise ExportError(f'padding {conv.padding!r} in mode {conv.padding_mode!r}; give numbers, mode zeros')
        weight = conv.weight.detach().to(**self.options)
        if weight.shape[2] != weight.shape[3]:
            raise ExportError(f'its kernel is {tuple(weight.shape[2:])}, and NIR infers shapes for square ones only')
        weight = _ungrouped(weight, conv.groups)
        return self._convolution(node, weight, conv.bias, conv.stride, conv.padding, conv.dilation)

    def _convolution(self, node: fx.Node, weight: Tensor, bias: Tensor | None = None, stride=(1, 1), padding=(0, 0),
                     dilation=(1, 1)) -> list[Term]:
        names, scale = self._joined(source_of(node))
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().to(**self.options)
        convolution = self.nir.Conv2d(
            input_shape=tuple(self.values[source_of(node)].shape[2:]), weight=weight * scale.view(-1, 1, 1), bias=bias,
            stride=tuple(stride), padding=tuple(padding), dilation=tuple(dilation), groups=1)
        return [self._term(node, convolution, names)]

    def _linear(self, node: fx.Node, linear: nn.Linear) -> list[Term]:
        if self.values[node].ndim != 2:
            raise ExportError(f'its input has shape (N, {", ".join(map(str, self.values[node].shape[1:]))}); NIR has '
                              'linear layers on vectors only: flatten before it')
        names, scale = self._joined(source_of(node))
        weight = linear.weight.detach().to(**self.options) * scale
        bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.detach().to(**self.options)
        return [self._term(node, self.nir.Affine(weight=weight, bias=bias), names)]

    def _average(self, node: fx.Node, pool: nn.AvgPool2d) -> list[Term]:
        kernel, stride, padding = (np.array(nn.modules.utils._pair(value)) for value in (
            pool.kernel_size, pool.stride, pool.padding))
        if pool.ceil_mode or pool.divisor_override is not None or (padding.any() and not pool.count_include_pad):
            raise ExportError('NIR averages over whole windows, zeros of the padding included: ceil_mode, '
                              'divisor_override and count_include_pad=False cannot be expressed')
        return self._pool(node, kernel, stride, padding)

    def _adaptive_average(self, node: fx.Node, _module: nn.Module | None) -> list[Term]:
        before, after = (np.array(self.values[n].shape[2:]) for n in (source_of(node), node))
        if (before % after).any():
            raise ExportError(f'{tuple(before)} is no multiple of {tuple(after)}, so that its windows differ in size')
        return self._pool(node, before // after, before // after, np.zeros(2, int))

    def _mean(self, node: fx.Node, _module: None) -> list[Term]:
        source, axes = self.values[source_of(node)], arguments(node).get('dim') or ()
        axes = (axes,) if isinstance(axes, int) else axes
        if source.ndim != 4 or {axis % 4 for axis in axes} != {2, 3}:
            raise ExportError('NIR has no mean other than average pooling over height and width')
        kernel = np.array(source.shape[2:])
        pooled = self._pool(node, kernel, kernel, np.zeros(2, int))
        return pooled if self.values[node].ndim == 4 else self._flatten(node, pooled, (source.shape[1], 1, 1))

    def _pool(self, node: fx.Node, kernel: np.ndarray, stride: np.ndarray, padding: np.ndarray) -> list[Term]:
        names, scale = self._joined(source_of(node))
        pool = self.nir.AvgPool2d(kernel_size=kernel, stride=stride, padding=padding)
        return [self._term(node, pool, names)._replace(scale=scale)]

    def _reshape(self, node: fx.Node, _module: nn.Module | None) -> list[Term]:
        before, after = (self.values[n].shape for n in (source_of(node), node))
        terms = [term._replace(own=term.own and len(node.users) == 1) for term in self._terms_of(source_of(node))]
        if before == after:
            return terms
        if len(after) != 2 or before[0] != after[0]:
            raise ExportError(f'reshapes {tuple(before)} into {tuple(after)}; NIR can only flatten')
        return self._flatten(node, terms, before[1:])

    def _flatten(self, node: fx.Node, terms: list[Term], shape: tuple) -> list[Term]:
        names, scale = self._joined(node, terms)
        flatten = self.nir.Flatten(input_type=np.array(shape), start_dim=0, end_dim=-1)
        size = int(np.prod(shape[1:]))
        return [self._term(node, flatten, names)._replace(scale=scale.repeat_interleave(size))]

    def _add(self, node: fx.Node, _module: None) -> list[Term]:
        args = () if node.kwargs else node.args
        sources = [arg for arg in args if isinstance(arg, fx.Node) and arg in self.terms]
        if len(sources) != 2 or len({self.values[n].shape for n in (*sources, node)}) != 1:
            raise ExportError('NIR adds two values of one shape only')
        summed: dict[str, Term] = {}
        for term in (*self._terms_of(sources[0]), *self._terms_of(sources[1])):
            scale = term.scale + summed[term.name].scale if term.name in summed else term.scale
            summed[term.name] = Term(term.name, scale, term.own and len(node.users) == 1)
        return list(summed.values())

    def _slice(self, node: fx.Node, _module: None) -> list[Term]:
        source = self.values[source_of(node)]
        index: Any = node.args[1]
        index = index if isinstance(index, tuple) else (index,)
        whole = all(isinstance(part, slice) and (axis == 1 or part.start in (None, 0) and part.stop is None)
                    for axis, part in enumerate(index))
        if not whole or source.ndim != 4 or len(index) > 4 or index[0].step not in (None, 1):
            raise ExportError('NIR cannot take this part of a value; only channels, and every s-th row and column')
        channels, rows, columns = (*index, *[slice(None)] * 3)[1:4]
        chosen = torch.eye(source.shape[1], **self.options)[channels]
        return self._convolution(node, chosen[:, :, None, None], stride=(rows.step or 1, columns.step or 1))

    def _pad(self, node: fx.Node, _module: None) -> list[Term]:
        given: tuple[Any, ...] = (*node.args[1:], *('constant', None)[len(node.args) - 2:])
        pads, mode, value = given
        mode, value = node.kwargs.get('mode', mode), node.kwargs.get('value', value)
        left, right, top, bottom, first, last = (*pads, *[0] * 6)[:6]
        if mode != 'constant' or value or len(pads) > 6 or min(pads) < 0 or left != right or top != bottom:
            raise ExportError('NIR pads with zeros, in space by the same number on both sides')
        chosen = F.pad(torch.eye(self.values[source_of(node)].shape[1], **self.options), (0, 0, first, last))
        return self._convolution(node, chosen[:, :, None, None], padding=(top, left))


def _ungrouped(weight: Tensor, groups: int) -> Tensor:
    """The weights of a grouped convolution as those of a plain one, zero between groups; (C_out, C_in, H, W)."""
    rows = [F.pad(part, (0, 0, 0, 0, index * part.shape[1], (groups - 1 - index) * part.shape[1]))
            for index, part in enumerate(weight.chunk(groups))]
    return torch.cat(rows)
