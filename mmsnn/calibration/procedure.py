"""Choose thresholds and calibrate a spiking network, layer by layer [section 4.4, Algorithm 2]."""
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..distributed import agree, gather
from ..neurons.layer import IFNeuron
from ..neurons.model import with_channels
from ..neurons.pipelines import Pipeline, make_pipeline, usual_pipeline
from ..neurons.thresholds import ActivationHistogram
from ..progress import progress_bar
from ..simulation.integers import WEIGHT_BITS, round_network
from ..simulation.network import SpikingNetwork
from ..simulation.settings import check_coding
from .balancing import balanced_thresholds
from .batches import Batch, call_with, materialise, size_of
from .corrections import Steps, correct_bias, correct_potential, largest_current, measure
from .store import GIBI, Store
from .walk import Layer, Sweep
from .weights import improve_weights


@dataclass
class LayerReport:
    """What calibration did to one layer of neurons.

    The errors are ``sum (x - rate)**2 / sum x**2`` over the calibration images, x being the ANN's activation
    [section 3.4]: with the layer as converted on calibrated inputs, and after its own calibration. The rate is
    simulated or, for neurons that have one, in closed form. None where the pipeline only chooses thresholds.
    """

    name: str
    threshold: float
    error_before: float | None = None
    error_after: float | None = None


class CalibrationReport(list[LayerReport]):
    """One :class:`LayerReport` per layer, in the order of the network; prints as a table.

    Thresholds are in the units of the activations. An error is relative to the squared activations: 0 is none, 1 that
    of a layer that never fires.
    """

    def __str__(self) -> str:
        def number(value: float | None) -> str:
            return '-' if value is None else f'{value:.4f}'

        rows: list[tuple[str, ...]] = [('layer', 'mean threshold', 'relative error before', 'relative error after')]
        rows += [(layer.name, *map(number, (layer.threshold, layer.error_before, layer.error_after))) for layer in self]
        width = [max(map(len, column)) for column in zip(*rows)]
        return '\n'.join(f'{row[0]:<{width[0]}}' + ''.join(f'  {v:>{w}}' for v, w in zip(row[1:], width[1:]))
                         for row in rows)


@torch.inference_mode(False)  # what it stores in the network is to be changed later
@torch.no_grad()
def calibrate(snn: SpikingNetwork, batches: Iterable[Batch], pipeline: str | None = None, *,
              histograms: dict[str, ActivationHistogram] | None = None, memory_budget: int = 8 * GIBI,
              progress: bool = True, **options) -> CalibrationReport:
    """Choose the thresholds of a converted network and calibrate it, in place.

    Neurons whose output has a closed form (``closed_form`` of :class:`mmsnn.neurons.model.NeuronModel`: ``'signed'``
    and ``'differential'``) are calibrated by it, in a few passes of the ANN an image whatever T is; others are
    simulated, layer by layer.

    Args:
        snn: from :func:`mmsnn.convert`.
        batches: calibration inputs, an iterable of tensors (N, ...) preprocessed as for the ANN, or of tuples or
            dictionaries of them for a network of several inputs. Sizes may differ between batches. A gradient step of
            the weights calibration takes one batch. Where torch.distributed runs several processes, each gives its own
            share: see :mod:`mmsnn.distributed`.
        pipeline: a name in :data:`mmsnn.PIPELINES`: ``'differential'`` (changes are sent, one calibration serves every
            T), ``'bursts'`` (several spikes a step), ``'signed'`` (such that can be taken back), the paper's ``'none'``
            (thresholds only, its Baseline), ``'light'`` (bias) and ``'advanced'`` (initial potential, then weights).
            None takes what did best for this T: :func:`mmsnn.neurons.pipelines.usual_pipeline`.
        histograms: of the activations on these batches, from :func:`mmsnn.observe`, where they are at hand: they do
            not depend on T or the pipeline, and so serve many calibrations of the same ANN.
        memory_budget: bytes of activations, spikes and rates to hold in memory; more goes to temporary files. Up to
            half of it holds currents that would be computed again otherwise.
        progress: show progress bars.
        **options: replace single choices of the pipeline, see :class:`mmsnn.Pipeline`; ``levels`` is how many
            different values a neuron can emit in one step, whatever the pipeline.

    Returns:
        A report per layer: mean threshold, relative error before and after.

    Raises:
        ValueError: unknown pipeline or option, no or unusable batches, images of several sizes with
            ``potential='position'``, histograms of another network, or weights that have been calibrated before.
        OSError: the temporary files do not fit on the disk.
    """
    pipeline = pipeline or usual_pipeline(snn.time_steps, options.get('levels'), snn.converted_for)
    chosen = make_pipeline(pipeline, **options)
    with snn.full_precision():
        return _calibrate(snn, batches, pipeline, chosen, histograms, memory_budget, progress)


