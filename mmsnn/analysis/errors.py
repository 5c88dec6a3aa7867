"""What a calibrated network is measured by, layer by layer: errors, thresholds, memory [sections 3.4, 5.5 and 5.6]."""
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from ..calibration.batches import Batch, call_with
from ..neurons.model import by_channel
from ..neurons.pipelines import Pipeline
from ..neurons.thresholds import ActivationHistogram, choose_threshold
from ..progress import progress_bar
from ..simulation.loop import TimeLoop
from ..simulation.network import SpikingNetwork, neuron_name
from ..simulation.plan import Plan, is_neuron, neuron_of

QUANTILES = dict(q05=.05, q25=.25, median=.5, q75=.75, q95=.95)  # box and whiskers as in the paper's Figs. 2 and 5


@torch.no_grad()
def channel_errors(snn: SpikingNetwork, ann: fx.GraphModule, batches: Iterable[Batch],
                   progress: bool = False) -> dict[str, Tensor]:
    """Relative error of each channel of each layer of neurons, the whole network spiking.

    With the ANN's activations x and the mean of the spikes over T steps (of neurons that send changes, their sum), both
    summed over images and positions [section 3.4]::

        error = sum (x - mean of s(t))**2 / sum x**2

    Args:
        snn: a calibrated network.
        ann: the ANN, as the traced graph ``network`` of a conversion whose weights have not been calibrated.
        batches: inputs (N, ...), on the device of both.
        progress: show a progress bar.

    Returns:
        For each layer, shape (C,), float64; NaN for a channel that never is active in the ANN.
    """
    watched = dict(zip(snn.neuron_nodes, filter(is_neuron, ann.graph.nodes)))  # node of the SNN -> node of the ANN
    simulation, reference = TimeLoop(snn.network, Plan(snn.graph, watched)), Plan(ann.graph, watched.values())
    squares: dict[str, Tensor] = {}  # of errors and of activations, (2, C)
    for batch in progress_bar(batches, 'errors', unit='batch', disable=not progress):
        values = call_with(snn.bind, batch)
        given = {node.target: value for node, value in values.items()}
        activations = reference.analog({node: given[node.target] for node in reference.inputs})
        ((_, sums),) = simulation.sums(values, [snn.time_steps], chunk_steps=snn.chunk_steps)
        for node, twin in watched.items():
            activation = activations[twin]
            error = activation - (sums[node] / snn.time_steps if snn.coding == 'rate' else sums[node])
            found = torch.stack([by_channel(value, neuron_of(node).channel_axis).square().sum(1, dtype=torch.float64)
                                 for value in (error, activation)])
            name = neuron_name(node)
            squares[name] = squares[name] + found if name in squares else found
    return {name: error / norm for name, (error, norm) in squares.items()}


def box(values: Tensor) -> dict[str, float | int | None]:
    """Quantiles (5, 25, 50, 75, 95 %), mean and number of the values that are not NaN; None where there is none."""
    values = values.double().flatten()
    values = values[~values.isnan()].cpu()
    if not len(values):
        return dict.fromkeys((*QUANTILES, 'mean'), None) | dict(count=0)
    found = torch.quantile(values, torch.tensor(list(QUANTILES.values()), dtype=torch.float64)).tolist()
    return dict(zip(QUANTILES, found), mean=float(values.mean()), count=len(values))


def threshold_shares(histograms: Mapping[str, ActivationHistogram], pipeline: Pipeline,
                     time_steps: Sequence[int]) -> dict[str, list[float]]:
    """Firing thresholds as a share of the largest activation, for several T [Fig. 4].

    Args:
        histograms: of the ANN's activations, from :func:`mmsnn.observe`.
        pipeline: names the rule (``'mmse'``, ``'max'`` or ``'percentile'``) and how many spikes a step are possible.
        time_steps: the numbers of steps T.

    Returns:
        For each layer one value per T: the mean, over the channels that ever are active, of threshold (the largest
        mean output of a neuron) / largest activation.
    """
    def share(histogram: ActivationHistogram, steps: int) -> float:
        threshold = choose_threshold(histogram, pipeline.threshold, pipeline.rule(steps).levels(steps),
                                     pipeline.channel_wise, pipeline.rounding)
        largest = histogram.maximum if pipeline.channel_wise else histogram.maximum.amax(0, keepdim=True)
        alive = largest > 0
        return float((threshold.double() / largest)[alive].mean()) if alive.any() else 1.

    return {name: [share(histogram, steps) for steps in time_steps] for name, histogram in histograms.items()}


def parameter_bytes(snn: SpikingNetwork, ann: nn.Module) -> dict[str, int]:
    """What a calibrated network has to store for one T beside the ANN, in bytes by kind [section 5.6].

    Args:
        snn: a calibrated network.
        ann: as in :func:`channel_errors`.

    Returns:
        ``thresholds``, ``bias`` and ``potential``: the neurons' buffers as a checkpoint holds them; ``weights``: the
        weights that calibration has changed; ``ann``: all weights and biases of the ANN, batch normalisation folded.
    """
    own = dict(snn.network.named_parameters())
    shared = dict(ann.named_parameters())
    neurons = snn.neurons.values()
    return dict(
        thresholds=sum(neuron.threshold.nbytes for neuron in neurons), bias=sum(n.bias.nbytes for n in neurons),
        potential=sum(neuron.initial_potential.nbytes for neuron in neurons),
        weights=sum(value.nbytes for name, value in own.items() if not torch.equal(value, shared[name])),
        ann=sum(value.nbytes for value in shared.values()))
