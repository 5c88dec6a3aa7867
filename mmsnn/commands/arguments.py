"""Arguments that several commands take."""
import argparse
from pathlib import Path

PIPELINE_HELP = ('such as differential, signed, none, light, advanced; options replace choices of the pipeline '
                 '(mmsnn.Pipeline)')


class ConfigOptions(argparse.Action):
    """``KEY=VALUE ...``, read as mmengine's scripts do; mmengine is loaded only where the option is given."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        wrong = [value for value in values if '=' not in value]
        if wrong:
            parser.error(f"--cfg-options takes KEY=VALUE, not '{wrong[0]}'")
        from mmengine.config import DictAction
        DictAction(self.option_strings, self.dest, nargs='+')(parser, namespace, values, option_string)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, not {number}')
    return number


def add_model(parser: argparse.ArgumentParser, checkpoint: str = 'checkpoint of the ANN') -> None:
    """The config of a spiking model, its checkpoint, and settings to change."""
    parser.add_argument('config', help='config of the spiking model')
    parser.add_argument('checkpoint', help=checkpoint)
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, default={}, metavar='KEY=VALUE',
                        help='override settings of the config, such as model.backbone.time_steps=16')


def add_out(parser: argparse.ArgumentParser, what: str) -> None:
    """The file to write."""
    parser.add_argument('-o', '--out', required=True, type=Path, help=what)


def add_size(parser: argparse.ArgumentParser, **options) -> None:
    """Height and width of images."""
    parser.add_argument('--size', type=positive, nargs=2, metavar=('HEIGHT', 'WIDTH'), **options)
