"""What a spiking model costs, as a metric of mmengine beside CocoMetric or Accuracy."""
from dataclasses import asdict
from functools import partial
from typing import cast

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmengine.model import BaseTTAModel
from torch import nn

from ..analysis.cost import OPERATIONS, Cost, CostCounter, connections
from ..simulation.weighted import Weighted, has_weights
from .parts import Dense
from .registry import METRICS
from .wrapper import SpikingWrapper, spiking_parts

MAC_PICOJOULE = 4.6  # 32-bit floating-point multiply-accumulate in 45 nm [Horowitz, ISSCC 2014]
ADDITION_PICOJOULE = 0.9  # 32-bit floating-point addition


@METRICS.register_module()
class SpikeMetric(BaseMetric):
    """Firing rates, synaptic operations and energy of a spiking model, averaged over the test images.

    Results, per image:

    - ``firing_rate``: spikes per neuron and time step;
    - ``synaptic_operations``: additions that spikes cause, a spike of size k being k of them;
    - ``analog_macs``: multiply-accumulates of the layers that see the image itself;
    - ``graded_operations``: of what mixes values and does not spike, at all steps, counted as multiply-accumulates;
    - ``other_macs``: those of the parts that do not spike (neck and head);
    - ``ann_macs``: what the spiking parts take as ANN;
    - ``ann_energy`` and ``snn_energy`` in millijoule, and their ``energy_ratio``;
    - ``event_operations``: additions where a spike of any size costs one, as on hardware that shifts what it adds, or
      multiplies at no extra cost; and ``event_energy_ratio``, with these in the place of synaptic operations;
    - ``break_even_rate``: the firing rate at which the additions cost as much as the ANN's multiply-accumulates;
    - of a detector with several parts (backbone, neck, head) each one's share in the ANN's energy, such as
      ``neck_ann_share``, and what it takes as SNN, ``neck_event_share``, in units of the complete ANN's energy and with
      event operations: the latter add up to ``event_energy_ratio``.

    Reading and writing memory is not counted.

    Attributes:
        layers: after an evaluation, for each layer of neurons its ``firing_rate`` (spikes per neuron and time step)
            and ``synaptic_operations`` per image. :class:`mmsnn.CalibrationHook` hands them to the visualizer.
        parts: after an evaluation, for each part of the model where operations take place (backbone, neck, heads) its
            ``ann_macs``, ``analog_macs``, ``graded_operations``, ``synaptic_operations`` and ``event_operations`` per
            image; parts that do not spike are analog.

    Args:
        mac_energy: energy of a multiply-accumulate operation in pJ.
        addition_energy: energy of an addition in pJ.
        **kwargs: of :class:`mmengine.evaluator.BaseMetric`.
    """

    default_prefix = 'spike'

    def __init__(self, mac_energy: float = MAC_PICOJOULE, addition_energy: float = ADDITION_PICOJOULE,
                 **kwargs) -> None:
        super().__init__(**kwargs)
        self.mac_energy = mac_energy
        self.addition_energy = addition_energy
        self.layers: dict[str, dict[str, float]] = {}
        self.parts: dict[str, dict[str, float]] = {}
        self._counters: dict[str, CostCounter] = {}
        self._handles: list = []
        self._parts: list[SpikingWrapper] = []
        self._other_macs: dict[str, int] = {}

    def watch(self, model: nn.Module) -> None:
        """Count what ``model`` does from now on, instead of any other; :class:`mmsnn.CalibrationHook` calls this."""
        while isinstance(model, BaseTTAModel):  # parts are called what they are called in the detector
            model = cast(nn.Module, model.module)
        for counter in self._counters.values():
            counter.__exit__()
        for handle in self._handles:
            handle.remove()
        self._other_macs = {}  # of what ran between two tests
        self._parts = list(spiking_parts(model).values())
        self._counters = {name: CostCounter(part.snn).__enter__() for name, part in spiking_parts(model).items()}
        spiking = {module for part in model.modules() if isinstance(part, SpikingWrapper) for module in part.modules()}
        self._handles = [module.register_forward_hook(partial(self._count_other, name.partition('.')[0]))
                         for name, module in model.named_modules() if module not in spiking and has_weights(module)]

    def _count_other(self, part: str, module: Weighted, inputs: tuple, output: torch.Tensor) -> None:
        if all(part.runs_as == 'snn' for part in self._parts):  # AgreementMetric lets the same model run as ANN too
            self._other_macs[part] = self._other_macs.get(part, 0) + connections(module, inputs[0], output)

    def process(self, data_batch: dict, data_samples: list) -> None:
        """Store what the batch that was just predicted has cost.

        Raises:
            RuntimeError: nothing is being watched.
        """
        if not self._counters:
            raise RuntimeError('SpikeMetric watches no model: add mmsnn.CalibrationHook to custom_hooks, or call '
                               'watch(model) before the test')
        costs = {}
        for (name, counter), part in zip(self._counters.items(), self._parts, strict=True):
            costs[name] = dict(asdict(counter.cost), time_steps=counter.snn.time_steps,
                               layers=by_part(name, part, counter.cost))
        # What a part within a RoI head sees are no images.
        images = len(data_samples) or next(iter(costs.values()))['images']
        self.results.append(dict(parts=costs, images=images, other_macs=self._other_macs))
        self._other_macs = {}
        for counter in self._counters.values():
            counter.cost = Cost()

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Sum up over batches and processes; logs the firing rate of each layer."""
        totals = dict(spikes=0., neuron_steps=0., synaptic_operations=0., event_operations=0., analog_macs=0,
                      ann_macs=0, graded_operations=0)
        layers: dict[str, tuple[float, float]] = {}
        for part in results[0]['parts'] if results else ():
            costs = [result['parts'][part] for result in results]
            steps = costs[0]['time_steps']
            for key in ('analog_macs', 'ann_macs', 'graded_operations'):
                totals[key] += sum(cost[key] for cost in costs)
            for layer in dict.fromkeys(layer for cost in costs for layer in cost['spikes']):  # some may see nothing
                spikes, events, neurons, operations = (sum(cost[key].get(layer, 0) for cost in costs) for key in (
                    'spikes', 'events', 'neurons', 'synaptic_operations'))
                totals['spikes'] += spikes
                totals['neuron_steps'] += neurons * steps
                totals['synaptic_operations'] += operations
                totals['event_operations'] += operations * events / max(spikes, 1)
                layers[f'{part}.{layer}' if layer in layers else layer] = spikes / max(neurons * steps, 1), operations
        images = max(sum(result['images'] for result in results), 1)
        other = sum(sum(result['other_macs'].values()) for result in results) / images
        self.parts = parts_of(results, images)
        per_image = {key: totals[key] / images
                     for key in ('synaptic_operations', 'analog_macs', 'ann_macs', 'graded_operations')}
        events = totals['event_operations'] / images
        self.layers = {layer: dict(firing_rate=rate, synaptic_operations=operations / images)
                       for layer, (rate, operations) in layers.items()}
        lines = [f'{layer}: {{firing_rate:.4f}} spikes per neuron and step, {{synaptic_operations:,.0f}} synaptic '
                 'operations'.format(**values) for layer, values in self.layers.items()]
        MMLogger.get_current_instance().info('\n'.join(['firing rates:', *lines]))
        shares = self._shares()
        return dict(firing_rate=totals['spikes'] / max(totals['neuron_steps'], 1), **per_image, other_macs=other,
                    **self.energies(**per_image, other_macs=other), event_operations=events,
                    event_energy_ratio=self.energies(**per_image | dict(synaptic_operations=events),
                                                     other_macs=other)['energy_ratio'],
                    break_even_rate=self._break_even(results), **shares)

    def _shares(self) -> dict[str, float]:
        """Energies of the parts in units of the complete ANN's; logs them."""
        whole = sum(part['ann_macs'] for part in self.parts.values()) * self.mac_energy
        shares: dict[str, float] = {}
        lines = []
        for name, part in self.parts.items():
            macs = part['analog_macs'] + part['graded_operations']
            ann = part['ann_macs'] * self.mac_energy / max(whole, 1e-30)
            snn = (macs * self.mac_energy + part['event_operations'] * self.addition_energy) / max(whole, 1e-30)
            shares |= {f'{name}_ann_share': ann, f'{name}_event_share': snn}
            lines.append(f'{name}: {part["ann_macs"]:,.0f} multiply-accumulates as ANN ({ann:.1%} of the energy); as '
                         f'SNN {macs:,.0f} and {part["event_operations"]:,.0f} additions by events ({snn:.1%})')
        if len(lines) < 2:
            return {}
        MMLogger.get_current_instance().info('\n'.join(['operations by part, per image:', *lines]))
        return shares

    def energies(self, synaptic_operations: float, analog_macs: float, ann_macs: float,
                 other_macs: float, graded_operations: float = 0.) -> dict[str, float]:
        """Energy of ANN and SNN in millijoule, parts that do not spike included, and their ratio."""
        ann = (ann_macs + other_macs) * self.mac_energy
        macs = analog_macs + other_macs + graded_operations
        snn = macs * self.mac_energy + synaptic_operations * self.addition_energy
        return dict(ann_energy=ann * 1e-9, snn_energy=snn * 1e-9, energy_ratio=snn / max(ann, 1e-30))

    def _break_even(self, results: list[dict]) -> float:
        """With every neuron firing at this rate, T (additions per MAC) rate equals the cost of one MAC."""
        steps = max((part['time_steps'] for result in results[:1] for part in result['parts'].values()), default=1)
        return self.mac_energy / (self.addition_energy * steps)


