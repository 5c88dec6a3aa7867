"""Turn a trained network into a spiking one: trace, fold batch normalisation, place the neurons."""
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any

import torch
from torch import fx, nn

from ..neurons.layer import IFNeuron
from ..simulation.network import SpikingNetwork
from ..simulation.operations import is_max_pool, objection, source_of
from ..simulation.rectifiers import relu_ceiling, varying_nodes
from .constants import drop_unused, fold_constants
from .folding import fold_batch_norm, pool_before_static_relu, qualified_names
from .graded import channel_axis, place_everywhere
from .layers import layers_from_functions
from .spelling import spell_extremes, spell_rectifiers
from .tracing import ConversionError, trace


@torch.inference_mode(False)  # its tensors are to be changed later
def convert(ann: nn.Module, time_steps: int, *, include: str | Iterable[str] = '*', exclude: str | Iterable[str] = (),
            readout: str = 'spikes', delay: int = 0, chunk_steps: int | None = None, dtype: str = 'float32',
            compile: bool | str = 'auto', coding: str = 'rate', example: Any = None) -> SpikingNetwork:
    """Convert an ANN into a network of integrate-and-fire neurons; the ANN itself is left untouched.

    The network is traced with torch.fx, batch normalisation is folded into the layer before it [Eq. 25], and every
    ReLU call site gets neurons of its own. Max pooling directly behind the ReLU of a stem is moved before it (they
    commute, and the current is constant there); elsewhere it passes on the increase of the pooled running sum.
    Thresholds are not chosen yet: :func:`mmsnn.calibrate` does that.

    With ``coding='differential'`` every element-wise function of one value becomes neurons, in whatever spelling, also
    composed ones such as ``x * torch.sigmoid(x)``. What mixes values (norms, softmax, products of two values that
    vary) stays a graded unit on what neurons have sent so far; :attr:`SpikingNetwork.graded` names it. Before weights
    that would read anything else than spikes, or the input, stand neurons of the identity.

    Args:
        ann: any network of convolutions, linear layers and ReLUs (or, with ``coding='differential'``, of any
            deterministic functions) that torch.fx can trace. Evaluation mode is used.
        time_steps: T, the number of simulated steps, at least 1.
        include: fnmatch patterns of call sites to make spiking (``'layer4.*'``, ``'*.relu'``).
        exclude: fnmatch patterns of nonlinear call sites to leave analog: they see the mean over time so far, and
            their output over time averages to exactly what the analog operation makes of the mean input.
        readout: what an output that comes from neurons is: ``'spikes'``, their mean over time, or ``'potential'``,
            the rectified mean of the current they accumulated (they still fire into the network) [section 5.4].
        delay: steps at the beginning that the mean over time leaves out, while currents are still on their way
            (delayed readout).
        chunk_steps: time steps simulated at once; chosen by size when None. Changes speed and memory, not results.
        dtype: of spikes, currents and weights when simulating: ``'float32'`` or ``'bfloat16'``, which rounds weights
            and thresholds to 8 bits; membrane potentials and sums stay float32. ``'int8'``: spikes of convolutions are
            bytes and their weights rounded to 8 bits, see :mod:`mmsnn.simulation.integers`.
        compile: compile the simulation with torch.compile: the first call takes some seconds longer, all others less.
            ``'auto'``: where enough calls are ahead, which a test run knows; see :meth:`SpikingNetwork.expect`.
        coding: ``'rate'``: neurons stand for ReLUs; or ``'differential'``: for any activation, and only pipelines of
            differential coding can calibrate them.
        example: an input, or its shape such as ``(1, 3, 224, 224)``, for a network whose ``forward`` decides by sizes,
            such as transformers: the conversion then serves inputs of this size alone, any number of them. Several
            inputs in a tuple, or in a dictionary by name.

    Returns:
        A module with the ANN's call signature. Arguments of the ANN that have a default keep it, and are gone: of
        mmpretrain's ``forward(inputs, data_samples=None, mode='tensor')`` remains ``forward(inputs)``.

    Raises:
        ConversionError: operations that are neither affine nor ReLU, each named with its type; with
            ``coding='differential'`` what is random or cannot be traced.
        ValueError: a wrong ``time_steps``, ``readout``, ``delay``, ``compile`` or ``coding``, or a pattern that matches
            nothing.
    """
    if (compile is True or dtype != 'float32') and any(value.dtype == torch.float64 for value in ann.parameters()):
        raise ConversionError("a float64 network is simulated in float64, without compile=True or dtype='bfloat16': "
                              'convert a float32 copy, model.float()')
    network = trace(ann, example, open_layers=coding == 'differential')
    fold_constants(network)
    layers_from_functions(network)
    fold_batch_norm(network)
    spell_rectifiers(network)
    spell_extremes(network)
    pool_before_static_relu(network)
    include, exclude = ([p] if isinstance(p, str) else list(p) for p in (include, exclude))
    graded: list[str] = []
    if coding == 'differential':
        graded = place_everywhere(network, include, exclude)
    else:
        place_neurons(network, include, exclude)
    network.graph.eliminate_dead_code()
    drop_unused(network)
    network.graph.lint()
    network.recompile()
    return SpikingNetwork(network, time_steps, readout=readout, chunk_steps=chunk_steps, delay=delay, dtype=dtype,
                          compile=compile, coding=coding, graded=graded)


def place_neurons(network: fx.GraphModule, include: list[str], exclude: list[str]) -> None:
    """Replace the selected ReLU call sites by neurons; refuse what is neither affine, excluded nor a max pooling.

    What is computed from the input alone does not vary in time, and may be anything; but where nothing at all spikes
    it is refused as well.
    """
    graph = network.graph
    neurons = nn.Module()
    network.add_module('neurons', neurons)
    varies = varying_nodes(graph)
    unsupported: list[str] = []
    static: list[str] = []
    unmatched = set(include) | set(exclude)
    dtype = next((value.dtype for value in network.parameters() if value.is_floating_point()), None)
    for node in list(graph.nodes):
        names = qualified_names(node)
        matched = {p for p in unmatched | set(include) | set(exclude) if any(fnmatch(name, p) for name in names)}
        ceiling = relu_ceiling(node)
        problem = None if ceiling is not None or is_max_pool(node) else objection(node, varies)
        if ceiling is None and problem is None:
            continue
        unmatched -= matched
        if matched.intersection(exclude) or not matched.intersection(include):
            continue
        if ceiling is None:
            (unsupported if node in varies else static).append(f'  {names[0]}: {problem}')
            continue
        neuron = IFNeuron(ceiling).to(dtype)
        neurons.add_module(node.name, neuron)
        with graph.inserting_after(node):
            call = graph.call_module(f'neurons.{node.name}', (source_of(node),))
        neuron.channel_axis = channel_axis(call)
        varies.add(call)
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    if not len(neurons._modules):
        unsupported += static
    if unsupported:
        raise ConversionError(
            'these operations are neither affine nor ReLU and have no spiking counterpart:\n'
            + '\n'.join(unsupported)
            + '\nReplace them in the ANN, or leave them analog with exclude=[...] (patterns like "layer4.*").')
    if unmatched - {'*'}:
        raise ValueError(f'include/exclude patterns that match no nonlinear call site: {sorted(unmatched)}')
