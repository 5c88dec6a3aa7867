"""The time loop: one chunk of steps after the other, run operation by operation or as a compiled program."""
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from .chunk import Chunk, Kept
from .compiling import compiled
from .integers import check_integers
from .plan import Env, Plan


class TimeLoop:
    """Simulates a plan, chunk by chunk.

    Args:
        network: the traced graph with its neurons.
        plan: what of it to compute.
        dtype: of spikes, currents and weights: ``'float32'`` leaves all as they are; membrane potentials and sums keep
            the network's own type. ``'int8'``: of the spikes and weights of convolutions, see
            :mod:`mmsnn.simulation.integers`.
        compile: whether chunks are compiled by torch.compile.
    """

    def __init__(self, network: fx.GraphModule, plan: Plan, dtype: str = 'float32', compile: bool = False) -> None:
        self.network, self.plan, self.compile = network, plan, compile
        self.integers = dtype == 'int8'
        self.dtype = None if dtype in ('float32', 'int8') else getattr(torch, dtype)
        self.fast = compile or dtype != 'float32'  # channels last, states in the smallest types
        if self.integers:
            check_integers()
        self._modules = list(self.network.modules())  # named again at every call they take as long as a small network
        self._chunks: dict[tuple, tuple[Chunk, Callable]] = {}
        self._shapes: dict[tuple, dict[fx.Node, torch.Size]] = {}
        self._made_for: list[tuple] = []
        self._held: list[Tensor] = []

    def sums(self, values: Env, stops: Iterable[int], delay: int = 0,
             chunk_steps: int | None = None) -> Iterator[tuple[int, Env]]:
        """Simulate up to the last of ``stops``; at each, yield the step and the targets' sums from ``delay`` on.

        Args:
            values: of the plan's ``inputs``.
            stops: numbers of steps.
            delay: steps at the beginning that the sums leave out.
            chunk_steps: how many steps to compute at once; chosen by size when None. It changes no result.

        Yields:
            A number of steps, and sums of the targets that vary, valid until the next is asked for.
        """
        stops = sorted(set(stops))
        for step, chunk, kept, _ in self._run(values, [delay, *stops], chunk_steps, {}, each_step=False):
            outputs = {entry.node: tensor for entry, tensor in zip(chunk.kept, kept) if entry.kind == 'output'}
            if step == delay > 0:
                for tensor in outputs.values():
                    tensor.zero_()
            if step in stops:
                # As the ANN's: mmcv's RoIAlign reads memory without asking how it is laid out.
                yield step, {node: tensor.contiguous() for node, tensor in outputs.items()}

    def each_step(self, values: Env, time_steps: int, chunk_steps: int | None = None,
                  spikes: Callable[[fx.Node, int, int], Tensor] | None = None,
                  shapes: Mapping[fx.Node, torch.Size] | None = None) -> Iterator[Env]:
        """Simulate T steps and yield, chunk after chunk of K steps, the values of the targets that vary, (K, N, ...).

        Args:
            values: of the plan's ``inputs``.
            time_steps: T.
            chunk_steps: K; the last chunk may be shorter.
            spikes: returns the spikes of a source from one step up to another, (K, N, ...).
            shapes: of the plan's sources at one step.
        """
        for _, chunk, _, found in self._run(values, [time_steps], chunk_steps, shapes or {}, True, spikes):
            yield dict(zip(chunk.targets, found))

    def _run(self, values: Env, stops: list[int], chunk_steps: int | None, sources: Mapping[fx.Node, torch.Size],
             each_step: bool, spikes: Callable[[fx.Node, int, int], Tensor] | None = None) -> Iterator[tuple]:
        """Yield behind each chunk: the number of steps done, the chunk, the tensors kept, the targets at each step."""
        shapes = self.shapes(values, sources)
        if self.fast:  # so that what follows lies in memory as the chunk wants it
            values = {node: _channels_last(value) for node, value in values.items()}
        static = self.plan.once(values)
        record = any(neuron.recorders for neuron in self.plan.neurons.values())
        kept: list[Tensor] | None = None
        start = 0
        self._check()
        example = self._example(values)
        parts = schedule(stops, chunk_steps or self.preferred_steps(example, stops[-1]), self.compile)
        for steps in parts:
            chunk, run = self._chunk(steps, shapes, record, each_step, whole=len(parts) == 1)
            if kept is None:
                kept = [self._start(chunk, entry, shapes, example) for entry in chunk.kept]
                if stops[0] == 0:
                    yield 0, chunk, kept, []
            given = [static[node] for node in chunk.static]
            if self.fast:
                given = [_channels_last(value) for value in given]
            given += [spikes(node, start, start + steps) for node in self.plan.sources] if spikes else []
            given += [self.plan.modules[node].bias[start:start + steps] for node in chunk.stepped]
            counts, found, updated = run(*given, torch.tensor(float(start)), *kept)
            kept = kept if self.fast else updated
            for node, numbers in zip(chunk.neurons, counts):
                self.plan.modules[node].record(numbers)
            start += steps
            yield start, chunk, kept, found

    @staticmethod
    def program(module: nn.Module, device: torch.device, freezing: bool = True) -> Callable:
        """What a compiled loop makes of a chunk."""
        return compiled(module, device, freezing)

    def preferred_steps(self, example: Tensor, time_steps: int) -> int:
        """How many steps one chunk should have.

        Compiled, membranes are read and written once a chunk, but caches are small, and the time that compiling takes
        grows faster than the number of steps: on a GPU 8 took minutes.
        """
        if self.fast:  # a program has one number of steps, which divides T
            most = 4 if self.integers or self.dtype is not None else 2
            return max(steps for steps in range(1, most + 1) if time_steps % steps == 0)
        return chunk_steps_for(example, time_steps)

    def chunk(self, steps: int, shapes: Mapping[fx.Node, torch.Size], record: bool = False,
              each_step: bool = False, whole: bool = False) -> tuple[Chunk, Callable]:
        """The graph of K steps and how to run it; made anew when a weight or a neuron has changed."""
        self._check()
        return self._chunk(steps, shapes, record, each_step, whole)

    def _check(self) -> None:
        """Forget what was made for other weights or neurons; not while a simulation runs, it looks at every tensor."""
        tensors = [tensor for module in self._modules for tensor in (
            *module._parameters.values(), *module._buffers.values()) if tensor is not None]
        rules = [(neuron.rule, neuron.time_steps) for neuron in self.plan.neurons.values()]
        made_for = [(id(tensor), tensor._version, tensor.data_ptr()) for tensor in tensors] + rules
        if made_for != self._made_for:
            # The tensors are held: a new one must not come to lie where an old one was.
            self._chunks, self._made_for, self._held = {}, made_for, tensors

    def _chunk(self, steps: int, shapes: Mapping[fx.Node, torch.Size], record: bool, each_step: bool,
               whole: bool) -> tuple[Chunk, Callable]:
        dimensions = {node: len(shape) for node, shape in shapes.items()}
        key = steps, record, each_step, whole and self.integers, tuple(dimensions.values())
        if key not in self._chunks:
            chunk = Chunk(self.plan, dimensions, steps, self.dtype, record, each_step, in_place=self.fast,
                          share=not self.fast, tiled=not self.fast, integers=self.integers, whole=whole)
            module: nn.Module = chunk.graph_module
            if self.fast:
                module._apply(_channels_last_weights)
            compiles = self.compile and not chunk.is_native
            self._chunks[key] = chunk, self.program(
                module, self._held[0].device, not self.integers) if compiles else module
        return self._chunks[key]

    def shapes(self, values: Env, sources: Mapping[fx.Node, torch.Size] | None = None) -> dict[fx.Node, torch.Size]:
        """The shape that each node's tensor has at one step."""
        sources = sources or {}
        key = (*((node, value.shape if isinstance(value, Tensor) else None) for node, value in values.items()),
               *sources.items())
        if key not in self._shapes:
            like = self._example(values)
            given = {node: like.new_empty(shape) for node, shape in sources.items()}
            self._shapes[key] = self.plan.shapes({**values, **given})
        return self._shapes[key]

    def _example(self, values: Env) -> Tensor:
        """A tensor of the type, and on the device, of the computation: an input where there is one."""
        candidates = itertools.chain(values.values(), self.network.parameters(), [torch.empty(0)])
        return next(value for value in candidates if isinstance(value, Tensor) and value.is_floating_point())

    def _start(self, chunk: Chunk, entry: Kept, shapes: Mapping[fx.Node, torch.Size], example: Tensor) -> Tensor:
        """A kept tensor before the first step."""
        module: Any = self.plan.modules.get(entry.node)
        shape = shapes[entry.node]
        if entry.kind == 'sum':
            shape = shapes[chunk.running_inputs(entry.node)[entry.number]]
        if entry.kind == 'output' and chunk.sums:  # overwritten by each chunk
            return torch.empty(shape, dtype=example.dtype, device=example.device)
        layout = torch.channels_last if self.fast and len(shape) == 4 else torch.contiguous_format
        like = torch.empty(shape, dtype=example.dtype, device=example.device, memory_format=layout)
        if entry.kind != 'neuron':
            return torch.zeros_like(like)
        stored = module.rule.storage(module.time_steps)[entry.number]
        if not self.fast:
            return module.start(like)[entry.number]
        if entry.node in chunk.coded and module.rule.coding == 'differential':
            return torch.full_like(like, chunk.coded[entry.node].zero_point, dtype=torch.uint8)
        if module.initial_potential.ndim > 1 or module.channel_axis != 1 or like.ndim < 3:
            return _channels_last(module.start(like)[entry.number]).to(stored or like.dtype)
        # The same everywhere on the map: to start one position and spread it saves turning the map in memory.
        one = module.start(like[(slice(None), slice(None), *[slice(0, 1)] * (like.ndim - 2))])[entry.number]
        return like.to(stored or like.dtype).copy_(one)


