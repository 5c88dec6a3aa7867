"""Calibrate the weights before a layer of neurons by gradient descent [section 4.4, Eq. 23 and 24]."""
import random

import torch
from torch import Tensor, nn

from .corrections import Errors, Steps, measure
from .distributed import number_of, owner, processes, send
from .neurons import IFNeuron
from .pipelines import Pipeline
from .simulate import Plan
from .sweep import Layer


def improve_weights(layer: Layer, pipeline: Pipeline, calibrated: set[nn.Module], errors: Errors,
                    steps: Steps) -> Errors:
    """Calibrate the weights of a layer, but keep the old ones unless the simulated error becomes smaller.

    Args:
        layer, pipeline, steps: as in :func:`calibrate_layer`.
        calibrated: modules that have been calibrated; none is calibrated twice. Updated in place.
        errors: what :func:`measure` returned for the layer as it is.

    Returns:
        What it returns for the layer as it is then.
    """
    owned = [module for module in weighted_modules(layer.plan) if module not in calibrated]
    calibrated.update(owned)
    values = tuned_values(layer.neuron, owned, pipeline)
    saved = [value.detach().clone() for value in values]
    descend(layer, values, pipeline, steps)
    improved = measure(layer, pipeline, steps, keep=True)
    if improved.relative <= errors.relative:
        return improved
    for value, old in zip(values, saved):
        value.copy_(old)
    return measure(layer, pipeline, steps, keep=True)


def tuned_values(neuron: IFNeuron, modules: list[nn.Module], pipeline: Pipeline) -> list[Tensor]:
    """The tensors that gradient descent moves: weights and, where the pipeline says so, the neurons' own."""
    values: list[Tensor] = [module.get_parameter('weight') for module in modules]
    return values + [getattr(neuron, name) for name in ('bias', 'threshold') if name in pipeline.tune]


def weighted_modules(plan: Plan) -> list[nn.Module]:
    """The convolutions and linear layers of a segment."""
    return [module for module in dict.fromkeys(plan.modules.values())
            if isinstance(getattr(module, 'weight', None), nn.Parameter)
            and not isinstance(module, nn.modules.batchnorm._BatchNorm)]


def descend(layer: Layer, values: list[Tensor], pipeline: Pipeline, steps: Steps) -> None:
    """Minimise ``||x - ClipRound(z)||**2`` over weights, and what else is given, before a layer of neurons [Eq. 23].

    z is the mean current, which the mean incoming spikes give because everything in between is affine. The loss sums
    over channels and averages over images and positions; the floor passes its gradient on [Eq. 24].
    """
    if not values:
        steps.update(pipeline.iterations)
        return
    neuron = layer.neuron
    smallest = neuron.threshold.detach() / 100  # a threshold must stay positive
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
                target, inputs = layer.activation(index), layer.mean_inputs(index)
                with torch.enable_grad():
                    rate = neuron.rate(layer.plan.analog(inputs)[layer.current])
                    loss = (target - rate).square().sum(1).mean()
                loss.backward()
            else:
                for value in values:
                    value.grad = torch.zeros_like(value)
            send([value.grad for value in values], process)  # type: ignore[misc]  # here all have one
            optimizer.step()
            schedule.step()
            torch.maximum(neuron.threshold, smallest, out=neuron.threshold)
            steps.update()
    finally:
        for value in values:
            value.requires_grad_(False)
