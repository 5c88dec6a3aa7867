"""What a calibration consists of: the paper's pipelines, and the earlier methods it compares with."""
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from numbers import Integral, Real
from types import UnionType
from typing import Any, get_args

from . import differential, functions  # noqa: F401 (they register themselves)
from .integrate_and_fire import RESETS
from .model import NEURONS, NeuronModel
from .thresholds import RULES


def check_type(name: str, kind: Any, value: object) -> None:
    """Check a choice that a text or a config may have brought.

    Raises:
        ValueError: it is of another kind: ``'False'`` is no bool, and would count as true.
    """
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    accepted = {bool: bool, int: Integral, float: Real, str: str, type(None): type(None)}
    allowed = tuple(accepted.get(one, (tuple, list)) for one in kinds)  # what is none of these is a tuple of names
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in kinds):
        text = getattr(kind, '__name__', str(kind)) if kind in accepted else str(kind)
        raise ValueError(f'{name} must be of type {text}, not {value!r}')


def unknown(name: object, known: Iterable) -> str:
    """An unknown name as messages show it, with the nearest known one where one is near."""
    words = [word for word in known if isinstance(word, str)]
    near = get_close_matches(name, words, 1) if isinstance(name, str) else []
    return f'{name!r}' + (f' (did you mean {near[0]!r}?)' if near else '')


