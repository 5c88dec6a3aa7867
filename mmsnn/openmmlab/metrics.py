"""What a spiking model costs, as a metric of mmengine beside CocoMetric or Accuracy."""
from dataclasses import asdict

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from torch import nn

from ..analysis.cost import Cost, CostCounter, connections
from ..simulation.weighted import Weighted, has_weights
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
    - ``break_even_rate``: the firing rate at which the additions cost as much as the ANN's multiply-accumulates.

    Reading and writing memory is not counted.

    Attributes:
        layers: after an evaluation, for each layer of neurons its ``firing_rate`` (spikes per neuron and time step)
            and ``synaptic_operations`` per image. :class:`mmsnn.CalibrationHook` hands them to the visualizer.

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
        self._counters: dict[str, CostCounter] = {}
        self._handles: list = []
        self._parts: list[SpikingWrapper] = []
        self._other_macs = 0

    def watch(self, model: nn.Module) -> None:
        """Count what ``model`` does from now on, instead of any other; :class:`mmsnn.CalibrationHook` calls this."""
        for counter in self._counters.values():
            counter.__exit__()
        for handle in self._handles:
            handle.remove()
        self._other_macs = 0  # of what ran between two tests
        self._parts = list(spiking_parts(model).values())
        self._counters = {name: CostCounter(part.snn).__enter__() for name, part in spiking_parts(model).items()}
        spiking = {module for part in model.modules() if isinstance(part, SpikingWrapper) for module in part.modules()}
        self._handles = [module.register_forward_hook(self._count_other) for module in model.modules()
                         if module not in spiking and has_weights(module)]

    def _count_other(self, module: Weighted, inputs: tuple, output: torch.Tensor) -> None:
        if all(part.runs_as == 'snn' for part in self._parts):  # AgreementMetric lets the same model run as ANN too
            self._other_macs += connections(module, inputs[0], output)

    def process(self, data_batch: dict, data_samples: list) -> None:
        """Store what the batch that was just predicted has cost.

        Raises:
            RuntimeError: nothing is being watched.
        """
        if not self._counters:
            raise RuntimeError('SpikeMetric watches no model: add mmsnn.CalibrationHook to custom_hooks, or call '
                               'watch(model) before the test')
        costs = {name: dict(asdict(counter.cost), time_steps=counter.snn.time_steps)
                 for name, counter in self._counters.items()}
        # What a part within a RoI head sees are no images.
        images = len(data_samples) or next(iter(costs.values()))['images']
        self.results.append(dict(parts=costs, images=images, other_macs=self._other_macs))
        self._other_macs = 0
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
            for layer in costs[0]['spikes']:
                spikes, events, neurons, operations = (sum(cost[key].get(layer, 0) for cost in costs) for key in (
                    'spikes', 'events', 'neurons', 'synaptic_operations'))
                totals['spikes'] += spikes
                totals['neuron_steps'] += neurons * steps
                totals['synaptic_operations'] += operations
                totals['event_operations'] += operations * events / max(spikes, 1)
                layers[f'{part}.{layer}' if layer in layers else layer] = spikes / max(neurons * steps, 1), operations
        images = max(sum(result['images'] for result in results), 1)
        other = sum(result['other_macs'] for result in results) / images
        per_image = {key: totals[key] / images
                     for key in ('synaptic_operations', 'analog_macs', 'ann_macs', 'graded_operations')}
        events = totals['event_operations'] / images
        self.layers = {layer: dict(firing_rate=rate, synaptic_operations=operations / images)
                       for layer, (rate, operations) in layers.items()}
        lines = [f'{layer}: {{firing_rate:.4f}} spikes per neuron and step, {{synaptic_operations:,.0f}} synaptic '
                 'operations'.format(**values) for layer, values in self.layers.items()]
        MMLogger.get_current_instance().info('\n'.join(['firing rates:', *lines]))
        return dict(firing_rate=totals['spikes'] / max(totals['neuron_steps'], 1), **per_image, other_macs=other,
                    **self.energies(**per_image, other_macs=other), event_operations=events,
                    event_energy_ratio=self.energies(**per_image | dict(synaptic_operations=events),
                                                     other_macs=other)['energy_ratio'],
                    break_even_rate=self._break_even(results))

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
