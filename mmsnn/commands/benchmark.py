"""Measure what simulation and calibration cost, in forward passes of the ANN.

    mmsnn benchmark simulation --networks resnet50 --size 400 672 --time-steps 32

    simulation    time of T steps, plain and compiled, beside the loop that runs the whole network at every step and
                  SpikingJelly's ann2snn (where it is installed: pip install spikingjelly)
    memory        peak memory by T, each in a process of its own
    calibration   time by depth, images and T, in passes of the ANN an image; with --published also the algorithm that
                  simulates the whole network once for every layer
    shapes        a folder of images, each at its own size, compilation included
    breakdown     where the time of a simulation goes: convolutions, everything between them, the stem
    events        a 1 x 1 convolution of 256 channels as a sparse product over the spikes alone, by firing rate

The unit, but of calibration, is T times the ANN's own forward pass (eager, float32, contiguous) of the same image in
the same run: what T steps would cost if every step were a pass of the ANN. Candidates take turns; medians, and the
spread over the repeats in brackets.
"""
import argparse
from pathlib import Path

from .arguments import add_size, positive

WHAT = 'simulation', 'memory', 'calibration', 'shapes', 'breakdown', 'events'
NETWORKS = 'resnet18', 'resnet34', 'resnet50', 'resnet101', 'mobilenet_v2', 'retinanet'
CANDIDATES = 'plain', 'compiled', 'bfloat16', 'int8', 'naive', 'spikingjelly'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('what', choices=WHAT)
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=['resnet50'], metavar='NAME',
                        help=f'{", ".join(NETWORKS)}: backbones, or a whole RetinaNet with ResNet-50 '
                             '(default: resnet50)')
    add_size(parser, default=[224, 224], help='of the images (default: 224 224)')
    parser.add_argument('--time-steps', type=positive, nargs='+', default=[8], metavar='T', help='default: 8')
    parser.add_argument('--candidates', nargs='+', choices=CANDIDATES, default=list(CANDIDATES), metavar='NAME',
                        help=f'some of {", ".join(CANDIDATES)} (default: all)')
    parser.add_argument('--pipeline', default='signed',
                        help='whose neurons are simulated, or what is calibrated (default: %(default)s)')
    parser.add_argument('--images', type=positive, default=4, metavar='N',
                        help='calibration images (default: %(default)s)')
    parser.add_argument('--published', action='store_true', help='calibration: also a whole simulation per layer')
    parser.add_argument('--folder', type=Path, help='shapes: where the images are')
    parser.add_argument('--repeats', type=positive, default=3, metavar='N', help='default: %(default)s')
    parser.add_argument('--device', default='cpu', help='such as cuda (default: %(default)s); breakdown and events are '
                                                        'of the CPU')
    parser.add_argument('--threads', type=positive, default=1, metavar='N',
                        help="torch's threads (default: %(default)s)")
    parser.add_argument('--json', type=Path, help='file to write the rows to')


def run(args: argparse.Namespace) -> None:
    from ..experiments.benchmark import measure
    measure(args)
