"""What the benchmark times: networks, their conversion, and what others do for the same result."""
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from ..calibration.procedure import calibrate
from ..conversion.placing import convert as convert_network
from ..conversion.placing import trace
from ..neurons.pipelines import make_pipeline
from ..openmmlab.parts import Dense
from ..simulation.loop import TimeLoop
from ..simulation.network import SpikingNetwork
from ..simulation.operations import module_of
from ..simulation.plan import Plan, evaluate, is_neuron, neuron_of

NETWORKS: dict[str, dict] = {**{f'resnet{depth}': dict(type='ResNet', depth=depth) for depth in (18, 34, 50, 101)},
            'mobilenet_v2': dict(type='MobileNetV2', out_indices=(7,))}
DETECTORS = {'retinanet': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'}  # of which all spikes
PARTS = 'backbone', 'neck', 'bbox_head'
FAST: dict[str, dict] = {'plain': {}, 'compiled': dict(compile=True), 'bfloat16': dict(compile=True, dtype='bfloat16'),
                         'int8': dict(compile=True, dtype='int8')}


def build(name: str, device: str) -> nn.Module:
    """A backbone of mmdet, or a detector up to its head's raw outputs, with random weights: time does not depend on
    them."""
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.hub import get_config
    register_all_modules()
    torch.manual_seed(0)
    if name in DETECTORS:
        detector = MODELS.build(get_config(DETECTORS[name]).model)
        ann: nn.Module = Dense({part: getattr(detector, part) for part in PARTS}, PARTS[-1], keep=False)
    else:
        ann = MODELS.build(dict(NETWORKS[name]))
    ann.eval()
    return ann.requires_grad_(False).to(device)


def small_image(ann: nn.Module) -> Tensor:
    return torch.randn(1, 3, 64, 64, device=next(ann.parameters()).device)


def convert(ann: nn.Module, time_steps: int, pipeline: str, **options) -> SpikingNetwork:
    """Convert, with the neurons of a pipeline; a small image is enough for that."""
    coding = make_pipeline(pipeline).rule(time_steps).coding
    snn = convert_network(ann, time_steps, coding=coding, **options)
    calibrate(snn, [small_image(ann)], pipeline, progress=False, weights=False, bias=False, potential=None)
    return snn


@torch.no_grad()
def naive(snn: SpikingNetwork, x: Tensor) -> list[Tensor]:
    """Simulate as most frameworks do: at each step the whole network, stem included, operation by operation."""
    outputs = snn.plan.targets
    state: dict = {}
    sums: dict[fx.Node, Tensor] = {}
    for step in range(snn.time_steps):
        env = dict(snn.bind(x))
        for node in snn.graph.nodes:
            if node.op in ('placeholder', 'output'):
                continue
            if not is_neuron(node):
                env[node] = evaluate(node, env, module_of(node))
                continue
            current = env[node.args[0]]
            neuron = neuron_of(node)
            if node not in state:
                state[node] = neuron.start(current)
            (env[node],), state[node] = neuron.fire(current.unsqueeze(0), state[node], step)
        for node in outputs:
            sums[node] = sums[node] + env[node] if node in sums else env[node]
    return [sums[node] / snn.time_steps for node in outputs]


@torch.no_grad()
def published_light(snn: SpikingNetwork, batches: list[Tensor]) -> None:
    """The bias correction as published: for every layer, one simulation of the whole network per batch."""
    for node in snn.neuron_nodes:
        neuron, errors = neuron_of(node), []
        plan = Plan(snn.graph, [node, *snn.plan.targets])
        loop = TimeLoop(snn.network, plan)
        for batch in batches:
            values = snn.bind(batch)
            (_, sums), = loop.sums(values, [snn.time_steps], chunk_steps=1)
            rate = sums[node] / snn.time_steps
            errors.append((plan.analog(values)[node] - rate).movedim(1, 0).flatten(1).mean(1))
        neuron.bias = neuron.bias + torch.stack(errors).mean(0)


def spikingjelly(ann: nn.Module, time_steps: int) -> dict[str, Callable[[Tensor], object]]:
    """SpikingJelly's conversion of the same ANN, in both of its step modes, if it is installed and can convert it."""
    try:
        from spikingjelly.activation_based import ann2snn, functional
    except ImportError:
        return {}
    recipe = ann2snn.RateCodingRecipe([small_image(ann)], mode='99.9%')
    try:
        converted = ann2snn.FXConverter(recipe).convert(trace(ann)).eval()
    except ValueError as refused:
        print(f'SpikingJelly: {refused}')
        return {}

    def single(x: Tensor):
        functional.reset_net(converted)
        functional.set_step_mode(converted, 's')
        for _ in range(time_steps):
            out = converted(x)
        return out

    def multiple(x: Tensor):
        functional.reset_net(converted)
        functional.set_step_mode(converted, 'm')
        return converted(x.expand(time_steps, *x.shape))

    return {'SpikingJelly single-step': single, 'SpikingJelly multi-step': multiple}
