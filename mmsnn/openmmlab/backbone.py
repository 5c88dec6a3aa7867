"""The backbone wrapper that makes a detector spiking."""
from collections.abc import Sequence

from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor

from .registry import MODELS
from .wrapper import SpikingWrapper


@MODELS.register_module()
class SpikingBackbone(SpikingWrapper):
    """A backbone converted to integrate-and-fire neurons, in the place of the backbone in a model config::

        model = dict(backbone=dict(type='mmsnn.SpikingBackbone', time_steps=32, backbone=dict(type='ResNet', ...)))

    Neck and head see the mean over time, once per image. For checkpoints see :class:`SpikingWrapper`.

    Args:
        backbone: config of the ANN backbone.
        time_steps: T.
        include, exclude, coding, readout, delay, chunk_steps, dtype, compile: see :func:`mmsnn.convert`.
        example: shape of the images, such as ``(1, 3, 224, 224)``, for transformers: see :func:`mmsnn.convert`.
        init_cfg: not used; weights come from a checkpoint.
    """

    def __init__(self, backbone: dict, time_steps: int, include: str | Sequence[str] = '*',
                 exclude: str | Sequence[str] = (), coding: str = 'rate', readout: str = 'spikes',
                 delay: int = 0, chunk_steps: int | None = None, dtype: str = 'float32', compile: bool | str = 'auto',
                 example: Sequence[int] | None = None, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg=None)
        self.wrap(MMENGINE_MODELS.build(backbone), time_steps=time_steps, include=include, exclude=exclude,
                  readout=readout, delay=delay, chunk_steps=chunk_steps, dtype=dtype, compile=compile,
                  **({} if coding == 'rate' else dict(coding=coding)), example=example)

    def forward(self, x: Tensor):
        """Simulate T steps for images (N, 3, H, W); return the backbone's outputs, averaged over time."""
        return self.simulate(x)
