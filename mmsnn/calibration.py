"""Choose thresholds and calibrate a spiking network, layer by layer [section 4.4, Algorithm 2]."""
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .balancing import balanced_thresholds
from .network import SpikingNetwork
from .neurons import IFNeuron
from .pipelines import Pipeline, make_pipeline
from .simulate import Plan
from .store import GIBI, Store
from .sweep import Layer, Sweep, materialise
from .thresholds import ActivationHistogram, choose_threshold, positive


@dataclass
class LayerReport:
    """What calibration did to one layer of neurons.

    The errors are ``sum (x - rate)**2 / sum x**2`` over the calibration images, x being the ANN's activation
    [section 3.4]: with the layer as converted on calibrated inputs, and after its own calibration. None where the
    pipeline does not simulate.
    """

    name: str
    threshold: float
    error_before: float | None = None
    error_after: float | None = None


class CalibrationReport(list[LayerReport]):
    """One :class:`LayerReport` per layer, in the order of the network; prints as a table."""

    def __str__(self) -> str:
        def number(value: float | None) -> str:
            return '-' if value is None else f'{value:.4f}'

        rows = [('layer', 'mean threshold', 'error before', 'error after')]
        rows += [(layer.name, *map(number, (layer.threshold, layer.error_before, layer.error_after))) for layer in self]
        width = [max(map(len, column)) for column in zip(*rows)]
        return '\n'.join(f'{row[0]:<{width[0]}}' + ''.join(f'  {v:>{w}}' for v, w in zip(row[1:], width[1:]))
                         for row in rows)


@torch.no_grad()
def calibrate(snn: SpikingNetwork, batches: Iterable[Tensor], pipeline: str = 'light', *,
              histograms: dict[str, ActivationHistogram] | None = None, memory_budget: int = 8 * GIBI,
              progress: bool = True, **options) -> CalibrationReport:
    """Choose the thresholds of a converted network and calibrate it, in place.

    Args:
        snn: from :func:`mmsnn.convert`.
        batches: calibration inputs, an iterable of tensors (N, ...) preprocessed as for the ANN. Sizes may differ
            between batches. A gradient step of the weights calibration takes one batch.
        pipeline: ``'none'`` (thresholds only, the paper's Baseline), ``'light'`` (bias), ``'advanced'`` (initial
            potential, then weights), or another of :data:`mmsnn.PIPELINES`.
        histograms: of the activations on these batches, from :func:`mmsnn.observe`, where they are at hand: they do
            not depend on T or the pipeline, and so serve many calibrations of the same ANN.
        memory_budget: bytes of activations and spikes to hold in memory; more goes to temporary files.
        progress: show progress bars.
        **options: replace single choices of the pipeline; see :class:`mmsnn.Pipeline`.

    Returns:
        A report per layer: mean threshold, relative error before and after.

    Raises:
        ValueError: unknown pipeline or option, no or unusable batches, images of several sizes with
            ``potential='position'``, or weights that have been calibrated before.
        OSError: the temporary files do not fit on the disk.
    """
    chosen = make_pipeline(pipeline, **options)
    if snn.settings and snn.settings['weights']:
        raise ValueError('the weights of this network have been calibrated, the ANN is no longer in it: '
                         'convert the ANN again and calibrate the result')
    parameter = next(snn.parameters(), None)
    batches = materialise(batches, parameter.device if parameter is not None else torch.device('cpu'))
    if chosen.potential == 'position' and len({batch.shape[1:] for batch in batches}) > 1:
        sizes = sorted({tuple(batch.shape[2:]) for batch in batches})
        raise ValueError(f"potential='position' needs images of one size, these have {len(sizes)}: {sizes[:3]}...; "
                         "use potential='channel'")
    snn.settings = None  # until all is done: a failure leaves nothing that looks calibrated
    if chosen.threshold == 'balanced':
        thresholds = balanced_thresholds(snn, batches, chosen.channel_wise, progress=progress)
    else:
        histograms = observe(snn, batches, progress) if histograms is None else histograms
        rule = 'max' if chosen.threshold == 'current' else chosen.threshold  # currents are known on the walk only
        thresholds = {name: choose_threshold(histogram, rule, snn.time_steps, chosen.channel_wise, chosen.rounding)
                      for name, histogram in histograms.items()}
    report = CalibrationReport()
    for name, neuron in snn.neurons.items():
        set_threshold(neuron, thresholds[name], chosen, snn.time_steps)
        report.append(LayerReport(name, float(neuron.threshold.mean())))
    if chosen.simulates:
        sweep = Sweep(snn, batches, Store(memory_budget))
        steps = Progress(sweep, chosen, progress)
        calibrated: set[nn.Module] = set()
        try:
            for layer, row in zip(sweep, report):
                steps.layer(layer.name)
                row.error_before, row.error_after = calibrate_layer(layer, chosen, calibrated, steps)
                row.threshold = float(layer.neuron.threshold.mean())
        except BaseException:  # an interrupt too: the next attempt must start from the ANN's own weights
            snn.network.load_state_dict(sweep.ann.state_dict())
            raise
        finally:
            steps.close()
    snn.settings = dict(pipeline=pipeline, time_steps=snn.time_steps, **chosen.as_dict())
    return report