@dataclass(frozen=True)
class Pipeline:
    """Every choice of a calibration.

    Attributes:
        neuron: kind of neurons, a name in :data:`mmsnn.neurons.model.NEURONS`.
        threshold: rule for the thresholds: ``'mmse'`` [Algorithm 1], ``'max'`` or ``'percentile'`` (99.99) of the
            ANN's activations, or ``'current'``: the largest current that a neuron receives at any time step when the
            layers before it spike (threshold balancing, Sengupta et al. 2019), or ``'balanced'``: local threshold
            balancing (Bu et al. 2025), or a name that you have added to :data:`mmsnn.neurons.thresholds.RULES`.
        channel_wise: one threshold per channel, or one per layer.
        rounding: what the mmse rule scores: ``'round'`` (ClipRound, Eq. 18) or ``'floor'`` (ClipFloor).
        shift: how neurons round instead of flooring [section 4.3]: ``'bias'`` adds h/(2T) to the current of every
            step, ``'potential'`` starts at h/2 (same rate in closed form, earlier spikes), None floors.
        reset: of the membrane potential after a spike: ``'subtract'`` the threshold, or to ``'zero'``.
        signed: neurons take back spikes that they fired too early; see :class:`mmsnn.FiringRule`.
        max_spikes: the most spikes in one time step, or None for no bound.
        max_rate: r, the spikes per time step of the largest activations: thresholds are chosen for r T + 1 levels, and
            are as much lower. A rate of 2 gives in T steps the precision, and costs about the spikes, of 2 T steps.
        clip: whether neurons that count stop at r T spikes. Otherwise larger activations than those of the calibration
            images are met as far as ``max_spikes`` and the ceiling of a ReLU6 allow.
        bias: calibrate the bias (section 4.4, LCP).
        bias_per_step: one bias for each time step instead of one for all [Wu et al., FTBC, ECCV 2024].
        potential: calibrate the initial potential (ACP): ``'channel'``, the spatial mean (appendix B.4), which serves
            images of any size; ``'position'``, one value per neuron, for images of one size; or None.
        rounds: how often potential and bias are corrected, in this order, each time on a new simulation of the layer:
            the first time before, any other after the weights.
        weights: calibrate the weights by gradient descent [ACP, Eq. 23].
        blockwise: calibrate weights between two places where everything goes through one layer of neurons, as those of
            a residual block, together, on the error of the last layer [Li et al., BRECQ, ICLR 2021]; otherwise layer by
            layer, as the paper.
        tune: what the gradient descent moves beside the weights: any of ``'bias'`` and ``'threshold'``.
        iterations: gradient steps per layer.
        learning_rate: initial learning rate; it decays to zero along a cosine.
        momentum: of the gradient descent.
        seed: of the order in which batches are drawn for the gradient descent.
        sizes: n, how many sizes the spikes of differential neurons can have.
        uniform: whether these are multiples of the smallest instead of powers of two; see
            :class:`mmsnn.neurons.differential.Differential`.
        dead_zone: what differences they do not send, in thresholds.
        narrowing: by what factor that narrows in the first steps, to reach ``dead_zone`` at the third.
        shrinking: by what factor the sizes of their spikes shrink from step to step, until ``settling_steps``.
        settling_steps: after how many steps of a steady current differential neurons shall meet activations best: with
            fewer they arrive sooner, with more they round less.
    """

    neuron: str = 'integrate-and-fire'
    threshold: str = 'mmse'
    channel_wise: bool = True
    rounding: str = 'round'
    shift: str | None = 'bias'
    reset: str = 'subtract'
    signed: bool = False
    max_spikes: int | None = 1
    max_rate: int = 1
    clip: bool = True
    bias: bool = False
    bias_per_step: bool = False
    potential: str | None = None
    rounds: int = 1
    weights: bool = False
    blockwise: bool = False
    tune: tuple[str, ...] = ()
    iterations: int = 5000
    learning_rate: float = 1e-5
    momentum: float = .9
    seed: int = 0
    sizes: int = 4
    uniform: bool = False
    dead_zone: float = .5
    narrowing: float = 1.
    shrinking: int = 1
    settling_steps: int = 2

    def __post_init__(self) -> None:
        for field in fields(self):
            check_type(field.name, field.type, getattr(self, field.name))
        allowed = dict(neuron=tuple(NEURONS), threshold=(*RULES, 'current', 'balanced'),
                       rounding=('round', 'floor'), reset=RESETS,
                       shift=('bias', 'potential', None), potential=('channel', 'position', None))
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f'{name} must be one of {values}, not {unknown(getattr(self, name), values)}')
        NEURONS[self.neuron].check(self)
        if not {'bias', 'threshold'}.issuperset(self.tune):
            raise ValueError(f"tune may hold 'bias' and 'threshold', not {self.tune!r}")
        if self.max_spikes is not None and self.max_spikes < 1:
            raise ValueError(f'max_spikes must be None or at least 1, not {self.max_spikes}')
        if not 1 <= self.max_rate <= (self.max_spikes or self.max_rate):
            raise ValueError(f'max_rate must be from 1 to max_spikes ({self.max_spikes}), not {self.max_rate}')
        if not self.clip and (self.max_spikes is None or self.max_spikes == self.max_rate):
            raise ValueError(f'clip=False takes effect where max_spikes is a number above max_rate ({self.max_rate}), '
                             f'not {self.max_spikes}')
        if self.reset == 'zero' and (self.signed or self.max_spikes != 1):
            raise ValueError("signed spikes and bursts need reset='subtract'")
        if self.iterations < 1 or self.rounds < 1 or not self.learning_rate > 0:
            raise ValueError(f'iterations, rounds and learning_rate must be positive, not {self.iterations}, '
                             f'{self.rounds} and {self.learning_rate}')
        if not 0 <= self.momentum < 1:
            raise ValueError(f'momentum must be from 0 to 1, not {self.momentum}')

    def rule(self, time_steps: int) -> NeuronModel:
        """How neurons fire in a simulation of T steps."""
        return NEURONS[self.neuron].of(self, time_steps)

    def changes(self, name: str) -> list[str]:
        """Which choices differ from those of a named pipeline, in text; a name that is none means the defaults."""
        named, own = PIPELINES.get(name, Pipeline()), {**asdict(self), 'tune': tuple(self.tune)}
        return [f'{key}={value!r}' for key, value in own.items() if value != getattr(named, key)]

    def __repr__(self) -> str:
        nearest = min(PIPELINES, key=lambda name: len(self.changes(name)))
        return f'make_pipeline({", ".join([repr(nearest), *self.changes(nearest)])})'

    @property
    def walks(self) -> bool:
        """Whether anything needs more than the ANN's activations: a walk over the layers, each after those before."""
        return self.threshold == 'current' or self.bias or self.potential is not None or self.weights

    @property
    def simulates(self) -> bool:
        """Whether that walk simulates every layer; otherwise it goes by what neurons emit in closed form."""
        each_step = self.threshold == 'current' or self.bias and self.bias_per_step
        return self.walks and (each_step or not self.rule(1).closed_form)

    def as_dict(self) -> dict:
        return asdict(self)

    def in_effect(self) -> dict:
        """The choices that change something beside the others: no learning rate where no weights are calibrated."""
        idle: set[str] = set()
        if not self.weights:
            idle |= {'blockwise', 'tune', 'iterations', 'learning_rate', 'momentum'}
        if not self.bias:
            idle.add('bias_per_step')
        if not self.bias and self.potential is None:
            idle.add('rounds')
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
                if name not in idle}


