"""A chunk as a compiled program, which the next process finds again on disk.

What lies between two layers of weights is a *region*. Most regions of a network are alike but for sizes and share a
program, of which thresholds are arguments; weights stay outside, packed by oneDNN. Compiling then takes as long as
there are different regions, not layers, and torch can keep the programs, whatever the weights. (One program of the
whole chunk has weights as constants, for which torch's caches refuse it.)
"""
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ..machine import compiler_name, has_compiler
from .firing import Firing

LIMIT = 64  # programs of one region: sizes are variables, but 1 is a size of its own, as are widths that are heights
_programs: dict[tuple, '_Program'] = {}  # of the regions that this process has met


def compiled(module: nn.Module, device: torch.device, freezing: bool = True) -> Callable:
    """The module as a compiled program; where the machine has no compiler, as it is, with a warning.

    ``freezing``: weights are constants of it, which oneDNN packs once; compiled anew in every process. On a CPU a chunk
    of convolutions does without: see :func:`in_regions`.
    """
    if device.type == 'cpu' and not has_compiler():
        logging.getLogger(__name__).warning(
            'compile=True needs a C++ compiler, and %r is not to be found: simulating without. Install g++, or set CXX',
            compiler_name())
        return module
    keep_programs()
    if freezing and device.type == 'cpu' and isinstance(module, fx.GraphModule) and has_regions(module):
        parts = in_regions(module)

        def run_regions(*args):
            from torch.fx.experimental import _config as symbols
            # Sizes that happen to be equal are variables of their own.
            with torch._dynamo.config.patch(recompile_limit=LIMIT), symbols.patch(use_duck_shape=False):
                return parts(*args)

        return run_regions
    program = _OrPlain(torch.compile(module, fullgraph=True), module)

    def run(*args):
        # Given as an option of torch.compile it would come too late: tracing has to keep weights as constants already.
        with torch._inductor.config.patch(freezing=freezing):
            return program(*args)

    return run


class _OrPlain:
    """A compiled function, and the plain one for when the compiler fails on it: a failure of its own stops nobody."""

    def __init__(self, compiled: Callable, plain: Callable) -> None:
        self._run, self._plain = compiled, plain

    def __call__(self, *args):
        try:
            return self._run(*args)
        except torch._dynamo.exc.BackendCompilerFailed as error:  # before anything has run
            if self._run is self._plain:
                raise
            logging.getLogger(__name__).warning(
                'torch.compile %s failed on a part of the simulation, which runs operation by operation instead: same '
                'results, slower (%s)', torch.__version__, ' '.join(str(error).split('\n')[:2]))
            self._run = self._plain
            return self._plain(*args)


def keep_programs() -> None:
    """Let torch keep programs in :func:`cache_folder`, unless ``TORCHINDUCTOR_CACHE_DIR`` says otherwise."""
    usual = os.path.join(tempfile.gettempdir(), 'torchinductor_')  # torch itself sets the variable when it is imported
    folder = cache_folder()
    if os.environ.get('TORCHINDUCTOR_CACHE_DIR', usual).startswith(usual) and can_write(folder):
        os.environ['TORCHINDUCTOR_CACHE_DIR'] = str(folder)


def cache_folder() -> Path:
    """In the user's cache folder, which the next process finds."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmsnn' / 'inductor'


def can_write(folder: Path) -> bool:
    """Whether files can be written to a folder, which is made: a home may be read-only, or missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


