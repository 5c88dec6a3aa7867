"""What a network was converted for, and what it was calibrated with: whether the two fit, and how it is stored."""
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from ..neurons.model import NeuronModel
from ..neurons.pipelines import Pipeline

if TYPE_CHECKING:
    from .network import SpikingNetwork

CODINGS = ('rate', 'differential')
NO_DELAY = ('delay leaves out steps of a mean over time, but differential coding gives a sum, which needs all of them: '
            'use delay=0')


def check_conversion(coding: str, delay: int, compile: bool | str = 'auto') -> None:
    """Refuse what no network can be converted for.

    Raises:
        ValueError: no such coding or way to compile, or a delay that cannot take effect.
    """
    if not isinstance(compile, bool) and compile != 'auto':
        raise ValueError(f"compile must be True, False or 'auto', not {compile!r}")
    if coding not in CODINGS:
        raise ValueError(f'coding must be one of {CODINGS}, not {coding!r}')
    if coding == 'differential' and delay:
        raise ValueError(NO_DELAY)


def check_coding(snn: 'SpikingNetwork', rule: NeuronModel) -> None:
    """Make sure that neurons of this kind can do what a network was converted to.

    Raises:
        ValueError: they cannot.
    """
    check_conversion(rule.coding, snn.delay)
    if snn.converted_for == 'differential' and not rule.any_activation:
        others = [name for name, neuron in snn.neurons.items() if neuron.activation is not None]
        names = ', '.join(others[:8]) + (f' and {len(others) - 8} more' if len(others) > 8 else '')
        what = f' and has neurons that are no ReLU: {names}' if others else ''
        raise ValueError(f"this network was converted with coding='differential'{what}. Calibrate it with "
                         "pipeline='differential' (or 'signed-functions', a rate code), or convert the ANN with "
                         "coding='rate'")


def check_fits(own: Mapping[str, Tensor], stored: Mapping[str, Tensor], prefix: str) -> None:
    """Make sure that a stored state is one of this network: mmengine loads what fits and warns about the rest.

    Args:
        own: the network's own state.
        stored: a state that has it below a prefix.
        prefix: of its keys.

    Raises:
        RuntimeError: the calibrated state is that of another network.
    """
    given = {key.removeprefix(prefix): value.shape for key, value in stored.items() if key.startswith(prefix)}
    wrong = [f'{key} is missing' for key in own if key not in given]
    wrong += [f'{key} is not in this network' for key in given if key not in own]
    wrong += [f'{key} is {tuple(shape)} instead of {tuple(own[key].shape)}' for key, shape in given.items()
              if key in own and shape != own[key].shape and key != '_settings' and '.neurons.' not in key]
    if wrong:
        more = f'\n  ... and {len(wrong) - 8} more' if len(wrong) > 8 else ''
        raise RuntimeError('this calibrated state is that of another network, or of other include/exclude '
                           'patterns:\n  ' + '\n  '.join(wrong[:8]) + more
                           + '\nUse the config that it was calibrated with, or calibrate the ANN again.')


def read_settings(stored: Tensor) -> tuple[dict, Pipeline]:
    """Read the settings of a stored state, and the pipeline they describe.

    A choice that did not exist when the state was made has its default, which is what it was without a choice.

    Raises:
        RuntimeError: they are damaged, or describe what this version does not know.
    """
    try:
        settings = json.loads(bytes(stored.tolist()))
        own = {key: settings.pop(key) for key in ('pipeline', 'time_steps')}
        own |= {key: settings.pop(key) for key in ('images', 'weight_bits') if key in settings}  # not the pipeline's
        chosen = Pipeline(**settings)
        return own | Pipeline().as_dict() | settings, chosen
    except (ValueError, TypeError, KeyError) as error:
        raise RuntimeError(f'the settings of this calibrated state cannot be read ({type(error).__name__}: {error}). '
                           'It is damaged or of another version of mmsnn: calibrate the ANN again.') from error
