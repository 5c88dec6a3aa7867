"""Calibrate the weights before a layer of neurons, or in a block, by gradient descent [section 4.4, Eq. 23 and 24]."""
import random

import torch
from torch import Tensor, fx, nn

from ..distributed import number_of, owner, processes, send
from ..neurons.model import with_channels
from ..neurons.pipelines import Pipeline
from ..simulation.operations import NORMS
from ..simulation.plan import Env, Plan, is_neuron
from .corrections import Errors, Steps, measure
from .walk import Block


def improve_weights(block: Block, pipeline: Pipeline, calibrated: set[Tensor], errors: Errors,
                    steps: Steps) -> Errors:
    """Calibrate the weights of a block, but keep the old ones unless the simulated error becomes smaller.

    Args:
        block: of one layer or, where the pipeline is ``blockwise``, of several.
        pipeline, steps: as in :func:`calibrate_layer`.
        calibrated: weights that have been calibrated; none is calibrated twice, whichever modules share it. Updated in
            place.
        errors: what :func:`measure` returned for the block's last layer as it is.

    Returns:
        What it returns for that layer as it is then.
    """
    owned = []
    for module in weighted_modules(block.plan):
        if module.get_parameter('weight') not in calibrated:
            calibrated.add(module.get_parameter('weight'))
            owned.append(module)
    values = tuned_values(block, owned, pipeline)
    saved = [value.detach().clone() for value in values]
    descend(block, values, pipeline, steps)
    improved = simulate(block, pipeline, steps)
    if improved.relative <= errors.relative:
        return improved
    for value, old in zip(values, saved):
        value.copy_(old)
    return simulate(block, pipeline, steps)


def simulate(block: Block, pipeline: Pipeline, steps: Steps) -> Errors:
    """Run the layers of a block with their new weights, keeping what they emit; return the errors of the last."""
    for layer in block.layers:
        layer.forget()
    return [measure(layer, pipeline, steps, keep=True) for layer in block.layers][-1]


def tuned_values(block: Block, modules: list[nn.Module], pipeline: Pipeline) -> list[Tensor]:
    """The tensors that gradient descent moves: weights and, where the pipeline says so, the neurons' own."""
    values: list[Tensor] = [module.get_parameter('weight') for module in modules]
    return values + [getattr(layer.neuron, name) for layer in block.layers for name in pipeline.tune]


def weighted_modules(plan: Plan) -> list[nn.Module]:
    """The layers of a segment that weight its values: convolutions, linear layers, and what is left analog of them."""
    return [module for module in dict.fromkeys(plan.modules.values())
            if isinstance(getattr(module, 'weight', None), nn.Parameter)
            and not isinstance(module, (*NORMS, nn.GroupNorm, nn.LayerNorm, nn.PReLU))]


def descend(block: Block, values: list[Tensor], pipeline: Pipeline, steps: Steps) -> None:
    """Minimise ``||x - ClipRound(z)||**2`` over the weights, and what else is given, of a block [Eq. 23].

    z is the mean current into the last layer, which the mean incoming spikes give because everything in between is
    affine; neurons in between pass on their rate in closed form. The loss sums over channels and averages over images
    and positions; the floor passes its gradient on [Eq. 24].
    """
    if not values:
        steps.update(pipeline.iterations)
        return
    layer = block.last
    segment = Segment(block, values)
    thresholds = [layer.neuron.threshold for layer in block.layers]
    smallest = [threshold.detach() / 100 for threshold in thresholds]  # they must stay positive
    optimizer = torch.optim.SGD(values, lr=pipeline.learning_rate, momentum=pipeline.momentum)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, pipeline.iterations)
    draw = random.Random(pipeline.seed)
    batches = number_of(layer.sweep.batches, layer.sweep.device)
    try:
        for value in values:
            value.requires_grad_(True)
        for _ in range(pipeline.iterations):
            process, index = owner(draw.randrange(batches))
            optimizer.zero_grad()
            if process == processes()[0]:
                target, inputs = layer.activation(index), segment.inputs(index)
                with torch.enable_grad():
                    rate = layer.neuron.rate(segment.behind.analog(inputs, quantised=True)[layer.current])
                    loss = with_channels(target - rate).square().sum(layer.neuron.channel_axis).mean()
                loss.backward()
            else:
                for value in values:
                    value.grad = torch.zeros_like(value)
            send([value.grad for value in values], process)  # type: ignore[misc]  # here all have one
            optimizer.step()
            schedule.step()
            for threshold, least in zip(thresholds, smallest):
                torch.maximum(threshold, least, out=threshold)
            steps.update()
    finally:
        segment.forget()
        for value in values:
            value.requires_grad_(False)


class Segment:
    """What lies between the layers before a block and its last one, in two parts.

    Args:
        block: whose weights are calibrated.
        values: the tensors that move.

    Attributes:
        behind: the part that depends on what moves; its sources are ``given``.
        before: the part that does not, and is computed once for each batch.
    """

    def __init__(self, block: Block, values: list[Tensor]) -> None:
        self.plan, self.layer = block.plan, block.last
        plan = self.plan
        moving = {id(value) for value in values}
        depends: set[fx.Node] = set()
        for node in (*plan.static, *plan.varying):
            module = plan.modules[node]
            own = [] if module is None else [*module.parameters(), *module.buffers()]
            if is_neuron(node) or moving.intersection(map(id, own)) or depends.intersection(node.all_input_nodes):
                depends.add(node)
        needed = {used for node in depends for used in node.all_input_nodes} - depends
        self.given = [node for node in plan.sources + plan.varying if node in needed]
        if self.layer.current not in depends:  # nothing moves but the last neurons' own values
            self.given = plan.sources
        graph = self.layer.sweep.snn.graph
        self.behind = Plan(graph, [self.layer.current], self.given)
        self.before = Plan(graph, [node for node in self.given if node not in plan.sources], plan.sources)

    def inputs(self, index: int) -> Env:
        """Values for ``behind.analog`` for one batch, those of ``given`` kept while there is room."""
        store, device = self.layer.sweep.store, self.layer.sweep.device
        keys = {node: ('given', node, index) for node in self.given}
        if all(key in store for key in keys.values()):
            return self.layer.inputs(self.behind, index) | {node: store.get(key).to(device)
                                                            for node, key in keys.items()}
        values = self.layer.mean_inputs(self.plan, index)
        values |= self.before.analog(values) if self.before.targets else {}
        for node, key in keys.items():
            if isinstance(values[node], Tensor):
                store.offer(key, values[node])
        return values

    def forget(self) -> None:
        """Drop what is kept."""
        for index in range(len(self.layer.sweep.batches)):
            for node in self.given:
                self.layer.sweep.store.drop(('given', node, index))
