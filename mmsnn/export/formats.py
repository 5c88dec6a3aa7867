"""Write a calibrated network to files that other software runs: NIR and ONNX."""
import copy
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from ..files import new_file
from ..simulation.chunk import Chunk, Kept
from ..simulation.network import SpikingNetwork
from ..simulation.plan import Plan
from .nir_graph import to_nir
from .nir_terms import ExportError

NEEDS = dict(nir=('nir',), onnx=('onnx', 'onnxscript'))


def export(snn: SpikingNetwork, example: Tensor, path: str | Path, format: str) -> None:
    """Write a calibrated network to a file.

    Args:
        snn: from :func:`mmsnn.convert`, calibrated.
        example: an input, (N, C, H, W): the file is made for images of its size, and any number of them.
        path: the file to write; never seen half-written.
        format: ``'nir'``, see :func:`mmsnn.export.nir_graph.to_nir`, or ``'onnx'``, see :class:`Simulation`.

    Raises:
        ExportError: the format cannot express the network; the message names what and where.
        ImportError: a package that the format needs is not installed.
        RuntimeError: the network has not been calibrated.
        ValueError: no such format.
    """
    if format not in NEEDS:
        raise ValueError(f'format must be one of {list(NEEDS)}, not {format!r}')
    missing = [name for name in NEEDS[format] if find_spec(name) is None]
    if missing:
        raise ImportError(f"to write {format} files install {' and '.join(missing)}: pip install 'mmsnn[export]'")
    if format == 'nir':
        import nir
        graph = to_nir(snn, example)
        with new_file(path) as temporary:
            nir.write(temporary, graph)
        return
    program = to_onnx(snn, example)
    with new_file(path) as temporary:
        program.save(temporary, external_data=False)


def to_onnx(snn: SpikingNetwork, example: Tensor) -> 'torch.onnx.ONNXProgram':
    """Translate a calibrated network's whole simulation of T steps into one ONNX model.

    Its input is called ``input``, (N, C, H, W) with any N; its outputs are the mean over time of the network's,
    ``output``, ``output_1`` and so on, in their order.

    Raises:
        ExportError: the network simulates in bfloat16, or nothing in it spikes.
        RuntimeError: the network has not been calibrated.
    """
    simulation = Simulation(snn, example)
    with torch.no_grad():
        outputs = simulation(example)
    names = ['output', *(f'output_{index}' for index in range(1, len(outputs)))]
    # A batch of 1 in the example would be taken for a constant.
    example = torch.cat([example, example])[:2]
    program = torch.onnx.export(simulation, (example,), dynamo=True, dynamic_shapes=({0: torch.export.Dim('batch')},),
                                input_names=['input'], output_names=names, verbose=False)
    assert program is not None  # None comes only with dynamo=False
    return program


class Simulation(nn.Module):
    """T steps as one traceable function of the image: a chunk of one step, scanned over time.

    It computes what :meth:`mmsnn.SpikingNetwork.forward` does, by the same graph as the compiled simulation
    (:class:`mmsnn.simulation.chunk.Chunk`), which returns potentials and counts instead of updating them. What does
    not vary in time, the stem's convolution above all, stands before the loop. The file does not grow with T.

    Args:
        snn: calibrated, float32.
        example: an input of the size that the simulation is for.
    """

    def __init__(self, snn: SpikingNetwork, example: Tensor) -> None:
        super().__init__()
        settings = snn._check_calibrated()
        if snn.dtype != 'float32':
            raise ExportError(f"the network simulates in dtype={snn.dtype!r}, the ONNX model in float32, which gives "
                              "other spikes: convert with dtype='float32'")
        if not snn.plan.varying:
            raise ExportError('no output lies behind a neuron: there is nothing to simulate, export the ANN itself')
        # Tracing a loop fails where a gradient would be wanted, which mmsnn.SpikingClassifier asks of one parameter.
        self.snn = snn = copy.deepcopy(snn).requires_grad_(False)
        self.plan: Plan = snn.plan
        self.shapes = snn.loop.shapes(snn.bind(example))
        dimensions = {node: len(shape) for node, shape in self.shapes.items()}
        self.chunk = Chunk(self.plan, dimensions, steps=1, in_place=False)
        self.step = self.chunk.graph_module
        self._fix_shapes()
        self.shift = settings['shift']
        self.eval()

    def _fix_shapes(self) -> None:
        """Write numbers where the step reshapes to sizes that it reads: a loop cannot hand a batch size to its body."""
        graph = self.step.graph
        copies = {node.name: node for node in graph.nodes}
        for node in self.plan.varying:
            sizes = node.args[1:] if node.target in ('view', 'reshape', torch.reshape) else ()
            if any(isinstance(size, fx.Node) for size in torch.utils._pytree.tree_flatten(sizes)[0]):
                copy = copies[node.name]
                copy.target = torch.reshape
                copy.op = 'call_function'
                copy.args = (copy.args[0], (-1, *self.shapes[node][1:]))
        graph.eliminate_dead_code()
        self.step.recompile()

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        from torch._higher_order_ops.scan import scan

        static = self.plan.once(self.snn.bind(input))
        given = [static[node] for node in self.chunk.static]
        outputs = [entry.kind == 'output' for entry in self.chunk.kept]
        states = [self._start(entry, input) for entry in self.chunk.kept]
        time_steps, delay = self.snn.time_steps, self.snn.delay
        first = torch.arange(time_steps, dtype=torch.float32, device=input.device)
        biases = [self.plan.modules[node].bias.unsqueeze(1) for node in self.chunk.stepped]

        def advance(states: list[Tensor], each: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            first, *biases = each
            if delay:
                states = [torch.where(first == delay, 0., value) if is_output else value
                          for value, is_output in zip(states, outputs)]
            _, _, states = self.step(*given, *biases, first, *states)
            return list(states), [first.clone()]

        states, _ = scan(advance, states, [first, *biases])
        sums = {entry.node: value for entry, value in zip(self.chunk.kept, states) if entry.kind == 'output'}
        values = torch.utils._pytree.tree_flatten(self.snn._outputs(sums, static, time_steps, self.shift))[0]
        return tuple(value for value in values if isinstance(value, Tensor))

    def _start(self, entry: Kept, input: Tensor) -> Tensor:
        node = entry.node if entry.kind != 'sum' else self.chunk.running_inputs(entry.node)[entry.number]
        like = input.new_zeros(input.shape[0], *self.shapes[node][1:])
        return self.plan.modules[entry.node].start(like)[entry.number] if entry.kind == 'neuron' else like
