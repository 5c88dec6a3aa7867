"""Commands of the tables of docs/near_lossless.md at equal levels; see tools/_tables.py."""
from pathlib import Path

from _tables_classifiers import CIFAR, IMAGENET, MOBILENET, ON_IMAGENET, SIGNED

from mmsnn.experiments import readers as read
from mmsnn.experiments.readers import sweep
from mmsnn.experiments.recompute import Table

SHRINKING = 'differential:levels=9,shrinking=2,dead_zone=0.55,narrowing=1.5'
BY_LEVELS = {2: 'bursts:levels=9 bursts', 3: 'differential:levels=9 differential:levels=9,shrinking=2 differential',
             4: f'bursts:levels=5 differential:levels=5,shrinking=3 differential:levels=9 {SHRINKING}',
             8: 'signed:levels=3', 16: 'signed:levels=3'}
DEEP = {4: 'differential', 8: 'differential:settling_steps=3 differential:shrinking=2,settling_steps=3 differential '
                              'differential:sizes=7'}
CHANGES = ' model.coding=differential custom_hooks.0.num_images=100 custom_hooks.0.memory_gb=3'


def backbone(data: str, detector: str) -> str:
    name = f'{detector}_r50-thin_fpn'
    return sweep(f'configs/{data}/{name}_snn-none_{data}.py checkpoints/{name}_{data}.pth',
                 f'backbone-{data}-{detector}', '--time-steps 2 3 --pipelines bursts differential')


def backbones(data: str, called: str) -> Table:
    """The rows of a data set: a column for each pipeline and T."""
    def cells(logs: Path) -> read.Cells:
        return {(f'{name}, {called}', f'`{pipeline}`, {column}'): text
                for name, detector in DETECTORS.items()
                for (pipeline, column), text in read.swept(f'backbone-{data}-{detector}', 'coco')(logs).items()
                if column != read.LEVELS}
    return Table('docs/near_lossless.md', 'backbone | ANN', tuple(backbone(data, each) for each in DETECTORS.values()),
                 cells, (f'data/{data}',), 30, rows=called)


DETECTORS = {'RetinaNet': 'retinanet', 'Faster R-CNN': 'faster-rcnn'}
LEVELS = [
    backbones('digits', 'digits'),
    backbones('bccd', 'blood cells'),
    Table('docs/near_lossless.md', 'levels | pipeline | T | top-1', tuple(
        sweep(SIGNED, f'by-levels-{steps}', f'--time-steps {steps} --pipelines {names} --seeds 3')
        for steps, names in BY_LEVELS.items()),
        read.by_levels(*(f'by-levels-{steps}' for steps in BY_LEVELS)), CIFAR, 300),
    Table('docs/near_lossless.md', 'MobileNetV2, levels', tuple(
        sweep(MOBILENET.format('advanced'), f'deep-{steps}',
              f'--time-steps {steps} --pipelines {names} {ON_IMAGENET}{CHANGES}') for steps, names in DEEP.items()),
        read.by_levels(*(f'deep-{steps}' for steps in DEEP)), IMAGENET, 60),
]
