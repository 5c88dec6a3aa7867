"""The backbone wrapper that makes a detector spiking."""
from collections.abc import Iterable, Sequence

from mmengine.model import BaseModule
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor

from .calibration import CalibrationReport, calibrate
from .conversion import convert
from .registry import MODELS


@MODELS.register_module()
class SpikingBackbone(BaseModule):
    """A backbone converted to integrate-and-fire neurons, in the place of the backbone in a model config::

        model = dict(backbone=dict(type='mmsnn.SpikingBackbone', time_steps=32, backbone=dict(type='ResNet', ...)))

    It loads checkpoints of the plain ANN (the backbone's own keys, as in the OpenMMLab zoo), which it converts and
    which then need calibration (:class:`mmsnn.CalibrationHook`), as well as its own calibrated state. Neck and head
    see the mean over time, once per image.

    Args:
        backbone: config of the ANN backbone.
        time_steps: T.
        include, exclude, readout, chunk_steps: see :func:`mmsnn.convert`.
        init_cfg: not used; weights come from a checkpoint.
    """

    def __init__(self, backbone: dict, time_steps: int, include: str | Sequence[str] = '*',
                 exclude: str | Sequence[str] = (), readout: str = 'spikes', chunk_steps: int | None = None,
                 init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg=None)
        # The ANN is kept to load plain checkpoints, outside of _modules: it is no part of the spiking model's state.
        self._ann = (MMENGINE_MODELS.build(backbone),)
        self._ann[0].train(False)
        self._options = dict(time_steps=time_steps, include=include, exclude=exclude, readout=readout,
                             chunk_steps=chunk_steps)
        self.snn = convert(self._ann[0], **self._options)

    def forward(self, x: Tensor):
        """Simulate T steps for images (N, 3, H, W); return the backbone's outputs, averaged over time."""
        return self.snn(x)

    @property
    def calibrated(self) -> bool:
        return self.snn.settings is not None

    def calibrate(self, batches: Iterable[Tensor], pipeline: str, **options) -> CalibrationReport:
        """Calibrate on preprocessed images; see :func:`mmsnn.calibrate`."""
        return calibrate(self.snn, batches, pipeline, **options)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        keys = [key for key in state_dict if key.startswith(prefix)]
        if keys and not any(key.startswith(prefix + 'snn.') for key in keys):
            self._load_ann({key.removeprefix(prefix): state_dict.pop(key) for key in keys})
            # What follows finds the converted weights as if they had been in the checkpoint.
            state_dict.update({f'{prefix}snn.{key}': value for key, value in self.snn.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _load_ann(self, state: dict[str, Tensor]) -> None:
        """Load the ANN's own weights and convert it anew.

        Raises:
            RuntimeError: the weights are those of another backbone.
        """
        ann, = self._ann
        own = ann.state_dict()
        missing = [key for key in own if key not in state and not key.endswith('num_batches_tracked')]
        other = [f'{key} is {tuple(state[key].shape)} instead of {tuple(value.shape)}'
                 for key, value in own.items() if key in state and state[key].shape != value.shape]
        other += [f'{key} is not in the backbone' for key in state if key not in own]
        if missing or other:
            listed = [f'{key} is missing in the checkpoint' for key in missing] + other
            more = f'\n  ... and {len(listed) - 8} more' if len(listed) > 8 else ''
            raise RuntimeError(
                f'the checkpoint does not fit the backbone ({type(ann).__name__}) that is to be converted:\n  '
                + '\n  '.join(listed[:8]) + more + '\nUse the checkpoint that was trained with this backbone config.')
        ann.load_state_dict(state, strict=False)
        self.snn = convert(ann, **self._options).to(next(self.snn.parameters()).device)
