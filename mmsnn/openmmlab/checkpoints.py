"""Give a checkpoint from elsewhere the names of a config: ``python tools/convert_checkpoint.py CONFIG IN OUT``.

For checkpoints of the same architecture under other names, such as those of pytorch_resnet_cifar10 or torchvision.
Tensors are matched in the order in which both networks register them; every shape, and the last part of every name
(weight, bias, running_mean ...), must agree. Test the result (``tools/test.py CONFIG OUT``): it must reach the accuracy
that the checkpoint is known for.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

from mmsnn.files import write_checkpoint
from mmsnn.openmmlab.hooks import plain_config
from mmsnn.version import __version__


def find_state(checkpoint: dict) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, wherever the file has them, in their order."""
    for key in ('state_dict', 'model', 'net', 'model_state_dict'):
        if isinstance(checkpoint.get(key), dict):
            return find_state(checkpoint[key])
    return {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}


def rename(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of ``state`` under the names of ``own``.

    Raises:
        ValueError: numbers, shapes or kinds of tensors differ; the message shows the first difference.
    """
    theirs, ours = ([name for name in names if not name.endswith('num_batches_tracked')] for names in (state, own))
    for one, other in zip(theirs, ours):
        if state[one].shape != own[other].shape or one.rsplit('.', 1)[-1] != other.rsplit('.', 1)[-1]:
            raise ValueError(f'{one} {tuple(state[one].shape)} in the checkpoint stands where the config has '
                             f'{other} {tuple(own[other].shape)}: these are different networks')
    if len(theirs) != len(ours):
        raise ValueError(f'the checkpoint has {len(theirs)} tensors, the network of the config {len(ours)}; the first '
                         f'without a partner is {(theirs + ours)[min(len(theirs), len(ours))]}')
    return {other: state[one] for one, other in zip(theirs, ours)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the ANN, or of its spiking model')
    parser.add_argument('checkpoint', type=Path, help='checkpoint to read; no code in it is executed')
    parser.add_argument('out', type=Path, help='checkpoint to write')
    args = parser.parse_args()
    cfg = plain_config(Config.fromfile(args.config))
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    model = cfg.model
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    own = MODELS.build(model).state_dict()
    state = find_state(torch.load(args.checkpoint, map_location='cpu', weights_only=True))
    try:
        renamed = rename(state, own)
    except ValueError as error:
        sys.exit(f'{args.checkpoint} does not fit {args.config}: {error}')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(renamed, dict(mmsnn_version=__version__), args.out)
    print(f'{len(renamed)} tensors renamed, from {next(iter(renamed))} to {list(renamed)[-1]}; saved {args.out}')


if __name__ == '__main__':
    main()