def schedule(stops: list[int], steps: int, equal: bool) -> list[int]:
    """Numbers of steps of the chunks, each at most ``steps``, such that one ends at every stop.

    ``equal``: all of the same number, which then divides every stop; a program is compiled for one number.
    """
    stops = sorted({stop for stop in stops if stop})
    if equal:
        steps = math.gcd(steps, *stops)
    chunks, start = [], 0
    for stop in stops:
        chunks += [steps] * ((stop - start) // steps)
        chunks += [(stop - start) % steps] * bool((stop - start) % steps)
        start = stop
    return chunks


def chunk_steps_for(example: Tensor, time_steps: int) -> int:
    """Choose how many steps to simulate at once for inputs like ``example``, shape (N, C, H, W).

    Small inputs are bound by the overhead of each call, so steps are folded. Large ones are bound on a CPU by the
    caches, which one step of one image already fills, and on a GPU by memory: ResNet-50 takes 2.6 GiB for this.
    """
    budget = 2 ** 23 if example.is_cuda else 2 ** 19
    return max(1, min(time_steps, budget // max(1, example.numel())))


def _channels_last_weights(x: Tensor) -> Tensor:
    # Not by Module.to(memory_format=...), which refuses the weights of 3-D convolutions.
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x


def _channels_last(x):
    if not isinstance(x, Tensor):
        return x
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.contiguous_format)
