"""Whether to compile a simulation: what ``compile='auto'`` decides."""
import logging
from typing import TYPE_CHECKING

import torch

from ..machine import has_compiler
from .plan import Env, is_neuron

if TYPE_CHECKING:
    from .network import SpikingNetwork

# Seconds that a compiled program saves for each neuron and time step, one thread.
SAVED = {'float32': 3e-9, 'bfloat16': 6e-9}
START, EACH_LAYER = 5., .4  # seconds that compiling takes for any network, and for each of its layers of neurons


def worth_compiling(calls: int, neurons: int, time_steps: int, layers: int, dtype: str = 'float32') -> bool:
    """Whether the calls ahead take less time compiled, compiling included.

    What a compiled program saves is passes over memory between the layers of weights, hence a time for each neuron and
    step; what it costs is a time for each layer. It is worth it where::

        calls * T * neurons * SAVED[dtype] > START + EACH_LAYER * layers

    The constants are measurements (docs/speed.md), and only counts enter: a machine that is busy, or a cache that is
    warm, changes no decision, and hence no result in its last bits.

    Args:
        calls: how many times the network will be called.
        neurons: how many there are, for the inputs of one call.
        time_steps: T.
        layers: of neurons.
        dtype: in which it computes.
    """
    return calls * time_steps * neurons * SAVED[dtype] > START + EACH_LAYER * layers


def decide(snn: 'SpikingNetwork', values: Env, calls: int) -> bool:
    """Decide whether to compile for the calls ahead, and log what and why in one line.

    Not without a number of calls; nor on a GPU, where compiling takes minutes; nor what computes in float64, or on
    8-bit integers, which has machine code of its own.

    Args:
        snn: the network.
        values: of its inputs in the first call, for which the others are taken to be alike.
        calls: how many there will be, or 0 where nobody has said it.
    """
    weights = [value for value in snn.network.parameters() if value.is_floating_point()]
    if not calls or snn.dtype not in SAVED or not weights or weights[0].dtype != torch.float32 or weights[0].is_cuda:
        return False
    shapes, steps = snn.loop.shapes(values), snn.time_steps
    layers = [node for node in snn.plan.varying if is_neuron(node)]
    neurons = sum(shapes[node].numel() for node in layers)
    worth, found = worth_compiling(calls, neurons, steps, len(layers), snn.dtype), has_compiler()
    logging.getLogger(__name__).info(
        "compile='auto': %s, since %d calls x %d steps x %d neurons take some %.0f s less compiled, and compiling "
        'takes some %.0f s%s', 'compiled' if worth and found else 'not compiled', calls, steps, neurons,
        calls * steps * neurons * SAVED[snn.dtype], START + EACH_LAYER * len(layers),
        '' if found else ', but there is no C++ compiler')
    return worth and found