def by_part(name: str, part: SpikingWrapper, cost: Cost) -> dict[str, dict[str, float]]:
    """The operations of a spiking part by the modules of the detector that it consists of, or all under its name."""
    inner = dict(part.ann.named_children()) if isinstance(part.ann, Dense) else {}
    found: dict[str, dict[str, float]] = {}
    for layer, operations in cost.layers.items():
        module = layer.partition('.')[0]
        add_up(found.setdefault(module if module in inner else name, dict.fromkeys(OPERATIONS, 0.)), operations)
    return found


def parts_of(results: list[dict], images: int) -> dict[str, dict[str, float]]:
    """The operations per image of each part, in the order of computation; those that do not spike are analog."""
    sums: dict[str, dict[str, float]] = {}
    for result in results:
        costs = [layers for cost in result['parts'].values() for layers in cost['layers'].items()]
        costs += [(name, dict(ann_macs=macs, analog_macs=macs)) for name, macs in result['other_macs'].items()]
        for name, operations in costs:
            add_up(sums.setdefault(name, dict.fromkeys(OPERATIONS, 0.)), operations)
    return {name: {kind: count / images for kind, count in operations.items()} for name, operations in sums.items()}


def add_up(sums: dict[str, float], values: dict[str, float]) -> None:
    for key, value in values.items():
        sums[key] += value