class PackedConvolution(nn.Module):
    """A convolution whose weights oneDNN has packed for the images' size; otherwise it does so at every call.

    Packed for another size, or for none, some of ResNet-50's layers take twenty times as long.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self._options = (*(list(value) for value in (convolution.padding, convolution.stride, convolution.dilation)),
                         convolution.groups)
        # No buffer: a packed tensor knows no memory format, and cannot be copied.
        self._packed: tuple[torch.Size, Tensor] | None = None  # for which size

    def forward(self, x: Tensor) -> Tensor:
        if not x.numel():
            return self.convolution(x)
        packed = self._packed
        if packed is None or packed[0] != x.shape:
            weight = self.convolution.weight.detach()
            self._packed = packed = x.shape, torch.ops.mkldnn._reorder_convolution_weight(
                weight, *self._options, list(x.shape))
        return torch.ops.mkldnn._convolution_pointwise(
            x, packed[1], self.convolution.bias, *self._options, 'none', [], '')


def has_regions(module: fx.GraphModule) -> bool:
    """Whether a chunk is made of convolutions that oneDNN packs, linear layers, and what has no weights."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.compiler, 'keep_tensor_guards_unsafe'):
        return False  # the latter came with the choice of guards
    called = [module.get_submodule(str(node.target)) for node in module.graph.nodes if node.op == 'call_module']
    others = [part.activation if isinstance(part, Firing) else part
              for part in called if not _is_packable(part) and type(part) is not nn.Linear]
    return any(map(_is_packable, called)) and all(map(_is_plain, others))


