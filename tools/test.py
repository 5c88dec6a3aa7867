"""Test a model, spiking or not: ``python tools/test.py CONFIG CHECKPOINT ...`` with the arguments of mmdet's script."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmsnn.openmmlab.scripts import run_script

if __name__ == '__main__':
    run_script('test')
