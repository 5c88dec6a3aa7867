"""Runs exported networks in other software and compares."""
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..progress import progress_bar
from ..simulation.loop import TimeLoop
from ..simulation.network import SpikingNetwork, neuron_name
from ..simulation.plan import Plan, neuron_of
from .formats import export

Counts = dict[str, Tensor]


@torch.no_grad()
def run_nir(path: Path, x: Tensor) -> tuple[Tensor, Counts]:
    """Simulate a NIR file in SpikingJelly.

    Args:
        path: written by ``mmsnn.export.formats.export``.
        x: images, (N, C, H, W), in the precision to compute in.

    Returns:
        The mean output, and for each layer how many spikes each neuron fired, (N, ...).
    """
    import nir
    from spikingjelly.activation_based import neuron, nir_exchange

    graph = nir.read(path)
    network = nir_exchange.import_from_nir(graph, dt=1., dtype=x.dtype)
    counts: Counts = {}

    def count(name: str):
        def hook(_module, _inputs, outputs) -> None:
            counts[name] = counts.get(name, 0) + outputs[0]
        return hook

    for name, module in network.named_modules():
        if isinstance(getattr(module, 'module', None), neuron.IFNode):
            if graph.metadata['reset'] == 'subtract':
                module.module.v_reset = None  # SpikingJelly's name for reset by subtraction; NIR has none
            module.register_forward_hook(count(name))
    output: Any = 0.
    state = None
    for _ in range(int(graph.metadata['time_steps'])):
        current, state = network(x, state)
        output = output + current
    return output / int(graph.metadata['time_steps']), counts


@torch.no_grad()
def count_spikes(snn: SpikingNetwork, x: Tensor) -> Counts:
    """How many spikes each neuron of a network fires, (N, ...) for each layer."""
    loop = TimeLoop(snn.network, Plan(snn.graph, snn.neuron_nodes))
    (_, sums), = loop.sums(snn.bind(x), [snn.time_steps], chunk_steps=1)
    counts = {}
    for node, total in sums.items():
        neuron = neuron_of(node)
        counts[neuron_name(node)] = (total / neuron.per_channel(neuron.threshold, total)).round()
    return counts


def run_onnx(path: Path, x: Tensor) -> list[Tensor]:
    """The outputs of an ONNX file for images (N, C, H, W), by onnxruntime on the CPU."""
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return [torch.from_numpy(value) for value in session.run(None, {'input': x.numpy()})]


def compare(name: str, other: Tensor, own: Tensor) -> None:
    """Print how far outputs are from those of the network, both (N, ...)."""
    difference = (other - own).abs().flatten(1)
    print(f'{name}: mean difference {float(difference.mean()):.2g}, largest {float(difference.max()):.2g}; '
          f'{int((difference.amax(1) < 1e-4).sum())} of {len(own)} images within 1e-4'
          + (f', same class for {int((own.argmax(1) == other.argmax(1)).sum())}' if own.ndim == 2 else ''))


def check(snn: SpikingNetwork, images: Tensor, format: str, double: bool = False) -> None:
    """Export a network, run the file in other software, and print how far apart the two are.

    Args:
        snn: calibrated, on the CPU.
        images: preprocessed, (N, C, H, W).
        format: ``'nir'``, simulated by SpikingJelly, or ``'onnx'``, run by onnxruntime.
        double: compute in float64 on both sides.
    """
    if double:
        snn, images = snn.double(), images.double()
    mine, theirs, spikes = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f'network.{format}')
        export(snn, images[:1], path, format)
        print(f'{path.name}: {path.stat().st_size / 1e6:.1f} MB')
        for x in progress_bar(images.split(20), path.name, unit='batch'):
            mine.append(torch.utils._pytree.tree_flatten(snn(x))[0][0])
            if format == 'onnx':
                theirs.append(run_onnx(path, x)[0])
            else:
                output, counts = run_nir(path, x)
                theirs.append(output)
                spikes.append((count_spikes(snn, x), counts))
    for name in spikes[0][0] if spikes else ():
        own, other = (torch.cat([counts[index][name] for counts in spikes]) for index in (0, 1))
        print(f'{name}: {int(own.sum())} spikes, in the other simulation {int(other.sum())}; '
              f'{int((own != other).sum())} of {own.numel()} neurons differ')
    own = torch.cat(mine)
    print(f'output: largest value {float(own.abs().max()):.3g}')
    compare('the file', torch.cat(theirs), own)
    if not double:
        # How much rounding alone changes: near a threshold it decides whether a spike comes now or a step later.
        leaves = [torch.utils._pytree.tree_flatten(snn.double()(x.double()))[0][0] for x in images.split(20)]
        compare('mmsnn in float64', torch.cat(leaves), own)
