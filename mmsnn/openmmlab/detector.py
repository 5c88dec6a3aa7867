"""Whole detectors as spiking networks: backbone, neck and heads, with mmdet's own boxes and non-maximum suppression."""
import copy
import inspect
import operator
from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor, nn

from ..conversion.tracing import ConversionError
from ..simulation.weighted import has_weights
from .parts import Dense, RoIPart, SpikingPart
from .registry import MODELS
from .wrapper import spiking_parts, twin_of

DENSE = 'backbone', 'neck', ('bbox_head', 'rpn_head', 'mask_head')  # in the order of computation; of the heads, one
ROI_HEAD = 'roi_head'
IN_ROI_HEAD = 'shared_head', 'bbox_head', 'mask_head'  # networks in it, each between one RoIAlign and its outputs


@MODELS.register_module()
class SpikingDetector(BaseModel):
    """A detector of mmdet of which several parts, or all, spike, in the place of the model in a config::

        model = dict(_delete_=True, type='mmsnn.SpikingDetector', time_steps=4, detector=_base_.model, backbone={})

    Backbone, neck and the dense head (the RPN of a two-stage detector) are one spiking network from the images to the
    head's raw outputs; networks within a RoI head, behind RoIAlign, are one each. Boxes, proposals and non-maximum
    suppression are the detector's own, on what the outputs are at the end. Parts that do not spike stay what they are.

    Checkpoints of the ANN load under their own keys, and calibrated ones hold everything.

    Args:
        detector: config of the ANN.
        time_steps: T.
        parts: which parts spike, of ``'backbone'``, ``'neck'``, the head (``'bbox_head'`` or ``'rpn_head'``), each only
            with those before it, and ``'roi_head'``. All by default.
        include, exclude: see :func:`mmsnn.convert`; call sites in the RoI head begin with ``'roi_head.'``.
        coding, readout, delay, chunk_steps, dtype, compile: see :func:`mmsnn.convert`.
        example: shape of the images, such as ``(1, 3, 640, 640)``, where backbone, neck or dense head decide by sizes:
            the detector then takes images of this size alone, see :func:`mmsnn.convert`.
        backbone: not used, but mmdet's ``init_detector`` fails without such an entry in the config.
        data_preprocessor: of the detector, where its own config has none (mmengine passes on the config's).
        init_cfg: not used; weights come from a checkpoint.

    Raises:
        ValueError: the detector has no such parts, or those before them do not spike.
    """

    def __init__(self, detector: dict, time_steps: int, parts: Sequence[str] | None = None,
                 include: str | Sequence[str] = '*', exclude: str | Sequence[str] = (), coding: str = 'rate',
                 readout: str = 'spikes', delay: int = 0, chunk_steps: int | None = None, dtype: str = 'float32',
                 compile: bool | str = 'auto', example: Sequence[int] | None = None, backbone: dict | None = None,
                 data_preprocessor: dict | None = None, init_cfg: dict | None = None) -> None:
        detector = copy.deepcopy(detector)
        if data_preprocessor is not None:
            detector = {'data_preprocessor': data_preprocessor, **detector}
        ann = MMENGINE_MODELS.build(detector)
        ann.train(False)
        super().__init__(data_preprocessor=ann.data_preprocessor)
        patterns = dict(include=[include] if isinstance(include, str) else list(include),
                        exclude=[exclude] if isinstance(exclude, str) else list(exclude))
        options = dict(time_steps=time_steps, readout=readout, delay=delay, chunk_steps=chunk_steps, dtype=dtype,
                       compile=compile, **({} if coding == 'rate' else dict(coding=coding)))
        found = dense_modules(ann) + [ROI_HEAD] * hasattr(ann, ROI_HEAD)
        chosen = check_parts(type(ann).__name__, found, found if parts is None else parts)
        say_analog(ann, found)
        # Outside of _modules: the mmdet detector that calls the parts. What it calls is a module of this one, too.
        self._detector = (twin_of(ann),)
        own_tensors(self, ann)
        self._dense = [name for name in chosen if name != ROI_HEAD]
        for name, module in self._with_dense(ann, patterns, dict(options, example=example)).items():
            self.add_module(name, module)
        if ROI_HEAD in chosen:
            self.roi_head = self._spiking_roi_head(ann.roi_head, patterns, options)

    def _with_dense(self, ann: nn.Module, patterns: dict, options: dict) -> dict[str, nn.Module]:
        """The detector's modules, with one spiking part for backbone, neck and head, or as many of them as spike."""
        others = {name: module for name, module in ann.named_children()
                  if name not in self._dense and name != 'data_preprocessor'}
        if not self._dense:
            return others
        head = next((name for name in self._dense if name in DENSE[2]), None)  # a detector need not have a neck
        network: Any = ann.backbone
        if len(self._dense) > 1:
            network = Dense({name: getattr(ann, name) for name in self._dense}, head, bool(others))
        own = {key: [pattern for pattern in values if not pattern.startswith(f'{ROI_HEAD}.')]
               for key, values in patterns.items()}
        part = self._converted('_'.join(self._dense), SpikingPart, network, **own, **options)
        twin: Any = self._detector[0]
        twin.backbone = part
        if len(self._dense) > 1:
            twin.neck = None
        if head:
            boxes = twin_of(getattr(ann, head), forward=operator.attrgetter('outputs'))
            if not hasattr(boxes, 'loss_cls'):
                object.__setattr__(boxes, 'loss_cls', None)  # mmdet 3.3 looks for it when predicting; SSD's has none
            setattr(twin, head, boxes)
        return {'_'.join(self._dense): part, **others}

    def _converted(self, name: str, kind: type[SpikingPart], *args, **options) -> SpikingPart:
        """A spiking part.

        Raises:
            ConversionError: it cannot be converted; the message says how to leave it out.
        """
        try:
            return kind(*args, **options)
        except ConversionError as error:
            listed = str(error)
            fewer = list(self._dense)
            if not name.startswith(ROI_HEAD):
                named = [part for part in fewer if f'\n  {part}.' in listed or f'\n  {part}:' in listed]
                fewer = fewer[:fewer.index(named[0]) if named else len(fewer) - 1]
            advice = f'parts={tuple(fewer)} leaves it as it is' if fewer else 'Its backbone cannot spike as it is'
            raise ConversionError(f'{name} of the detector does not convert: {listed}\n{advice}.') from error

    def _spiking_roi_head(self, roi_head: nn.Module, patterns: dict, options: dict) -> nn.Module:
        """The RoI head's modules, with spiking parts for its networks."""
        def spiking(name: str, ann: nn.Module) -> tuple[nn.Module, nn.Module]:
            """The part, and what the RoI head is to call."""
            if isinstance(ann, nn.ModuleList):  # one for each stage of a cascade
                pairs = [spiking(f'{name}.{number}', each) for number, each in enumerate(ann)]
                return nn.ModuleList([part for part, _ in pairs]), nn.ModuleList([called for _, called in pairs])
            prefix = f'{ROI_HEAD}.{name}.'
            if takes_options(ann):
                print_log(f'{prefix[:-1]} ({type(ann).__name__}) stays analog: what it computes depends on how it is '
                          'called', 'current')
                return ann, ann
            own = {key: [pattern.removeprefix(prefix) for pattern in values if pattern.startswith(prefix)]
                   for key, values in patterns.items()}
            part = self._converted(prefix[:-1], RoIPart, self, ann, include=own['include'] or '*',
                                   exclude=own['exclude'], **options)
            return part, twin_of(ann, forward=part.__call__)

        say_analog(roi_head, IN_ROI_HEAD, f'{ROI_HEAD}.')
        twin = twin_of(roi_head)
        home = own_tensors(nn.Module(), roi_head)
        for name, child in roi_head.named_children():
            if name in IN_ROI_HEAD:
                child, twin._modules[name] = spiking(name, child)
            home.add_module(name, child)
        setattr(self._detector[0], ROI_HEAD, twin)
        return home

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor') -> Any:
        """Simulate T steps for images (N, 3, H, W).

        Returns:
            For ``mode='tensor'`` the heads' raw outputs; for ``'predict'`` the data samples with detections.

        Raises:
            RuntimeError: ``mode='loss'``.
        """
        if mode == 'loss':
            raise RuntimeError('a converted network is not trained: train the ANN, then convert and calibrate it')
        return self._detector[0].forward(inputs, data_samples, mode)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        stored = {key.removeprefix(prefix).partition('.snn.')[0] for key in state_dict
                  if key.startswith(prefix) and '.snn.' in key}
        own = set(spiking_parts(self))
        if stored and stored != own:
            raise RuntimeError(f'in the calibrated checkpoint {", ".join(sorted(stored))} spike, in the config '
                               f'{", ".join(sorted(own))}: give the config the same parts, or calibrate the ANN again')
        if not stored and len(self._dense) > 1:
            name = '_'.join(self._dense)
            for key in list(state_dict):
                if key.startswith(tuple(f'{prefix}{part}.' for part in self._dense)):
                    state_dict[f'{prefix}{name}.{key.removeprefix(prefix)}'] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def dense_modules(ann: nn.Module) -> list[str]:
    """The names of backbone, neck and dense head of a detector, as far as it has them, in order.

    A head behind a transformer, as DETR's, is none: it sees no feature maps.
    """
    backbone, neck, heads = DENSE
    seen = [head for head in heads if not hasattr(ann, 'decoder') and computes(getattr(ann, head, None))]
    return [name for name in (backbone, neck, *seen[:1])
            if getattr(ann, name, None) is not None]


