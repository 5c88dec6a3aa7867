"""Where the error of a spiking network comes from, layer by layer, and what its sum can be at most [sections 4.1, 4.2].

docs/theory.md has the proofs, and says where they differ from the published ones.
"""
from typing import NamedTuple

import torch
from torch import Tensor, fx

from ..neurons.layer import IFNeuron
from ..simulation.loop import TimeLoop
from ..simulation.network import SpikingNetwork, neuron_name
from ..simulation.operations import source_of
from ..simulation.plan import Env, Plan, evaluate


class LayerErrors(NamedTuple):
    """The error that one layer of neurons adds, all others being what they are: ``e_c`` of Eq. 14, and its parts.

    With z the mean current that the layer receives in the simulation and s the rate that it puts out (of neurons that
    send changes both are sums, and relu is their activation, whatever it is)::

        relu(z) - s  =  [relu(z) - clip(relu(z))]  +  [clip(relu(z)) - q(z)]  +  [q(z) - s]
            local              clipping                    rounding               timing

    q being the closed form of the rate [Eq. 10, 17], with what calibration has added to bias and initial potential.
    Each is a sum of squares, relative to that of the ANN's activations of this layer [section 3.4].

    Attributes:
        name: of the layer.
        local, clipping, rounding, timing: see above.
        output: what the local error changes in the network's outputs, relative to those of the ANN.
    """

    name: str
    local: float
    clipping: float
    rounding: float
    timing: float
    output: float


class ErrorReport(list[LayerErrors]):
    """One :class:`LayerErrors` per layer in the order of the network; prints as a table.

    Attributes:
        error: of the network's outputs, ``||y - y_snn||**2 / ||y||**2``.
    """

    error: float

    @property
    def bound(self) -> float:
        """What ``error`` can be at most: ``sum_l 2**(n - l + 1) output_l`` over n layers [Theorem 4.1, Eq. 15]."""
        return sum(2. ** (len(self) - index) * layer.output for index, layer in enumerate(self))

    def __str__(self) -> str:
        width = max(len('layer'), *(len(layer.name) for layer in self))
        rows = [f'{"layer":<{width}}' + ''.join(f'  {title:>9}' for title in LayerErrors._fields[1:])]
        rows += [f'{layer.name:<{width}}' + ''.join(f'  {value:>9.2e}' for value in layer[1:]) for layer in self]
        return '\n'.join([*rows, f'error of the outputs {self.error:.2e}, bound {self.bound:.2e}'])


@torch.no_grad()
def error_sources(snn: SpikingNetwork, *args, **kwargs) -> ErrorReport:
    """Simulate a calibrated network and take its error apart.

    Between layer l - 1 and layer l of the table, layer l goes from the ANN's activation to simulated spikes, while all
    layers before it spike and all behind it do not; ``output`` is how far the outputs move. It takes one pass of the
    ANN per layer, beside the simulation of all T steps.

    Args:
        snn: calibrated; its outputs are taken as mean spikes whatever its ``readout`` and ``delay``.
        *args, **kwargs: the inputs.

    Raises:
        RuntimeError: the network has not been calibrated.
        ValueError: its weights have been calibrated, so that it no longer holds the ANN to compare with.
    """
    settings = snn._check_calibrated()
    if settings['weights'] or settings.get('weight_bits'):
        raise ValueError(f"pipeline {settings['pipeline']!r} has calibrated the weights, or dtype='int8' rounded them: "
                         'the ANN to compare with is no longer in this network')
    nodes = snn.neuron_nodes
    plan = Plan(snn.graph, [*nodes, *snn._output_nodes])
    with snn.full_precision():
        values = snn.bind(*args, **kwargs)
        (_, sums), = TimeLoop(snn.network, plan).sums(values, [snn.time_steps])
        rates = {node: sums[node] / snn.time_steps if snn.coding == 'rate' else sums[node] for node in nodes}
        before = ann = _evaluate(plan, values, {})
        spiking = _evaluate(plan, values, rates)
        norm = _squares(*(ann[node] for node in snn._output_nodes))
        report, given = ErrorReport(), {}
        for node in nodes:
            given[node] = rates[node]
            after = _evaluate(plan, values, given)
            moved = _squares(*(before[out] - after[out] for out in snn._output_nodes))
            parts = _parts(plan.modules[node], spiking[source_of(node)], rates[node], _squares(ann[node]))
            report.append(LayerErrors(neuron_name(node), *parts, moved / norm))
            before = after
    report.error = _squares(*(ann[out] - before[out] for out in snn._output_nodes)) / norm
    return report


def _parts(neuron: IFNeuron, current: Tensor, rate: Tensor, norm: float) -> tuple[float, float, float, float]:
    """The local error and its three parts, relative to ``norm``."""
    activation = neuron(current)
    clipped = torch.minimum(activation, neuron.rule.bound * neuron.per_channel(neuron.threshold, current))
    quantised = neuron.rate(current)
    differences = activation - rate, activation - clipped, clipped - quantised, quantised - rate
    local, clipping, rounding, timing = (_squares(difference) / norm for difference in differences)
    return local, clipping, rounding, timing


def _evaluate(plan: Plan, values: Env, given: dict[fx.Node, Tensor]) -> Env:
    """The mean over time of every node, with the rates of some layers given and all others those of the ANN."""
    env = plan.once(values)
    for node in plan.varying:
        env[node] = given[node] if node in given else evaluate(node, env, plan.modules[node])
    return env


def _squares(*tensors: Tensor) -> float:
    return max(sum(float(tensor.square().sum(dtype=torch.float64)) for tensor in tensors), 1e-30)
