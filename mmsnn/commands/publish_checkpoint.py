"""Strip a training checkpoint to what inference needs: ``python tools/publish_checkpoint.py IN OUT``.

Unlike mmdet's ``publish_model.py`` this also drops the config text and the log history, which name paths of the
machine that trained and do not load with ``torch.load(weights_only=True)``.
"""
import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from mmsnn.files import write_checkpoint
from mmsnn.openmmlab.scripts import UNSAFE, allow_harmless


def publish(source, target) -> None:
    """Write weights and data set names of ``source`` to ``target``, all or nothing.

    Weights are rounded to half precision (they load into float32 models as they are), which halves the file; biases
    and the statistics of normalisation stay float32, whose range they may need.

    Args:
        source: A checkpoint of mmengine's Runner.
        target: The file to write.
    """
    allow_harmless()
    checkpoint = torch.load(source, map_location='cpu', weights_only=UNSAFE not in os.environ)
    # clone() lets go of storage that is shared with, or larger than, the tensor.
    state_dict = {
        key: value.to(torch.float16 if value.ndim > 1 else torch.float32).clone() if value.is_floating_point()
        else value.clone()
        for key, value in checkpoint['state_dict'].items()
    }
    meta = {key: checkpoint['meta'][key] for key in ('dataset_meta', 'epoch') if key in checkpoint.get('meta', {})}
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(state_dict, meta, target)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='checkpoint of a training run')
    parser.add_argument('target', help='file to write, for example checkpoints/NAME.pth')
    publish(**vars(parser.parse_args()))
