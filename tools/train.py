"""Train an ANN: ``python tools/train.py CONFIG [--work-dir DIR]``, the arguments of mmdet's or mmpretrain's script."""
from _openmmlab import run_script

if __name__ == '__main__':
    run_script('train')
