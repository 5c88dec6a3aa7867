"""The converted network: a traced graph with neurons, its settings, and the mean over time as its output."""
import inspect
import json
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, fx, nn

from ..neurons.differential import Differential
from ..neurons.layer import IFNeuron, span
from .inputs import check_finite
from .loop import TimeLoop
from .operations import source_of
from .plan import Env, Plan, is_neuron, neuron_of
from .settings import check_coding, check_conversion, check_fits, read_settings
from .structure import assemble, output_nodes
from .worth import decide

READOUTS = ('spikes', 'potential')
DTYPES = ('float32', 'bfloat16', 'int8')


def neuron_name(node: fx.Node) -> str:
    """Name of the layer of neurons that a node calls: that of the ReLU call site it replaced."""
    return str(node.target).removeprefix('neurons.')


class SpikingNetwork(nn.Module):
    """A network of integrate-and-fire neurons with the call signature of the ANN it was converted from.

    Calling it simulates T time steps with the image itself as input at every step (direct coding) and returns, in
    the structure of the ANN's outputs, their mean over time. ``network`` called directly is the BN-folded ANN.

    Attributes:
        network: the traced graph; its module names are the ANN's own, plus ``neurons``.
        time_steps: T.
        dtype: of spikes, currents and weights in a simulation (``'int8'``: of convolutions' spikes and weights);
            calibration works in float32.
        compile: whether a simulation is compiled by torch.compile: True, False, or ``'auto'``, see :meth:`expect`.
        delay: steps at the beginning that the mean over time leaves out.
        converted_for: ``'rate'`` or ``'differential'``, see :func:`mmsnn.convert`.
        graded: names of what mixes values, such as norms, and computes on what neurons have sent so far.
        recorders: called with the inputs' values and the number of steps of each simulation, where somebody counts.
        settings: what the network was calibrated with (plain types); None before calibration. It is part of
            ``state_dict()``, and loading a state made for another T is refused.
    """

    compile: bool | str  # type: ignore[assignment]  # nn.Module has a method of this name, which is not needed here
    _settings: Tensor

    def __init__(self, network: fx.GraphModule, time_steps: int, readout: str = 'spikes',
                 chunk_steps: int | None = None, delay: int = 0, dtype: str = 'float32',
                 compile: bool | str = 'auto', coding: str = 'rate', graded: Iterable[str] = ()) -> None:
        super().__init__()
        if not isinstance(time_steps, int) or time_steps < 1:
            raise ValueError(f'time_steps must be an integer of at least 1, not {time_steps!r}')
        if chunk_steps is not None and (not isinstance(chunk_steps, int) or chunk_steps < 1):
            raise ValueError(f'chunk_steps must be None or an integer of at least 1, not {chunk_steps!r}')
        if readout not in READOUTS:
            raise ValueError(f'readout must be one of {READOUTS}, not {readout!r}')
        if not isinstance(delay, int) or not 0 <= delay < time_steps:
            raise ValueError(f'delay must be an integer from 0 to time_steps - 1, not {delay!r}')
        if dtype not in DTYPES:
            raise ValueError(f'dtype must be one of {DTYPES}, not {dtype!r}')
        check_conversion(coding, delay, compile)
        self.network = network
        self.converted_for, self.graded = coding, list(graded)
        if coding == 'differential':
            for neuron in self.neurons.values():
                neuron.rule = Differential()
        self.dtype = dtype
        self.compile = compile
        self.delay = delay
        self.time_steps = time_steps
        self.readout = readout
        self.chunk_steps = chunk_steps
        self.recorders: list[Callable[[Env, int], None]] = []
        # JSON in a buffer: everything that copies a model's tensors (mmengine's checkpoints, DDP) takes it along.
        self.register_buffer('_settings', torch.zeros(0, dtype=torch.uint8))
        self._plan: Plan | None = None
        self._loop: TimeLoop | None = None
        self._expected = 0  # calls
        self._compiled: bool | None = None  # what 'auto' has decided
        # What conversion has added, to where the ANN is.
        self.to(next((value.device for value in network.parameters()), None))
        self.requires_grad_(False).eval()

    @property
    def graph(self) -> fx.Graph:
        return self.network.graph

    @property
    def neuron_nodes(self) -> list[fx.Node]:
        """The call sites of the neurons, in the order in which the network computes them."""
        return [node for node in self.graph.nodes if is_neuron(node)]

    @property
    def neurons(self) -> dict[str, IFNeuron]:
        """The layers of neurons by name, in the order in which the network computes them."""
        return {neuron_name(node): neuron_of(node) for node in self.neuron_nodes}

    @property
    def plan(self) -> Plan:
        """The order of computation of the whole network (made once; the graph does not change any more)."""
        if self._plan is None:
            self._plan = Plan(self.graph, [self._read_from(node) for node in self._output_nodes])
        return self._plan

    @property
    def _output_node(self) -> fx.Node:
        return next(iter(reversed(self.graph.nodes)))

    @property
    def _output_nodes(self) -> list[fx.Node]:
        return output_nodes(self._output_node.args[0])

    def _read_from(self, node: fx.Node) -> fx.Node:
        """The node that is averaged over time to give an output: for a potential readout, a neuron's current."""
        return source_of(node) if self.readout == 'potential' and is_neuron(node) else node

    def bind(self, *args, **kwargs) -> Env:
        """Return the values of the graph's placeholders for a call with these arguments."""
        bound = inspect.signature(self.network.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        return {node: bound.arguments[node.target] for node in self.graph.nodes if node.op == 'placeholder'}

    def forward(self, *args, **kwargs):
        """Simulate T steps; return the outputs' mean over time.

        Raises:
            RuntimeError: the network has not been calibrated.
            ValueError: inputs that are NaN or infinite.
        """
        return self.anytime([self.time_steps], *args, **kwargs)[self.time_steps]

    @torch.no_grad()
    def anytime(self, steps: Iterable[int], *args, **kwargs) -> dict:
        """Simulate once and return the outputs' running mean at several steps.

        At the last step T this is what calling the network returns; before, what it would return if it were stopped
        there. (A network calibrated for fewer steps does better: thresholds, biases and potentials depend on T.)

        Args:
            steps: numbers of steps, each from ``delay`` + 1 to T.
            *args, **kwargs: the inputs.

        Returns:
            Outputs, in the structure of the ANN's, by number of steps.

        Raises:
            RuntimeError: the network has not been calibrated.
            ValueError: a number of steps that is not simulated, or inputs that are NaN or infinite.
        """
        self._check_calibrated()
        with self.full_precision():
            return self._anytime(set(steps), *args, **kwargs)

    def full_precision(self) -> torch.autocast:
        """Switch automatic mixed precision off: membranes would be sums of 8 bits. ``dtype`` rounds what may be."""
        return torch.autocast(self._settings.device.type, enabled=False)

    def _anytime(self, wanted: set[int], *args, **kwargs) -> dict:
        if not wanted or min(wanted) <= self.delay or max(wanted) > self.time_steps:
            raise ValueError(f'steps must be from {self.delay + 1} to {self.time_steps}, not {sorted(wanted)}')
        values = self.bind(*args, **kwargs)
        check_finite(values.values())
        for record in self.recorders:
            record(values, max(wanted))
        if self.compile == 'auto' and self._expected and self._compiled is None:
            self._compiled = decide(self, values, self._expected)
            self._loop = self._loop if self._loop and self._loop.compile == self._compiled else None
        static = self.plan.once(values) if not self.plan.varies.issuperset(self.plan.targets) else {}
        running = self.loop.sums(values, wanted, self.delay, self.chunk_steps)
        shift = self._check_calibrated()['shift']
        return {step: self._outputs(sums, static, step, shift) for step, sums in running}

    @property
    def loop(self) -> TimeLoop:
        """What simulates the whole network (made once)."""
        if self._loop is None or self._loop.plan is not self.plan:
            self._loop = TimeLoop(self.network, self.plan, self.dtype, self.compile is True or bool(self._compiled))
        return self._loop

    def expect(self, calls: int) -> None:
        """Say how many calls are ahead, by which ``compile='auto'`` decides at the next one: :func:`.worth.decide`."""
        self._expected, self._compiled = calls, None

    def _outputs(self, sums: dict[fx.Node, Tensor], static: Env, step: int, shift: str | None):
        """The outputs' mean from ``delay`` on up to a step, in the structure of the ANN's; ``shift`` as in settings."""
        def read(node: fx.Node) -> Tensor:
            source = self._read_from(node)
            if source not in sums:
                mean = static[source]
            else:  # a new tensor: the simulation goes on with its own
                mean = sums[source] / (step - self.delay) if self.coding == 'rate' else sums[source].clone()
            if source is not node:
                neuron = neuron_of(node)
                mean = neuron(mean + self._calibrated_current(neuron, mean, shift))
            return mean

        return assemble(self._output_node.args[0], read)

    @property
    def coding(self) -> str:
        """What its neurons' spikes mean: ``'rate'`` or ``'differential'``, see
        :class:`mmsnn.neurons.model.NeuronModel`. Calibration decides, within what the network was converted for."""
        return next((neuron.rule.coding for neuron in self.neurons.values()), self.converted_for)

    @torch.no_grad()
    def quantised(self, *args, **kwargs):
        """Return what the ANN makes of its input with activations quantised to T + 1 levels, without time.

        Every neuron is replaced by its closed form [Eq. 17] with its calibrated threshold, bias and initial potential.
        This is the ceiling of a rate code with these parameters: what the simulation lacks to it is the error of
        spike timing, what it lacks to the ANN that of quantisation.
        """
        self._check_calibrated()
        values = self.bind(*args, **kwargs)
        check_finite(values.values())
        with self.full_precision():
            env = self.plan.analog(values, quantised=True)
        return self._outputs({}, env, self.time_steps, self.settings['shift'])

    def _check_calibrated(self) -> dict:
        """Return the settings.

        Raises:
            RuntimeError: the network has not been calibrated.
        """
        settings = self.settings
        if settings is None:
            raise RuntimeError('this spiking network has no thresholds yet: call mmsnn.calibrate(snn, batches), add '
                               'mmsnn.CalibrationHook to the config, or load a checkpoint made by tools/calibrate.py')
        return settings

    def _calibrated_current(self, neuron: IFNeuron, current: Tensor, shift: str | None) -> Tensor:
        """What calibration adds to a neuron's mean current: bias + v(0)/T, without the half threshold that rounds."""
        bias, initial, threshold = (neuron.per_channel(value, current) for value in (
            neuron.mean_bias, neuron.initial_potential, neuron.threshold))
        if neuron.rule.coding == 'differential':
            return bias
        shifted = shift and 'shift' in neuron.rule.options
        rounding = neuron.rule.half_level(threshold, self.time_steps) if shifted else 0.
        return bias + (initial - rounding) / self.time_steps

    def train(self, mode: bool = True) -> 'SpikingNetwork':
        """Stay in evaluation mode: a batch normalisation that could not be folded must use its running statistics."""
        return super().train(False)

    def __getstate__(self) -> dict:
        # Plan and loop refer to the nodes of this very graph: a copy makes its own.
        return {**self.__dict__, '_plan': None, '_loop': None}

    @property
    def settings(self) -> dict | None:
        return read_settings(self._settings)[0] if len(self._settings) else None

    @settings.setter
    def settings(self, settings: dict | None) -> None:
        text = b'' if settings is None else json.dumps(settings, default=lambda number: number.item()).encode()
        self._settings = torch.tensor(list(text), dtype=torch.uint8, device=self._settings.device)

    @torch.inference_mode(False)  # what is made here is to be changed later
    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        stored = state_dict.get(prefix + '_settings')
        if stored is not None and len(stored):
            # Before anything is loaded: a network with half of a state must not look calibrated.
            settings, rule = read_settings(stored)
            if settings['time_steps'] != self.time_steps and rule.rule(self.time_steps).coding == 'rate':
                raise RuntimeError(
                    f'this state was calibrated for time_steps={settings["time_steps"]}, but the network has '
                    f'time_steps={self.time_steps}. Use the same number, or calibrate the ANN again.')
            check_coding(self, rule.rule(self.time_steps))
            check_fits(self.state_dict(), state_dict, prefix)
            for neuron in self.neurons.values():
                neuron.rule = rule.rule(self.time_steps).under(neuron.ceiling, neuron.activation)
                neuron.time_steps = self.time_steps
        if stored is not None:
            self._settings = stored.new_empty(stored.shape, device=self._settings.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __repr__(self) -> str:
        parts = [f'time_steps={self.time_steps}', f'coding={self.coding!r}', f'layers={len(self.neuron_nodes)}']
        if self.settings is None:
            parts.append('not calibrated')
        else:
            name, chosen = self.settings['pipeline'], read_settings(self._settings)[1]
            thresholds = torch.cat([neuron.threshold.flatten() for neuron in self.neurons.values()])
            parts += [f'pipeline={name!r}', *chosen.changes(name), f'thresholds={span(thresholds)}']
            parts += [f'weight_bits={bits}'] if (bits := self.settings.get('weight_bits')) else []
        usual = dict(dtype='float32', compile='auto', readout='spikes', delay=0)
        parts += [f'{key}={getattr(self, key)!r}' for key, value in usual.items() if getattr(self, key) != value]
        return f'SpikingNetwork({", ".join(parts)}; modules: print(snn.network))'