def _calibrate(snn: SpikingNetwork, batches: Iterable[Batch], name: str, chosen: Pipeline,
               histograms: dict[str, ActivationHistogram] | None, memory_budget: int,
               progress: bool) -> CalibrationReport:
    batches = _checked(snn, batches, chosen, histograms)
    snn.settings = None  # until all is done: a failure leaves nothing that looks calibrated
    # Where thresholds or weights are still to change, the weights are rounded when they are simulated.
    rounded = snn.dtype == 'int8' and chosen.threshold != 'current' and not chosen.weights
    if histograms is None and chosen.threshold != 'balanced' and (rounded or not chosen.walks):
        histograms = observe(snn, batches, progress)
    thresholds = _thresholds(snn, batches, chosen, histograms or {}, progress)
    report = CalibrationReport()
    for layer_name, neuron in snn.neurons.items():
        set_threshold(neuron, thresholds.get(layer_name, neuron.threshold), chosen, snn.time_steps)
        report.append(LayerReport(layer_name, float(neuron.threshold.mean())))
    sweep = None
    if chosen.walks:  # it has a copy of the ANN's weights
        sweep = Sweep(snn, batches, Store(memory_budget), chosen.blockwise, closed_form=not chosen.simulates)
    if rounded:
        round_network(snn.plan)
    if sweep is not None:
        _walk(sweep, chosen, report, progress, observes=not thresholds)
    snn.settings = dict(pipeline=name, time_steps=snn.time_steps, **dict(weight_bits=WEIGHT_BITS) if rounded else {},
                        **chosen.as_dict())
    return report


def _checked(snn: SpikingNetwork, batches: Iterable[Batch], chosen: Pipeline,
             histograms: dict[str, ActivationHistogram] | None) -> list[Batch]:
    """The batches on the network's device; refuses what cannot be calibrated while nothing has changed yet."""
    if snn.settings and (snn.settings['weights'] or snn.settings.get('weight_bits')):
        raise ValueError('the weights of this network have been calibrated or rounded, the ANN is no longer in it: '
                         'convert the ANN again and calibrate the result')
    parameter = next(snn.parameters(), None)
    collected = materialise(batches, parameter.device if parameter is not None else torch.device('cpu'), snn.network)
    sizes = sorted(set().union(*gather({size_of(batch) for batch in collected})))
    if chosen.potential == 'position' and len(sizes) > 1:
        raise ValueError(f"potential='position' needs images of one size, these have {len(sizes)}: {sizes[:3]}...; "
                         "use potential='channel'")
    if histograms is not None and histograms.keys() != snn.neurons.keys():
        others = sorted(histograms.keys() ^ snn.neurons.keys())
        raise ValueError(f'these histograms are those of other layers than this network has ({", ".join(others[:4])}): '
                         'give those that mmsnn.observe returns for it')
    check_coding(snn, chosen.rule(snn.time_steps))
    return collected


def _thresholds(snn: SpikingNetwork, batches: list[Batch], chosen: Pipeline,
                histograms: dict[str, ActivationHistogram], progress: bool) -> dict[str, Tensor]:
    """The thresholds of each layer; none where the walk is to choose them, layer by layer."""
    model = chosen.rule(snn.time_steps)
    if chosen.threshold != 'balanced':
        return {name: model.thresholds(histogram, chosen, snn.time_steps) for name, histogram in histograms.items()}
    largest = balanced_thresholds(snn, batches, chosen.channel_wise, progress=progress)
    return {name: value / model.peak for name, value in largest.items()}


def _walk(sweep: Sweep, chosen: Pipeline, report: CalibrationReport, progress: bool, observes: bool) -> None:
    """Calibrate one layer after the other; ``observes``: choose its thresholds first. Fills in the report."""
    snn, steps = sweep.snn, Progress(sweep, chosen, progress, observes)
    calibrated: set[Tensor] = set()
    try:
        for layer, row in zip(sweep, report):
            steps.layer(layer.name)
            if observes:
                histogram, model = observe_layer(layer, steps), chosen.rule(snn.time_steps)
                set_threshold(layer.neuron, model.thresholds(histogram, chosen, snn.time_steps), chosen, snn.time_steps)
            row.error_before, row.error_after = calibrate_layer(layer, chosen, calibrated, steps)
            row.threshold = float(layer.neuron.threshold.mean())
    except BaseException:  # an interrupt too: the next attempt must start from the ANN's own weights
        snn.network.load_state_dict(sweep.ann.state_dict())
        raise
    finally:
        steps.close()


