"""Whole detectors as spiking networks: backbone, neck and heads, with mmdet's own boxes and non-maximum suppression."""
import copy
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..calibration.procedure import CalibrationReport
from ..neurons.layer import IFNeuron
from ..neurons.model import NEURONS
from ..neurons.pipelines import make_pipeline
from ..simulation.network import SpikingNetwork
from .registry import MODELS
from .wrapper import SpikingWrapper, spiking_parts

DENSE = 'backbone', 'neck', ('bbox_head', 'rpn_head', 'mask_head')  # in the order of computation; of the heads, one
ROI_HEAD = 'roi_head'
IN_ROI_HEAD = 'shared_head', 'bbox_head', 'mask_head'  # networks in it, each between one RoIAlign and its outputs
INPUT = 'input'  # the neurons that send what RoIAlign gives
PROPOSALS = 256  # of each calibration batch, evenly out of all


class Features(tuple):
    """Feature maps, and what the head has made of them: it spikes together with what computes them."""

    outputs: Any


class Dense(nn.Module):
    """Backbone, neck and dense head of a detector in one, from the images to the head's raw outputs.

    Args:
        modules: by their names in the detector, in order.
        head: which of them is the head, or None.
        keep: whether others than the head need the feature maps.
    """

    def __init__(self, modules: dict[str, nn.Module], head: str | None, keep: bool) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.body, self.head, self.keep = [name for name in modules if name != head], head, keep

    def forward(self, x: Any) -> Any:
        for name in self.body:
            x = getattr(self, name)(x)
        return x if self.head is None else (x if self.keep else (), getattr(self, self.head)(x))


class SpikingPart(SpikingWrapper):
    """A network within a detector that spikes; it sees the images."""

    def __init__(self, ann: nn.Module, **options) -> None:
        super().__init__(init_cfg=None)
        self.wrap(ann, **options)

    def convert(self, **options) -> None:
        super().convert(**options)
        # Nothing is trained, but DistributedDataParallel refuses a model of which nothing could be.
        next(self.snn.parameters()).requires_grad_(True)

    def forward(self, x: Tensor) -> Any:
        """Simulate T steps; return the ANN's outputs."""
        outputs = self.simulate(x)
        if getattr(self.ann, 'head', None) is None:
            return outputs
        features = Features(outputs[0])
        features.outputs = outputs[1]
        return features


class RoIPart(SpikingPart):
    """A network within the RoI head that spikes; it sees what RoIAlign cuts out of the feature maps.

    Neurons that send changes, which may be negative, also send that: every weight then sees spikes only.
    """

    def __init__(self, detector: 'SpikingDetector', ann: nn.Module, **options) -> None:
        super().__init__(ann, **options)
        self._detector = (detector,)  # not a module of this one

    def forward(self, x: Tensor) -> Any:
        return self.simulate(x)

    def calibrate(self, batches: Iterable[Tensor], pipeline: str, **options) -> CalibrationReport:
        neuron = options.get('neuron') or make_pipeline(pipeline).neuron
        if NEURONS[neuron].coding == 'differential':
            send_input(self.snn)
        options.pop('histograms', None)  # they are of what the images make of the first part
        return super().calibrate(batches, pipeline, **options)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        if f'{prefix}snn.network.neurons.{INPUT}.threshold' in state_dict:
            send_input(self.snn)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @torch.no_grad()
    def inputs(self, images: Iterable[Tensor]) -> list[Tensor]:
        """What this part receives when the parts before it, calibrated, spike for images.

        Raises:
            ValueError: nothing: there is no proposal, or no detection, on any of them.
        """
        received: list[Tensor] = []

        def stop(_part: nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0]
            received.append(x[torch.linspace(0, len(x) - 1, min(len(x), PROPOSALS)).long()])
            raise _Received

        handle = self.register_forward_pre_hook(stop)
        try:
            for batch in images:
                try:
                    self._detector[0](batch, blank_samples(batch), mode='predict')
                except _Received:
                    pass
        finally:
            handle.remove()
        if not received:
            raise ValueError(f'{type(self.ann).__name__} cannot be calibrated: on no calibration image does the '
                             'detector find anything for it to see. Give more images, or lower score_thr in test_cfg')
        return received