def observe(snn: SpikingNetwork, batches: Iterable[Tensor], progress: bool = False) -> dict[str, ActivationHistogram]:
    """Stream the ANN's activations over all batches into a histogram per layer of neurons."""
    histograms: dict[str, ActivationHistogram] = {}

    def watch(name: str):
        def hook(_module: nn.Module, _inputs, activation: Tensor) -> None:
            if name not in histograms:
                histograms[name] = ActivationHistogram(activation.shape[1], activation.device)
            try:
                histograms[name].update(activation)
            except ValueError as error:
                raise ValueError(f'layer {name}: {error}') from None
        return hook

    handles = [neuron.register_forward_hook(watch(name)) for name, neuron in snn.neurons.items()]
    try:
        for batch in tqdm(batches, 'thresholds', disable=not progress, unit='batch'):
            snn.network(batch)
    finally:
        for handle in handles:
            handle.remove()
    return histograms


def set_threshold(neuron: IFNeuron, threshold: Tensor, pipeline: Pipeline, time_steps: int) -> None:
    """Give a layer its rule, its thresholds and the half threshold that turns ClipFloor into ClipRound [Eq. 17]."""
    neuron.rule, neuron.time_steps = pipeline.rule(time_steps), time_steps
    neuron.threshold = threshold
    neuron.bias = threshold / (2 * time_steps) if pipeline.shift == 'bias' else torch.zeros_like(threshold)
    neuron.initial_potential = threshold / 2 if pipeline.shift == 'potential' else torch.zeros_like(threshold)


def largest_current(layer: Layer, channel_wise: bool, steps: 'Progress') -> Tensor:
    """The largest current any neuron receives at any step, over all batches: (1,), or per channel, (C,)."""
    largest: Tensor | None = None
    for index in range(len(layer.sweep.batches)):
        for currents in layer.currents(index):
            found = currents.movedim(2, 0).flatten(1).amax(1)
            largest = found if largest is None else torch.maximum(largest, found)
        steps.update()
    return positive(largest if channel_wise else largest.amax(0, keepdim=True))


def calibrate_layer(layer: Layer, pipeline: Pipeline, calibrated: set[nn.Module],
                    steps: 'Progress') -> tuple[float, float]:
    """Calibrate one layer of neurons on what the layers before it emit; return its error before and after."""
    neuron, time_steps = layer.neuron, layer.sweep.snn.time_steps
    if pipeline.threshold == 'current':
        set_threshold(neuron, largest_current(layer, pipeline.channel_wise, steps), pipeline, time_steps)
    corrections = [correct for correct in (pipeline.potential and correct_potential, pipeline.bias and correct_bias)
                   if correct]
    # The spikes stored last are those that the layers behind receive.
    errors = measure(layer, pipeline, steps, keep=not corrections)
    before = errors.relative
    for round_ in range(pipeline.rounds):
        for correct in corrections:
            correct(neuron, errors, pipeline, time_steps)
            errors = measure(layer, pipeline, steps, keep=True)
        if round_ == 0 and pipeline.weights:
            errors = improve_weights(layer, pipeline, calibrated, errors, steps)
    return before, errors.relative


class Errors(NamedTuple):
    """How far a layer's firing rates are from the ANN's activations x, over all calibration images.

    Attributes:
        relative: ``sum (x - rate)**2 / sum x**2``.
        channel: mean of ``x - rate`` over images and positions, (C,).
        position: its mean over images alone, (C, H, W), where the pipeline calibrates per position.
        step: mean of ``x - s(t)`` over images and positions at each step t, (T, C), where it calibrates per step.
    """

    relative: float
    channel: Tensor
    position: Tensor | None = None
    step: Tensor | None = None


def measure(layer: Layer, pipeline: Pipeline, steps: 'Progress', keep: bool = False) -> Errors:
    """Simulate a layer over all batches; ``keep`` its spikes as the input of the layers behind."""
    squared, norm, images, count = 0., 0., 0, 0
    channel: Tensor | float = 0.
    position: Tensor | float = 0.
    spikes: Tensor | float = 0.  # sum over images and positions at each step
    for index in range(len(layer.sweep.batches)):
        activation = layer.activation(index)
        rate, by_step = layer.rate(index, keep)
        error = activation - rate
        squared += float(error.square().sum(dtype=torch.float64))
        norm += float(activation.square().sum(dtype=torch.float64))
        channel = channel + error.movedim(1, 0).flatten(1).sum(1, dtype=torch.float64)
        if pipeline.potential == 'position':
            position = position + error.sum(0)
        spikes = spikes + by_step
        images += len(error)
        count += error.numel() // error.shape[1]
        steps.update()
    mean = (channel / count).float()
    time_steps = layer.sweep.snn.time_steps
    activity = mean + (spikes.sum(0) / time_steps / count).float()  # of the ANN
    return Errors(squared / max(norm, 1e-30), mean,
                  position / images if pipeline.potential == 'position' else None,
                  activity - (spikes / count).float() if pipeline.bias_per_step else None)