@torch.no_grad()
def observe(snn: SpikingNetwork, batches: Iterable[Batch], progress: bool = False) -> dict[str, ActivationHistogram]:
    """Stream the ANN's activations over all batches into a histogram per layer of neurons."""
    if isinstance(batches, Tensor):  # one batch, as for calibrate
        batches = [batches]
    histograms: dict[str, ActivationHistogram] = {}

    def watch(name: str):
        def hook(neuron: nn.Module, _inputs, activation: Tensor) -> None:
            assert isinstance(neuron, IFNeuron)
            histograms[name] = _add(histograms.get(name), name, neuron, activation)
        return hook

    handles = [neuron.register_forward_hook(watch(name)) for name, neuron in snn.neurons.items()]
    try:
        with snn.full_precision():
            for batch in progress_bar(batches, 'thresholds', disable=not progress, unit='batch'):
                call_with(snn.network, batch)
        agree(None)
    except ValueError as problem:
        agree(problem)
    finally:
        for handle in handles:
            handle.remove()
    for histogram in histograms.values():
        histogram.gather()
    return histograms


def observe_layer(layer: Layer, steps: Steps) -> ActivationHistogram:
    """The histogram of one layer's activations in the ANN, over all batches: that of :func:`observe`."""
    histogram, problem = None, None
    try:
        for index in layer.sweep.indices():
            histogram = _add(histogram, layer.name, layer.neuron, layer.activation(index))
            steps.update()
    except ValueError as error:
        problem = error
    agree(problem)
    assert histogram is not None
    histogram.gather()
    return histogram


def _add(histogram: ActivationHistogram | None, name: str, neuron: IFNeuron, activation: Tensor) -> ActivationHistogram:
    """Add a layer's activations to its histogram, or to a new one."""
    activation = with_channels(activation).movedim(neuron.channel_axis, 1)
    if neuron.activation is not None:  # it may be negative; so may what differential neurons send
        activation = activation.abs()
    if histogram is None:
        histogram = ActivationHistogram(activation.shape[1], activation.device)
    try:
        histogram.update(activation)
    except ValueError as error:
        raise ValueError(f'layer {name}: {error}') from None
    return histogram


def set_threshold(neuron: IFNeuron, threshold: Tensor, pipeline: Pipeline, time_steps: int) -> None:
    """Give a layer its rule, its thresholds and the half threshold that turns ClipFloor into ClipRound [Eq. 17].

    Args:
        neuron: to be set.
        threshold: h, (1,) or (C,).
        pipeline: names rule, rate and shift.
        time_steps: T.
    """
    neuron.rule = pipeline.rule(time_steps).under(neuron.ceiling, neuron.activation)
    neuron.time_steps = time_steps
    neuron.threshold = threshold = threshold.to(neuron.threshold.dtype)  # that of the ANN
    neuron.bias, neuron.initial_potential = torch.zeros_like(threshold), torch.zeros_like(threshold)
    shift = pipeline.shift if 'shift' in neuron.rule.options else None
    if shift == 'bias':
        neuron.bias = neuron.rule.half_level(threshold, time_steps) / time_steps
    elif shift == 'potential':
        neuron.initial_potential = neuron.rule.half_level(threshold, time_steps)


def calibrate_layer(layer: Layer, pipeline: Pipeline, calibrated: set[Tensor],
                    steps: 'Progress') -> tuple[float, float]:
    """Calibrate one layer of neurons on what the layers before it emit; return its error before and after."""
    neuron, time_steps = layer.neuron, layer.sweep.snn.time_steps
    if pipeline.threshold == 'current':
        largest = largest_current(layer, pipeline.channel_wise, steps)
        set_threshold(neuron, largest / neuron.rule.peak, pipeline, time_steps)
    corrections = [correct for correct in (pipeline.potential and correct_potential, pipeline.bias and correct_bias)
                   if correct]
    # The spikes stored last are those that the layers behind receive.
    errors = measure(layer, pipeline, steps, keep=not corrections)
    before = errors.relative
    for round_ in range(pipeline.rounds):
        for correct in corrections:
            correct(neuron, errors, pipeline, time_steps)
            errors = measure(layer, pipeline, steps, keep=True)
        if round_ == 0 and pipeline.weights and layer is layer.block.last:
            errors = improve_weights(layer.block, pipeline, calibrated, errors, steps)
    return before, errors.relative


class Progress:
    """A progress bar over everything a calibration will do, with the layer's name beside it."""

    def __init__(self, sweep: Sweep, pipeline: Pipeline, show: bool, observe: bool = False) -> None:
        corrections = pipeline.rounds * (pipeline.bias + (pipeline.potential is not None))
        passes = 1 + observe + corrections + pipeline.weights + (pipeline.threshold == 'current')
        total = (passes * len(sweep.batches) * len(sweep.layers)
                 + pipeline.weights * pipeline.iterations * len(sweep.blocks))
        self.bar = progress_bar(total=total, desc='calibration', disable=not show, unit='step')

    def layer(self, name: str) -> None:
        self.bar.set_postfix_str(name, refresh=False)

    def update(self, count: int = 1) -> None:
        self.bar.update(count)

    def close(self) -> None:
        self.bar.close()
