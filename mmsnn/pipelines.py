"""What a calibration consists of. The names and compositions of 'none', 'light' and 'advanced' are the paper's."""
from dataclasses import asdict, dataclass, fields, replace


@dataclass(frozen=True)
class Pipeline:
    """Every choice of a calibration.

    Attributes:
        threshold: rule for the thresholds: ``'mmse'`` [Algorithm 1], ``'max'`` or ``'percentile'`` (99.99).
        channel_wise: one threshold per channel, or one per layer.
        rounding: what the mmse rule scores: ``'round'`` (ClipRound, Eq. 18) or ``'floor'`` (ClipFloor).
        shift: how neurons round instead of flooring [section 4.3]: ``'bias'`` adds h/(2T) to the current of every
            step, ``'potential'`` starts at h/2 (same rate in closed form, earlier spikes), None floors.
        bias: calibrate the bias (section 4.4, LCP).
        potential: calibrate the initial potential (ACP): ``'channel'``, the spatial mean (appendix B.4), which serves
            images of any size; ``'position'``, one value per neuron, for images of one size; or None.
        weights: calibrate the weights by gradient descent [ACP, Eq. 23].
        iterations: gradient steps per layer.
        learning_rate: initial learning rate; it decays to zero along a cosine.
        momentum: of the gradient descent.
        seed: of the order in which batches are drawn for the gradient descent.
    """

    threshold: str = 'mmse'
    channel_wise: bool = True
    rounding: str = 'round'
    shift: str | None = 'bias'
    bias: bool = False
    potential: str | None = None
    weights: bool = False
    iterations: int = 5000
    learning_rate: float = 1e-5
    momentum: float = .9
    seed: int = 0

    def __post_init__(self) -> None:
        allowed = dict(threshold=('max', 'percentile', 'mmse'), rounding=('round', 'floor'),
                       shift=('bias', 'potential', None), potential=('channel', 'position', None))
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f'{name} must be one of {values}, not {getattr(self, name)!r}')
        if self.iterations < 1 or not self.learning_rate > 0:
            raise ValueError(f'iterations and learning_rate must be positive, not {self.iterations} and '
                             f'{self.learning_rate}')

    @property
    def simulates(self) -> bool:
        """Whether anything beyond the thresholds is calibrated, which takes a simulation of every layer."""
        return self.bias or self.potential is not None or self.weights

    def as_dict(self) -> dict:
        return asdict(self)


PIPELINES = {
    'none': Pipeline(),
    'light': Pipeline(bias=True),
    'advanced': Pipeline(potential='channel', weights=True),
}


def make_pipeline(name: str, **options) -> Pipeline:
    """Return the named pipeline with some of its choices replaced.

    Raises:
        ValueError: no such pipeline, option or value.
    """
    if name not in PIPELINES:
        raise ValueError(f'pipeline must be one of {list(PIPELINES)}, not {name!r}')
    known = [field.name for field in fields(Pipeline)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f'unknown calibration options {unknown}; there are {known}')
    return replace(PIPELINES[name], **options)
