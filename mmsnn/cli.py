"""The command ``mmsnn``, which is also ``python -m mmsnn`` and, in a clone, ``python tools/<command>.py``."""
import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from .mistakes import mistake_of
from .version import __version__

COMMANDS = {  # each is a module of mmsnn.commands, with add_arguments(parser) and run(args)
    'test': 'test a model, spiking or not, by the script of mmdet or mmpretrain',
    'train': 'train an ANN, by the script of mmdet or mmpretrain',
    'calibrate': 'calibrate a spiking model and keep the result as a checkpoint',
    'sweep': 'compare pipelines, time steps, numbers of images and seeds in one table and figure',
    'report': 'write a page with scores, errors, firing rates, energy and pictures',
    'export': 'write a calibrated network for other software, as NIR or ONNX',
    'check-export': 'run an exported network in other software and compare',
    'synthesise': "make calibration images from a network's own statistics",
    'benchmark': 'measure time and memory of simulation and calibration',
    'convert-checkpoint': 'give a checkpoint from elsewhere the names of a config',
    'publish-checkpoint': 'strip a training checkpoint to what inference needs',
    'info': 'print versions, devices, and what the processor can do',
}
SCRIPTS = 'test', 'train'  # whose arguments another script parses


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(prog, description=description, epilog=epilog, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: {message} ({self.prog} --help explains the arguments)\n')


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        arguments: its name and its arguments; by default those of the process.

    Raises:
        SystemExit: with one line and status 2 where the arguments are wrong, status 1 where the work finds a mistake
            of the user's. Any other exception is a bug and passes.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = Parser(prog='mmsnn', description='Convert and calibrate OpenMMLab detectors and classifiers into spiking '
                    'neural networks.', epilog=overview())
    parser.add_argument('--version', action='version', version=f'mmsnn {__version__}')
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND')
    name = parser.parse_args(arguments[:1]).command
    module = import_module(f'.commands.{name.replace("-", "_")}', __package__)
    parser = Parser(prog=f'mmsnn {name}', description=(module.__doc__ or '').replace('``', '`'))
    module.add_arguments(parser)
    rest = arguments[1:]
    if name in SCRIPTS and not set(rest[:1]) & {'-h', '--help'}:
        args = argparse.Namespace(arguments=rest)
    else:
        args = parser.parse_args(rest, argparse.Namespace(typed=rest))
    try:
        import_module('.api', __package__)  # registers what configs name
        module.run(args)
    except Exception as error:
        mistake = mistake_of(error)
        if mistake is None:
            raise
        sys.exit(f'mmsnn {name}: {mistake}')


def overview() -> str:
    """The commands, with a line about each."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f'  {name:{width}}{about}' for name, about in COMMANDS.items()]
    return '\n'.join(['commands:', *lines, '', 'example:', '  mmsnn calibrate my_detector_spiking.py my_detector.pth '
                      '-o spiking.pth', '', "'mmsnn COMMAND --help' explains a command."])
