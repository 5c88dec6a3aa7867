"""Cost of simulation and calibration, as ratios within one run: ``python tools/benchmark.py [--json OUT]``.

The unit throughout is the ANN's own forward pass (eager, float32) of the same images on the same machine, times T:
what T steps would cost if every step were a pass of the ANN.
"""
import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules

import mmsnn


def seconds(run, repeats: int) -> float:
    """Median time of a call, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure(depth: int, size: tuple[int, int], time_steps: int, images: int, pipeline: str, repeats: int) -> dict:
    """Time the ANN, the simulation and the calibration of one ResNet backbone."""
    ann = MODELS.build(dict(type='ResNet', depth=depth))
    ann.eval()
    batches = [torch.randn(1, 3, *size) for _ in range(images)]
    with torch.no_grad():
        ann_pass = seconds(lambda: ann(batches[0]), repeats)
    snn = mmsnn.convert(ann, time_steps)
    started = time.perf_counter()
    mmsnn.calibrate(snn, batches, pipeline)
    calibration = time.perf_counter() - started
    simulation = seconds(lambda: snn(batches[0]), 1)
    layers = len(snn.neurons)
    return dict(depth=depth, layers=layers, size=size, time_steps=time_steps, images=images, ann_seconds=ann_pass,
                simulation_ratio=simulation / (time_steps * ann_pass), calibration_seconds=calibration,
                calibration_ratio=calibration / (images * time_steps * ann_pass))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--depths', type=int, nargs='+', default=[18, 50, 101])
    parser.add_argument('--size', type=int, nargs=2, default=[224, 224], metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--time-steps', type=int, default=16)
    parser.add_argument('--images', type=int, default=4)
    parser.add_argument('--pipeline', default='light', choices=['none', 'light'])
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--threads', type=int, help="torch's threads")
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    register_all_modules()
    torch.manual_seed(0)
    rows = []
    print('network     layers  ANN pass  simulation / (T ANN passes)  calibration / (images x T ANN passes)',
          flush=True)
    for depth in args.depths:
        row = measure(depth, tuple(args.size), args.time_steps, args.images, args.pipeline, args.repeats)
        rows.append(row)
        print(f'ResNet-{depth:<4} {row["layers"]:>6}  {row["ann_seconds"]:>6.3f} s  {row["simulation_ratio"]:>27.2f}  '
              f'{row["calibration_ratio"]:>37.2f}', flush=True)
    if args.json:
        args.json.write_text(json.dumps(dict(rows=rows, threads=torch.get_num_threads(), torch=torch.__version__),
                                        indent=1))


if __name__ == '__main__':
    main()
