"""The networks within a detector that spike: from the image to a head's raw outputs, and from a RoI to its own."""
from collections.abc import Iterable
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..calibration.procedure import CalibrationReport
from ..neurons.layer import IFNeuron
from ..neurons.model import NEURONS
from ..neurons.pipelines import make_pipeline, usual_pipeline
from ..simulation.network import SpikingNetwork
from .wrapper import SpikingWrapper

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

    def __init__(self, detector: nn.Module, ann: nn.Module, **options) -> None:
        super().__init__(ann, **options)
        self._detector = (detector,)  # not a module of this one

    def forward(self, *inputs: Tensor) -> Any:
        return self.simulate(*inputs)

    def calibrate(self, batches: Iterable[Tensor], pipeline: str | None = None, **options) -> CalibrationReport:
        pipeline = pipeline or usual_pipeline(self.snn.time_steps, options.get('levels'), self.snn.converted_for)
        neuron = options.get('neuron') or make_pipeline(pipeline).neuron
        if NEURONS[neuron].any_activation:
            send_input(self.snn)
        options.pop('histograms', None)  # they are of what the images make of the first part
        return super().calibrate(batches, pipeline, **options)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        if f'{prefix}snn.network.neurons.{INPUT}.threshold' in state_dict:
            send_input(self.snn)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @torch.no_grad()
    def inputs(self, images: Iterable[Tensor]) -> list[Any]:
        """What this part receives when the parts before it, calibrated, spike for images.

        Raises:
            ValueError: nothing: there is no proposal, or no detection, on any of them.
        """
        received: list[Any] = []

        def stop(_part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            chosen = torch.linspace(0, len(inputs[0]) - 1, min(len(inputs[0]), PROPOSALS)).long()
            alike = all(len(x) == len(inputs[0]) for x in inputs)  # otherwise not one of each for a proposal
            some = tuple(x[chosen] for x in inputs) if alike else inputs
            received.append(some if len(some) > 1 else some[0])
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
    """Place neurons whose activation is the identity behind each input of a network, where there are none yet."""
    if INPUT in snn.neurons:
        return
    network, sources = snn.network, [node for node in snn.graph.nodes if node.op == 'placeholder']
    last = sources[-1]  # placeholders stand together
    if not hasattr(network, 'neurons'):  # a linear layer alone
        network.add_module('neurons', nn.Module())
    for number, source in enumerate(sources):
        name = INPUT if number == 0 else f'{INPUT}_{number}'
        neuron = IFNeuron(activation=nn.Identity()).to(next(network.parameters()))
        network.get_submodule('neurons').add_module(name, neuron)
        with snn.graph.inserting_after(last):
            last = snn.graph.call_module(f'neurons.{name}', (source,))
        source.replace_all_uses_with(last, lambda user, own=last: user is not own)
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
