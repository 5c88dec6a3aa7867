"""Integrate-and-fire neurons [section 3.2 of the paper]."""
import math

import torch
from torch import Tensor, nn

RESETS = ('subtract', 'zero')


def integrate_and_fire(currents: Tensor, potential: Tensor, threshold: Tensor, bias: Tensor | None = None,
                       out: Tensor | None = None, reset: str = 'subtract') -> Tensor:
    """Advance integrate-and-fire neurons by K time steps.

    At every step, with membrane potential v, input current c, bias b and threshold h [Eq. 2 to 4]::

        u = v + c + b;   s = h if u >= h else 0;   v = u - s

    Args:
        currents: input currents, shape (K, N, ...). A constant current may be an expanded view.
        potential: membrane potential before the first step, shape (N, ...). **Updated in place.**
        threshold: broadcastable to (N, ...), positive.
        bias: additional constant current, broadcastable to (N, ...).
        out: where to write the spikes, shape (K, N, ...); allocated when not given.
        reset: ``'subtract'``, the soft reset above, or ``'zero'``, the hard reset of earlier methods: v = 0 after a
            spike, which forgets how far u was above h.

    Returns:
        Spikes of value 0 or ``threshold``, shape (K, N, ...).
    """
    spikes = torch.empty(currents.shape, dtype=potential.dtype, device=potential.device) if out is None else out
    for current, spike in zip(currents, spikes):
        potential += current
        if bias is not None:
            potential += bias
        torch.ge(potential, threshold, out=spike)
        if reset == 'zero':
            potential.masked_fill_(spike > 0, 0.)
        spike *= threshold
        if reset == 'subtract':
            potential -= spike
    return spikes


class IFNeuron(nn.Module):
    """The state of one layer of integrate-and-fire neurons: one instance per ReLU call site of the ANN.

    Called as a module it is the activation it replaced, ``clip(x, 0, ceiling)``, so that the converted graph
    called directly is still the (BN-folded) ANN. The time loop calls :meth:`fire` instead.

    Args:
        ceiling: largest value of the replaced activation: infinite for ReLU, 6 for ReLU6.

    Attributes:
        reset: how a spike resets the membrane potential; see :func:`integrate_and_fire`. It comes from the
            pipeline, and after loading from the settings of the network.

    Buffers (all float, shape (1,) for one value per layer or (C,) per channel):
        threshold: firing threshold h and value of a spike. NaN until thresholds have been chosen.
        bias: current added at every step, on top of the convolution's own bias.
        initial_potential: v(0); also (C, H, W) when calibrated per position.
    """

    def __init__(self, ceiling: float = math.inf) -> None:
        super().__init__()
        self.ceiling = ceiling
        self.reset = 'subtract'
        self.register_buffer('threshold', torch.full((1,), math.nan))
        self.register_buffer('bias', torch.zeros(1))
        self.register_buffer('initial_potential', torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0, self.ceiling)

    def start(self, current: Tensor) -> Tensor:
        """Return a fresh membrane potential, shape (N, ...), for one step's current of that shape.

        Raises:
            ValueError: the initial potential is per position and was calibrated for another image size.
        """
        initial = per_channel(self.initial_potential, current)
        if self.initial_potential.ndim > 1 and initial.shape != current.shape[1:]:
            raise ValueError(
                f'the initial potential was calibrated per position for feature maps of {tuple(initial.shape)}, but '
                f"this input gives {tuple(current.shape[1:])}. Use images of the calibrated size, or calibrate with "
                "potential='channel' (one value per channel), which serves every size.")
        return initial.expand(current.shape).to(current.dtype, copy=True).contiguous()

    def fire(self, currents: Tensor, potential: Tensor, out: Tensor | None = None) -> Tensor:
        """Advance by the K steps of ``currents``, shape (K, N, ...); see :func:`integrate_and_fire`."""
        step = currents[0]
        return integrate_and_fire(currents, potential, per_channel(self.threshold, step),
                                  per_channel(self.bias, step), out, self.reset)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # A buffer's shape says how finely it was calibrated, which a fresh neuron cannot know: take the stored one.
        for name, buffer in self.named_buffers(recurse=False):
            stored = state_dict.get(prefix + name)
            if stored is not None and stored.shape != buffer.shape:
                setattr(self, name, buffer.new_empty(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def per_channel(value: Tensor, x: Tensor) -> Tensor:
    """Shape a (1,) or (C,) value so that it broadcasts along the channels (dimension 1) of ``x``, (N, C, ...)."""
    return value.view(-1, *[1] * (x.ndim - 2)) if value.ndim == 1 else value
