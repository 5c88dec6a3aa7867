"""Train an ANN: ``python tools/train.py CONFIG [--work-dir DIR]``, the arguments of mmdet's or mmpretrain's script."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmsnn.openmmlab.scripts import run_script

if __name__ == '__main__':
    run_script('train')