def _is_packable(module: nn.Module) -> bool:
    return (type(module) is nn.Conv2d and module.padding_mode == 'zeros' and not isinstance(module.padding, str)
            and (module.weight.dtype == torch.float32 or module.weight.dtype == torch.bfloat16
                 and torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def _is_plain(module: nn.Module | None) -> bool:
    """Whether a module is torch's own and without tensors, so that its repr says what it computes."""
    return module is None or type(module).__module__.startswith('torch.nn.modules.') and not (
        [*module.children(), *module.state_dict()])


def in_regions(module: fx.GraphModule) -> fx.GraphModule:
    """A chunk's graph as a sequence of layers of weights and compiled regions."""
    modules = dict(module.named_modules())
    nodes = list(module.graph.nodes)
    layers = {node for node in nodes if node.op == 'call_module'
              and isinstance(modules[str(node.target)], (nn.Conv2d, nn.Linear))}
    # The stage of a node: how many layers lie before it. What is connected within a stage is a region.
    stages: dict[fx.Node, int] = {}
    regions: dict[fx.Node, list[fx.Node]] = {}
    for node in nodes:
        stages[node] = max((stages[arg] + (arg in layers) for arg in node.all_input_nodes), default=0)
        if node.op in ('placeholder', 'get_attr', 'output') or node in layers:
            continue
        regions[node] = [node]
        for arg in node.all_input_nodes:
            if arg in regions and stages[arg] == stages[node] and regions[arg] is not regions[node]:
                joined = regions[arg] + regions[node]
                regions.update(dict.fromkeys(joined, joined))
    places = {node: place for place, node in enumerate(nodes)}
    members = [sorted(region, key=places.__getitem__) for region in {id(r): r for r in regions.values()}.values()]
    # In a stage regions come before layers, which read them.
    steps = sorted([*([node] for node in layers), *members],
                   key=lambda step: (stages[step[0]], step[0] in layers, places[step[0]]))
    graph, root = fx.Graph(), nn.Module()
    new: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node.op in ('placeholder', 'get_attr'):
            new[node] = graph.node_copy(node)
        if node.op == 'get_attr':
            root.register_buffer(str(node.target), getattr(module, str(node.target)))
    for step in steps:
        first = step[0]
        if first in layers:
            # One for each call: a detector's head is called on maps of several sizes.
            layer = modules[str(first.target)]
            root.add_module(f'layer_{first.name}', PackedConvolution(layer) if isinstance(layer, nn.Conv2d) else layer)
            new[first] = graph.node_copy(first, new.__getitem__)
            new[first].target = f'layer_{first.name}'
            continue
        region = _Region(step, modules)
        root.add_module(f'region_{first.name}', region.program())
        given = [new[node] for node in region.inputs]
        for number, tensor in enumerate(region.tensors):
            root.register_buffer(f'tensor{number}_{first.name}', tensor)
            given.append(graph.get_attr(f'tensor{number}_{first.name}'))
        result = graph.call_module(f'region_{first.name}', tuple(given))
        new |= {node: graph.call_function(_item, (result, number)) for number, node in enumerate(region.outputs)}
    graph.output(map_arg(nodes[-1].args[0], new.__getitem__))
    return fx.GraphModule(root, graph)


class _Region:
    """Connected nodes as a graph of their own.

    Attributes:
        inputs: nodes that it reads.
        tensors: that it takes behind these: thresholds and biases.
        outputs: nodes of it that others read.
    """

    def __init__(self, nodes: list[fx.Node], modules: dict[str, nn.Module]) -> None:
        inside = set(nodes)
        self.inputs = list(dict.fromkeys(arg for node in nodes for arg in node.all_input_nodes if arg not in inside))
        self.outputs = [node for node in nodes if not inside.issuperset(node.users)]
        called = {node: modules[str(node.target)] for node in nodes if node.op == 'call_module'}
        firing = {node: module for node, module in called.items() if isinstance(module, Firing)}
        self.tensors = [tensor for module in firing.values() for tensor in (module.threshold, module.bias)]
        self._graph, self._root = fx.Graph(), nn.Module()
        new = {node: self._graph.placeholder(f'given_{number}') for number, node in enumerate(self.inputs)}
        tensors = iter([self._graph.placeholder(f'given_tensor_{number}') for number, _ in enumerate(self.tensors)])
        key: list[Any] = []  # the same for regions that compute the same
        numbers = {node: number for number, node in enumerate((*self.inputs, *nodes))}
        for node in nodes:
            target: Any = node.target
            if node in firing:
                args = (next(tensors), next(tensors), *map_arg(node.args, new.__getitem__))
                new[node] = self._graph.call_function(firing[node].fire, args)
                target = _choices(firing[node])
            else:
                new[node] = self._graph.node_copy(node, new.__getitem__)
                if node in called:
                    self._root.add_module(str(node.target), called[node])
                    target = _described(called[node])
            arguments = map_arg((node.args, node.kwargs), lambda arg: _Number(numbers[arg]))
            key.append((node.op, target, repr(arguments)))
        self._graph.output([new[node] for node in self.outputs])
        self._key = (*key, *(numbers[node] for node in self.outputs), len(self.inputs))

    def program(self) -> '_Program':
        if self._key not in _programs:
            _programs[self._key] = _Program(fx.GraphModule(self._root, self._graph))
        return _programs[self._key]


class _Program(nn.Module):
    """What computes a region, compiled at its first call."""

    def __init__(self, region: fx.GraphModule) -> None:
        super().__init__()
        options: dict = dict(guard_filter_fn=_on_arguments)
        self._run = _OrPlain(torch.compile(region.forward, fullgraph=True, dynamic=True, options=options), region)

    def forward(self, *args):
        return self._run(*args)


class _Number(int):
    """Stands for a node where arguments are spelled out."""

    def __repr__(self) -> str:
        return f'node {int(self)}'


def _described(module: nn.Module) -> str:
    """All that one of torch's modules without tensors computes by: poolings and upsamplings do not show all of it."""
    options = {name: value for name, value in vars(module).items() if not name.startswith('_')}
    return f'{type(module).__name__} {options}'


def _choices(firing: Firing) -> tuple:
    """All that a layer of neurons computes by, but its tensors: of these, what decides how they broadcast."""
    shapes = [(tensor.ndim, tensor.shape[-1] == 1) for tensor in (firing.threshold, firing.bias)]
    return (firing.model, firing.time_steps, firing.steps, firing.varies, firing.ceiling, repr(firing.activation),
            firing.axis, firing.dtype, firing.record, firing.tiled, *shapes)


def _on_arguments(guards: list) -> list[bool]:
    """The guards on a region's arguments. All else that it depends on is in its key, and takes long to check."""
    return [guard.guard_type == 'SHAPE_ENV' or guard.name.startswith('given_') for guard in guards]


def _item(values: list[Tensor], number: int) -> Tensor:
    return values[number]