PIPELINES = {
    # The paper's: Baseline, Baseline + LCP, Baseline + ACP.
    'none': Pipeline(),
    'light': Pipeline(bias=True),
    'advanced': Pipeline(potential='channel', weights=True),
    'potential': Pipeline(potential='channel'),  # its first half [Table 5]
    # Neurons that send changes, as spikes of a few sizes; nothing depends on T.
    'differential': Pipeline(neuron='differential', sizes=6, bias=True),
    # Neurons start at half the threshold, fire up to four times a step and take back what they fired too early.
    'signed': Pipeline(shift='potential', signed=True, max_spikes=4, max_rate=2, potential='channel'),
    # The same for any activation, in networks converted with coding='differential'; what an activation of the mean
    # current lacks is emitted.
    'signed-functions': Pipeline(neuron='rate-function', max_spikes=4, max_rate=4, bias=True),
    # Several spikes a step and as many on average: in T steps the ANN with activations quantised to 12 T + 1 levels.
    'bursts': Pipeline(shift='potential', max_spikes=12, max_rate=12, potential='channel'),
    # Data-based normalisation: nothing is clipped [Diehl et al. 2015; with soft reset, Rueckauer et al. 2017].
    'maxact': Pipeline(threshold='max', channel_wise=False, shift=None),
    # Robust normalisation: outliers are clipped [Rueckauer et al. 2017].
    'percentile': Pipeline(threshold='percentile', channel_wise=False, shift=None),
    # Threshold balancing on spiking inputs, hard reset [Sengupta et al. 2019].
    'spike-norm': Pipeline(threshold='current', channel_wise=False, shift=None, reset='zero'),
    # The residual membrane potential neuron: the same thresholds, soft reset [Han et al. 2020].
    'rmp': Pipeline(threshold='current', channel_wise=False, shift=None),
    # Temporal-switch coding has the neuron and the thresholds of RMP, and so its rates under direct coding; what it
    # saves is messages: a spike switches a synapse on or off for as long as it stays so [Han and Roy 2020].
    'tsc': Pipeline(threshold='current', channel_wise=False, shift=None),
}


def make_pipeline(name: str, levels: int | None = None, **options) -> Pipeline:
    """Return the named pipeline with some of its choices replaced.

    Args:
        name: in :data:`PIPELINES`.
        levels: how many different values a neuron can emit in one step, zero included; sets what its kind of neuron
            needs for it.
        **options: other choices.

    Raises:
        ValueError: no such pipeline, option or value.
    """
    if name not in PIPELINES:
        raise ValueError(f'pipeline must be one of {list(PIPELINES)}, not {unknown(name, PIPELINES)}')
    known = [*(field.name for field in fields(Pipeline)), 'levels']
    others = sorted(set(options) - set(known))
    if others:
        named = ', '.join(unknown(other, known) for other in others)
        raise ValueError(f'unknown calibration options: {named}; there are {known}')
    if levels is not None:
        check_type('levels', int, levels)
        kind = replace(PIPELINES[name], **{key: options[key] for key in ('neuron', 'signed') if key in options})
        implied = NEURONS[kind.neuron].for_levels(kind, levels)
        if twice := sorted(set(implied) & set(options)):
            raise ValueError(f'levels={levels} decides {" and ".join(twice)}: give one or the other')
        options |= implied
    return replace(PIPELINES[name], **options)


def usual_pipeline(time_steps: int, levels: int | None = None, coding: str = 'rate') -> str:
    """The pipeline to take for T steps where none is named, for neurons with so many levels a step (default: 13).

    A network that was converted for differential coding gets that.
    Chosen on training images; docs/near_lossless.md has the numbers.
    """
    if coding == 'differential':
        return 'differential'
    if levels in (2, 3):
        return {2: 'potential', 3: 'signed'}[levels]
    few = levels is not None and (levels < 9 or levels % 2 == 0)
    return 'bursts' if few or time_steps <= 2 else 'differential'


def differences(name: str, pipeline: Pipeline) -> dict:
    """The choices of a pipeline that are not those of the one it is named after, and that change something."""
    named = asdict(PIPELINES[name])
    named['tune'] = list(named['tune'])
    return {key: value for key, value in pipeline.in_effect().items() if key != 'seed' and value != named[key]}

