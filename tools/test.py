"""Test a model, spiking or not: ``python tools/test.py CONFIG CHECKPOINT ...`` with the arguments of mmdet's script."""
from _openmmlab import run_script

if __name__ == '__main__':
    run_script('test')
