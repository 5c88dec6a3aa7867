"""What the wrappers of backbones and classifiers have in common: an ANN that loads checkpoints, and its conversion."""
import copy
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..calibration.procedure import CalibrationReport, calibrate
from ..conversion.placing import convert
from ..simulation.network import SpikingNetwork
from .checks import CheckpointError


class SpikingWrapper(BaseModule):
    """A module that stands in a model config for an ANN and simulates its spiking counterpart, ``self.snn``.

    It loads checkpoints of the ANN (under the ANN's own keys, as in the OpenMMLab zoo), converts them, and then needs
    calibration (:class:`mmsnn.CalibrationHook`). It loads its own calibrated state as well.
    """

    def wrap(self, ann: nn.Module, **options) -> None:
        """Take over an ANN; ``options`` are those of :func:`mmsnn.convert`."""
        # The ANN is kept to load plain checkpoints, outside of _modules: it is no part of the spiking model's state.
        self._ann = (ann,)
        self._ann_is_loaded = True
        ann.train(False)
        self._options = options
        self.runs_as = 'snn'
        self.convert()

    @property
    def ann(self) -> nn.Module:
        """The ANN, with the weights that were loaded last."""
        return self._ann[0]

    def convert(self, **options) -> None:
        """Convert the ANN anew; whatever has been calibrated is gone.

        Args:
            **options: replace some of those given to :func:`mmsnn.convert` so far, such as ``time_steps``.
        """
        self._options.update(options)
        self.snn = self.converted()

    def converted(self) -> SpikingNetwork:
        """A new conversion of the ANN, as ``self.snn`` was before its calibration."""
        device = next(self.snn.parameters()).device if hasattr(self, 'snn') else None
        return convert(self.ann, **self._options).to(device)

    def simulate(self, *inputs: Tensor):
        """Simulate T steps; with ``runs_as`` set to ``'quantised'`` compute the ceiling, with ``'ann'`` the ANN."""
        runs: dict[str, Callable] = dict(snn=self.snn, quantised=self.snn.quantised, ann=self._run_ann)
        return runs[self.runs_as](*inputs)

    @torch.no_grad()
    def _run_ann(self, *inputs: Tensor):
        if self._ann_is_loaded:
            return self.ann.to(inputs[0].device)(*inputs)
        settings = self.snn._check_calibrated()
        if settings['weights'] or settings.get('weight_bits'):
            raise RuntimeError(f"the checkpoint holds weights that {settings['pipeline']!r} or dtype='int8' "
                               'changed, not those of the ANN: test the checkpoint of the ANN to compare with it')
        return self.snn.network(*inputs)  # the ANN, with its batch normalisation folded

    @property
    def calibrated(self) -> bool:
        return self.snn.settings is not None

    def inputs(self, images: Iterable[Tensor]) -> Iterable[Tensor]:
        """What this part receives when the model that it is a part of sees these images."""
        return images

    def calibrate(self, batches: Iterable[Tensor], pipeline: str | None = None, **options) -> CalibrationReport:
        """Calibrate on preprocessed images; see :func:`mmsnn.calibrate`."""
        return calibrate(self.snn, batches, pipeline, **options)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        keys = [key for key in state_dict if key.startswith(prefix)]
        self._ann_is_loaded = not any(key.startswith(prefix + 'snn.') for key in keys)
        if keys and self._ann_is_loaded:
            self._load_ann({key.removeprefix(prefix): state_dict.pop(key) for key in keys})
            # What follows finds the converted weights as if they had been in the checkpoint.
            state_dict.update({f'{prefix}snn.{key}': value for key, value in self.snn.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _load_ann(self, state: dict[str, Tensor]) -> None:
        """Load the ANN's own weights and convert it anew.

        Raises:
            CheckpointError: the weights are those of another network.
        """
        own = self.ann.state_dict()
        state = without_averages(state, own)
        missing = [key for key in own if key not in state and not key.endswith('num_batches_tracked')]
        other = [f'{key} is {tuple(state[key].shape)} instead of {tuple(value.shape)}'
                 for key, value in own.items() if key in state and state[key].shape != value.shape]
        other += [f'{key} is not in the network' for key in state if key not in own]
        if missing or other:
            listed = [f'{key} is missing in the checkpoint' for key in missing] + other
            more = f'\n  ... and {len(listed) - 8} more' if len(listed) > 8 else ''
            raise CheckpointError(
                f'the checkpoint does not fit the ANN ({type(self.ann).__name__}) that is to be converted:\n  '
                + '\n  '.join(listed[:8]) + more + '\nUse the checkpoint that was trained with this config.')
        state = OrderedDict(state)
        if hasattr(own, '_metadata'):
            state._metadata = own._metadata  # type: ignore[attr-defined]  # torchvision's MNASNet asks for its version
        self.ann.load_state_dict(state, strict=False)
        self.convert()


def without_averages(state: dict[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Leave out the ``ema_*`` copies of weights that EMAHook of mmcv 1 left in checkpoints; a warning names them."""
    averages = [key for key in state if key.rpartition('.')[2].startswith('ema_') and key not in set(own)]
    if averages:
        more = f' and {len(averages) - 3} more' if len(averages) > 3 else ''
        print_log(f'the checkpoint holds averages of weights beside the weights, which are not used: '
                  f'{", ".join(averages[:3])}{more}', 'current', logging.WARNING)
    return {key: value for key, value in state.items() if key not in averages}


def find_parts(model: nn.Module) -> dict[str, SpikingWrapper]:
    """The spiking parts of a model by name, if it has any."""
    return {name or type(module).__name__: module for name, module in model.named_modules()
            if isinstance(module, SpikingWrapper)}


def spiking_parts(model: nn.Module) -> dict[str, SpikingWrapper]:
    """The spiking parts of a model by name, in the order of computation, or the spiking classifier that it is.

    Raises:
        RuntimeError: there is none.
    """
    parts = find_parts(model)
    if not parts:
        raise RuntimeError(
            'the model has no spiking part to calibrate: wrap the backbone of a detector, '
            "model=dict(backbone=dict(type='mmsnn.SpikingBackbone', time_steps=..., backbone=...)), a whole detector, "
            "model=dict(type='mmsnn.SpikingDetector', time_steps=..., detector=...), or a whole classifier, "
            "model=dict(type='mmsnn.SpikingClassifier', time_steps=..., classifier=...)")
    return parts


def twin_of(module: nn.Module, **attributes) -> nn.Module:
    """A copy with the same parameters and modules, of which some are to be replaced; ``attributes`` are at once."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    for name, value in attributes.items():
        object.__setattr__(twin, name, value)
    return twin
