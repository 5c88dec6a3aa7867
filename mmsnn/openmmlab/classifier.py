"""Whole classifiers as spiking networks, and plain torch networks as classifiers of mmpretrain."""
from collections.abc import Sequence
from typing import Any

from mmengine.model import BaseModel
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor, nn

from ..simulation.operations import replace_module
from .registry import MODELS
from .wrapper import SpikingWrapper, twin_of


@MODELS.register_module()
class SpikingClassifier(SpikingWrapper, BaseModel):
    """A classifier of mmpretrain converted as a whole, in the place of the model in a config::

        model = dict(_delete_=True, type='mmsnn.SpikingClassifier', time_steps=32, classifier=_base_.model)

    The last linear layer integrates and never fires [section 3.2]: the class scores are the mean over time of its
    current. For checkpoints see :class:`SpikingWrapper`.

    Args:
        classifier: config of the ANN, such as an ``ImageClassifier`` or ``TimmClassifier``.
        time_steps: T.
        include, exclude, coding, delay, chunk_steps, dtype, compile: see :func:`mmsnn.convert`.
        example: shape of the images, such as ``(1, 3, 224, 224)``, for transformers: see :func:`mmsnn.convert`.
        data_preprocessor: of the classifier, where its own config has none (mmengine passes on the config's).
        init_cfg: not used; weights come from a checkpoint.

    Raises:
        ValueError: the classifier has a head for each of several tasks.
    """

    def __init__(self, classifier: dict, time_steps: int, include: str | Sequence[str] = '*',
                 exclude: str | Sequence[str] = (), coding: str = 'rate', delay: int = 0,
                 chunk_steps: int | None = None, dtype: str = 'float32', compile: bool | str = 'auto',
                 example: Sequence[int] | None = None, data_preprocessor: dict | None = None,
                 init_cfg: dict | None = None) -> None:
        if data_preprocessor is not None:
            classifier = {'data_preprocessor': data_preprocessor, **classifier}
        ann = MMENGINE_MODELS.build(classifier)
        if hasattr(getattr(ann, 'head', None), 'task_heads'):
            raise ValueError('a classifier with a MultiTaskHead does not convert as a whole: let its backbone spike, '
                             "model=dict(backbone=dict(type='mmsnn.SpikingBackbone', time_steps=..., backbone=...))")
        BaseModel.__init__(self, data_preprocessor=ann.data_preprocessor)
        self.wrap(ann, time_steps=time_steps, include=include, exclude=exclude, delay=delay, chunk_steps=chunk_steps,
                  dtype=dtype, compile=compile, **({} if coding == 'rate' else dict(coding=coding)), example=example)

    def convert(self, **options) -> None:
        super().convert(**options)
        # Nothing is trained, but DistributedDataParallel refuses a model of which nothing could be.
        next(self.snn.parameters()).requires_grad_(True)

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'):
        """Simulate T steps for images (N, 3, H, W).

        Returns:
            For ``mode='tensor'`` the class scores, (N, classes); for ``'predict'`` the data samples with predictions.

        Raises:
            RuntimeError: ``mode='loss'``.
        """
        if mode == 'loss':
            raise RuntimeError('a converted network is not trained: train the ANN, then convert and calibrate it')
        scores = self.simulate(inputs)
        if mode == 'tensor':
            return scores
        # What the ANN makes of its scores is the head's business, or the model's own where it has no head (timm).
        head: Any = getattr(self.ann, 'head', None)
        if head is None:
            return self.ann._get_predictions(scores, data_samples)  # type: ignore[operator]
        return twin_of(head, forward=lambda found: found).predict(scores, data_samples)  # type: ignore[operator]


@MODELS.register_module()
class TorchClassifier(BaseModel):
    """Any torch network that maps images to class scores, as a classifier of mmpretrain::

        model = dict(type='mmsnn.TorchClassifier', network=dict(type='torchvision.models.mobilenet_v2'))

    Args:
        network: config of the network; ``type`` may be the full name of any class or function that returns a module.
        head: config of the head for loss and predictions; without layers of its own.
        data_preprocessor: as for every mmpretrain model.
        init_cfg: initialisation of the weights.
    """

    def __init__(self, network: dict, head: dict | None = None, data_preprocessor: dict | None = None,
                 init_cfg: dict | None = None) -> None:
        preprocessor = {'type': 'mmpretrain.ClsDataPreprocessor', **(data_preprocessor or {})}
        super().__init__(data_preprocessor=preprocessor, init_cfg=init_cfg)
        self.network = MMENGINE_MODELS.build(network)
        self.head = MMENGINE_MODELS.build(head or dict(type='mmpretrain.ClsHead'))

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'):
        """Return the class scores, (N, classes), or what the head's ``loss`` or ``predict`` makes of them."""
        scores = self.network(inputs)
        return scores if mode == 'tensor' else getattr(self.head, mode)((scores,), data_samples)


@MODELS.register_module()
def AveragePooled(network: dict) -> nn.Module:
    """Build a network with every max pooling replaced by average pooling, as in appendix B.1 of the paper::

        backbone=dict(type='mmsnn.AveragePooled', network=dict(type='ResNetV1c', depth=34))

    The state-dict keys are those of the network itself.
    """
    built = MMENGINE_MODELS.build(network)
    for name, module in list(built.named_modules()):
        if isinstance(module, nn.MaxPool2d):
            mean = nn.AvgPool2d(module.kernel_size, module.stride, module.padding, module.ceil_mode)
            replace_module(built, name, mean)
    return built