def correct_bias(neuron: IFNeuron, errors: Errors, pipeline: Pipeline, time_steps: int) -> None:
    """Add the mean error of each channel to its bias [section 4.4, LCP], or that of each step to the step's bias."""
    neuron.bias = neuron.bias + (errors.step if pipeline.bias_per_step else errors.channel)


def correct_potential(neuron: IFNeuron, errors: Errors, pipeline: Pipeline, time_steps: int) -> None:
    """Start T times the mean error higher, per position or, as the spatial mean, per channel [ACP, appendix B.4]."""
    error = errors.channel if errors.position is None else errors.position
    neuron.initial_potential = _as_map(neuron.initial_potential, error) + time_steps * error


def improve_weights(layer: Layer, pipeline: Pipeline, calibrated: set[nn.Module], errors: Errors,
                    steps: 'Progress') -> Errors:
    """Calibrate the weights of a layer, but keep the old ones unless the simulated error becomes smaller.

    Args:
        layer, pipeline, steps: as in :func:`calibrate_layer`.
        calibrated: modules that have been calibrated; none is calibrated twice. Updated in place.
        errors: what :func:`measure` returned for the layer as it is.

    Returns:
        What it returns for the layer as it is then.
    """
    owned = [module for module in weighted_modules(layer.plan) if module not in calibrated]
    calibrated.update(owned)
    saved = [module.weight.detach().clone() for module in owned]
    calibrate_weights(layer, owned, pipeline, steps)
    improved = measure(layer, pipeline, steps, keep=True)
    if improved.relative <= errors.relative:
        return improved
    for module, weight in zip(owned, saved):
        module.weight.copy_(weight)
    return measure(layer, pipeline, steps, keep=True)


def weighted_modules(plan: Plan) -> list[nn.Module]:
    """The convolutions and linear layers of a segment."""
    modules = [node.graph.owning_module.get_submodule(node.target)
               for node in (*plan.static, *plan.varying) if node.op == 'call_module']
    return [module for module in dict.fromkeys(modules)
            if isinstance(getattr(module, 'weight', None), nn.Parameter)
            and not isinstance(module, nn.modules.batchnorm._BatchNorm)]


def calibrate_weights(layer: Layer, modules: list[nn.Module], pipeline: Pipeline, steps: 'Progress') -> None:
    """Minimise ``||x - ClipRound(z)||**2`` over the weights before a layer of neurons [Eq. 23].

    z is the mean current, which the mean incoming spikes give because everything in between is affine. The loss sums
    over channels and averages over images and positions; the floor passes its gradient on [Eq. 24].
    """
    if not modules:
        steps.update(pipeline.iterations)
        return
    neuron = layer.neuron
    weights = [module.weight for module in modules]
    optimizer = torch.optim.SGD(weights, lr=pipeline.learning_rate, momentum=pipeline.momentum)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, pipeline.iterations)
    draw = random.Random(pipeline.seed)
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for _ in range(pipeline.iterations):
            index = draw.randrange(len(layer.sweep.batches))
            target, inputs = layer.activation(index), layer.mean_inputs(index)
            with torch.enable_grad():
                rate = neuron.rate(layer.plan.analog(inputs)[layer.current])
                loss = (target - rate).square().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            steps.update()
    finally:
        for weight in weights:
            weight.requires_grad_(False)


def _as_map(value: Tensor, like: Tensor) -> Tensor:
    """Shape a per-channel value (C,) so that a correction per channel, (C,), or per position, (C, H, W), adds to it."""
    return value.view(-1, *[1] * (like.ndim - 1)) if value.ndim == 1 else value


class Progress:
    """A progress bar over everything a calibration will do, with the layer's name beside it."""

    def __init__(self, sweep: Sweep, pipeline: Pipeline, show: bool) -> None:
        corrections = pipeline.rounds * (pipeline.bias + (pipeline.potential is not None))
        passes = 1 + corrections + pipeline.weights + (pipeline.threshold == 'current')
        per_layer = passes * len(sweep.batches) + pipeline.weights * pipeline.iterations
        self.bar = tqdm(total=per_layer * len(sweep.layers), desc='calibration', disable=not show, unit='step')

    def layer(self, name: str) -> None:
        self.bar.set_postfix_str(name, refresh=False)

    def update(self, count: int = 1) -> None:
        self.bar.update(count)

    def close(self) -> None:
        self.bar.close()
