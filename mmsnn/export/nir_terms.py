"""Values as sums of what NIR nodes put out, and what NIR cannot express of how a network fires."""
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx

from ..neurons.integrate_and_fire import FiringRule
from ..simulation.network import SpikingNetwork


class ExportError(ValueError):
    """The format cannot express the network; the message lists everything that stands in the way."""


class Term(NamedTuple):
    """One summand of a value: what a NIR node puts out, times ``scale``.

    Attributes:
        name: of the NIR node.
        scale: per channel, (C,).
        own: nothing else reads the node, so that a factor may go into its weights.
    """

    name: str
    scale: Tensor
    own: bool


class Terms:
    """NIR nodes and edges under construction and, for each node of the graph, the summands that make up its value."""

    def __init__(self, snn: SpikingNetwork, example: Tensor) -> None:
        import nir
        self.nir, self.snn = nir, snn
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.terms: dict[fx.Node, list[Term] | None] = {}  # None: behind something that has been refused
        self.problems: list[str] = []
        # Neurons rectify here, which gives every value the shape that it has at one step.
        self.values = snn.bind(example[:1])
        parameter = next(snn.parameters(), example)
        self.options: dict[str, Any] = dict(dtype=parameter.dtype, device='cpu')

    def _terms_of(self, node: fx.Node) -> list[Term]:
        terms = self.terms[node]
        assert terms is not None  # what reads a refused value is not translated
        return terms

    def _joined(self, node: fx.Node, terms: list[Term] | None = None) -> tuple[list[str], Tensor]:
        """NIR nodes whose sum, times the scale returned with them, is the value of a node."""
        terms = self._terms_of(node) if terms is None else terms
        scale = terms[0].scale
        if all(torch.equal(term.scale, scale) for term in terms):
            return [term.name for term in terms], scale
        return [self._scaled(term, node) for term in terms], torch.ones_like(scale)

    def _absorbs(self, term: Term) -> bool:
        return term.own and isinstance(self.nodes[term.name], (self.nir.Conv2d, self.nir.Affine))

    def _scaled(self, term: Term, at: fx.Node, factor: Tensor | float = 1., bias: Tensor | None = None) -> str:
        """The NIR node that puts out a term times a factor, plus a bias: the term's own, or a new one behind it."""
        factor = term.scale * factor
        if self._absorbs(term):
            layer = self.nodes[term.name]
            layer.weight = layer.weight * factor.view(-1, *[1] * (layer.weight.ndim - 1))
            layer.bias = layer.bias * factor + (0. if bias is None else bias)
            return term.name
        if bias is None and bool((factor == 1).all()):
            return term.name
        shape = self.values[at].shape[1:]
        weight, bias = torch.diag(factor), torch.zeros_like(factor) if bias is None else bias
        if len(shape) == 1:
            layer = self.nir.Affine(weight=weight, bias=bias)
        else:
            layer = self.nir.Conv2d(input_shape=tuple(shape[1:]), weight=weight[:, :, None, None], bias=bias,
                                    stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1)
        return self._add_node(self._unique(f'{term.name}_scaled'), layer, [term.name])

    def _term(self, node: fx.Node, nir_node, sources: Sequence[str] = ()) -> Term:
        name = self._add_node(self._unique(node.name), nir_node, sources)
        shape = self.values[node].shape
        return Term(name, torch.ones(shape[1], **self.options), len(node.users) == 1)

    def _add_node(self, name: str, nir_node, sources: Sequence[str]) -> str:
        self.nodes[name] = nir_node
        self.edges += [(source, name) for source in sources]
        return name

    def _unique(self, name: str) -> str:
        names = (name, *(f'{name}_{index}' for index in range(1, len(self.nodes) + 2)))
        return next(candidate for candidate in names if candidate not in self.nodes)

    def _per_channel(self, value: Tensor, channels: int) -> Tensor:
        return value.detach().to(**self.options).expand(channels).contiguous()

    @staticmethod
    def _array(value: Tensor) -> np.ndarray:
        return value.detach().cpu().numpy()

    def _finish(self) -> None:
        """Weights are tensors while scales are still being multiplied into them; NIR has arrays."""
        for node in self.nodes.values():
            for name in ('weight', 'bias'):
                if isinstance(getattr(node, name, None), Tensor):
                    setattr(node, name, self._array(getattr(node, name)))


def unsupported_options(snn: SpikingNetwork) -> list[str]:
    """What NIR cannot express of how a network fires and is read, one line each."""
    problems = []

    def refuse(layers: list[str], problem: str) -> None:
        if layers:
            more = f' and {len(layers) - 3} more' if len(layers) > 3 else ''
            problems.append(f'{", ".join(layers[:3])}{more} (IFNeuron): {problem}')

    neurons = {name: neuron for name, neuron in snn.neurons.items() if isinstance(neuron.rule, FiringRule)}
    others = {name: type(neuron.rule).__name__ for name, neuron in snn.neurons.items() if name not in neurons}
    for kind in dict.fromkeys(others.values()):
        refuse([name for name in others if others[name] == kind],
               f"neurons of kind {kind}; calibrate with neuron='integrate-and-fire', such as pipeline 'light'")
    rules = {name: neuron.rule for name, neuron in neurons.items() if isinstance(neuron.rule, FiringRule)}
    refuse([name for name, rule in rules.items() if rule.signed],
           "signed spikes; calibrate with signed=False, such as pipeline 'light'")
    refuse([name for name, rule in rules.items() if rule.max_spikes > 1],
           "bursts of several spikes a step; calibrate with max_spikes=1, max_rate=1, such as pipeline 'light'")
    refuse([name for name, neuron in neurons.items() if neuron.initial_potential.any()],
           "an initial potential, and neurons of NIR start at zero; calibrate with shift='bias' and without potential, "
           "such as pipeline 'light'")
    refuse([name for name, neuron in neurons.items() if neuron.bias.ndim > 1],
           'a bias that changes from step to step; calibrate with bias_per_step=False')
    if snn.delay:
        problems.append(f'delay={snn.delay}: the mean over time leaves steps out; convert with delay=0')
    if snn.dtype != 'float32':
        problems.append(f"dtype={snn.dtype!r}: readers of NIR compute in the precision of its arrays, which know no "
                        "such type; convert with dtype='float32'")
    return problems