def computes(head: nn.Module | None) -> bool:
    """Whether there is a head that makes anything of feature maps; that of Sparse R-CNN only holds boxes."""
    return head is not None and type(head).forward is not nn.Module.forward


def check_parts(detector: str, found: list[str], wanted: Sequence[str]) -> list[str]:
    """The wanted parts in the order of computation.

    Raises:
        ValueError: the detector has no such parts, none is wanted, or one whose inputs would not be an image's.
    """
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    unknown = [part for part in wanted if part not in found]
    if unknown or not wanted:
        raise ValueError(f'parts must be some of {found} of {detector}, not {unknown or wanted}')
    chosen = [part for part in found if part in wanted]
    dense = [part for part in chosen if part != ROI_HEAD]
    if dense != found[:len(dense)]:
        raise ValueError(f'parts={tuple(wanted)}: {dense[-1]} spikes only together with all before it, '
                         f'{tuple(found[:found.index(dense[-1]) + 1])}')
    return chosen


def say_analog(module: nn.Module, found: Sequence[str], prefix: str = '') -> None:
    """Say in the log which networks are none of the parts that can spike, such as a transformer's decoder."""
    left = [f'{prefix}{name} ({type(child).__name__})' for name, child in module.named_children()
            if name not in found and any(map(has_weights, child.modules()))]
    if left:
        print_log(f'stays analog, as it sees more than feature maps or proposals: {", ".join(left)}', 'current')


def takes_options(module: nn.Module) -> bool:
    """Whether a network computes one thing or another as its caller wishes, such as the mask heads of HTC."""
    return any(parameter.default is not parameter.empty
               for parameter in inspect.signature(module.forward).parameters.values())


def own_tensors(module: nn.Module, source: nn.Module) -> nn.Module:
    """Let a module have the parameters and buffers of another, those of its modules aside, such as embeddings."""
    for name in ('_parameters', '_buffers', '_non_persistent_buffers_set'):
        setattr(module, name, getattr(source, name))
    return module