def send_input(snn: SpikingNetwork) -> None:
    """Place neurons whose activation is the identity behind the input of a network, where there are none yet."""
    if INPUT in snn.neurons:
        return
    network, (source,) = snn.network, [node for node in snn.graph.nodes if node.op == 'placeholder']
    neuron = IFNeuron(activation=nn.Identity()).to(next(network.parameters()))
    network.get_submodule('neurons').add_module(INPUT, neuron)
    with snn.graph.inserting_after(source):
        sent = snn.graph.call_module(f'neurons.{INPUT}', (source,))
    source.replace_all_uses_with(sent, lambda user: user is not sent)
    network.recompile()
    snn._plan = None


class _Received(Exception):
    """Ends a forward pass as soon as a part has been reached."""


def blank_samples(images: Tensor) -> list[BaseDataElement]:
    """Data samples for images (N, 3, H, W) of which nothing is known but their size."""
    from mmdet.structures import DetDataSample
    shape = tuple(images.shape[2:])
    return [DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape,
                                        scale_factor=(1., 1.))) for _ in images]


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
        backbone: not used, but mmdet's ``init_detector`` fails without such an entry in the config.
        data_preprocessor: of the detector, where its own config has none (mmengine passes on the config's).
        init_cfg: not used; weights come from a checkpoint.

    Raises:
        ValueError: the detector has no such parts, or those before them do not spike.
    """

    def __init__(self, detector: dict, time_steps: int, parts: Sequence[str] | None = None,
                 include: str | Sequence[str] = '*', exclude: str | Sequence[str] = (), coding: str = 'rate',
                 readout: str = 'spikes', delay: int = 0, chunk_steps: int | None = None, dtype: str = 'float32',
                 compile: bool = False, backbone: dict | None = None, data_preprocessor: dict | None = None,
                 init_cfg: dict | None = None) -> None:
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
        # Outside of _modules: the mmdet detector that calls the parts. What it calls is a module of this one, too.
        self._detector = (twin_of(ann),)
        self._dense = [name for name in chosen if name != ROI_HEAD]
        for name, module in self._with_dense(ann, patterns, options).items():
            self.add_module(name, module)
        if ROI_HEAD in chosen:
            self.roi_head = self._spiking_roi_head(ann.roi_head, patterns, options)

    def _with_dense(self, ann: nn.Module, patterns: dict, options: dict) -> dict[str, nn.Module]:
        """The detector's modules, with one spiking part for backbone, neck and head, or as many of them as spike."""
        others = {name: module for name, module in ann.named_children()
                  if name not in self._dense and name != 'data_preprocessor'}
        if not self._dense:
            return others
        head = self._dense[2] if len(self._dense) > 2 else None
        network = ann.backbone
        if len(self._dense) > 1:
            network = Dense({name: getattr(ann, name) for name in self._dense}, head, bool(others))
        own = {key: [pattern for pattern in values if not pattern.startswith(f'{ROI_HEAD}.')]
               for key, values in patterns.items()}
        part = SpikingPart(network, **own, **options)
        twin: Any = self._detector[0]
        twin.backbone = part
        if len(self._dense) > 1:
            twin.neck = None
        if head:
            setattr(twin, head, twin_of(getattr(ann, head), forward=operator.attrgetter('outputs')))
        return {'_'.join(self._dense): part, **others}

    def _spiking_roi_head(self, roi_head: nn.Module, patterns: dict, options: dict) -> nn.Module:
        """The RoI head's modules, with spiking parts for its networks."""
        def spiking(name: str, ann: nn.Module) -> tuple[nn.Module, nn.Module]:
            """The part, and what the RoI head is to call."""
            if isinstance(ann, nn.ModuleList):  # one for each stage of a cascade
                pairs = [spiking(f'{name}.{number}', each) for number, each in enumerate(ann)]
                return nn.ModuleList([part for part, _ in pairs]), nn.ModuleList([called for _, called in pairs])
            prefix = f'{ROI_HEAD}.{name}.'
            own = {key: [pattern.removeprefix(prefix) for pattern in values if pattern.startswith(prefix)]
                   for key, values in patterns.items()}
            part = RoIPart(self, ann, include=own['include'] or '*', exclude=own['exclude'], **options)
            return part, twin_of(ann, forward=part.__call__)

        twin = twin_of(roi_head)
        home = nn.Module()
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
    """The names of backbone, neck and dense head of a detector, as far as it has them, in order."""
    backbone, neck, heads = DENSE
    return [name for name in (backbone, neck, *[head for head in heads if hasattr(ann, head)][:1])
            if getattr(ann, name, None) is not None]


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


def twin_of(module: nn.Module, **attributes) -> nn.Module:
    """A copy with the same parameters and modules, of which some are to be replaced; ``attributes`` are at once."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    for name, value in attributes.items():
        object.__setattr__(twin, name, value)
    return twin
