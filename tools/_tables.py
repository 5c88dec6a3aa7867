"""Which command computes which table of README.md and docs/: what tools/recompute.py goes through.

Times (docs/speed.md, docs/reproduce.md) are not among them: no two machines have the same. Nor is what was made on a
GPU (docs/paper_networks.md), or by a program that stands on its page (docs/theory.md).
"""
import json
from pathlib import Path

from mmsnn.experiments.demo import METHODS, WEIGHTS, WHOLE
from mmsnn.experiments.recompute import Table, markdown, printed, stored, transposed

DIGITS = 'configs/digits/{0}_r50-thin_fpn{1}_digits.py checkpoints/{0}_r50-thin_fpn_digits.pth'
CIFAR = 'data/cifar10', 'work_dirs/resnet20_cifar10.pth'
RESNET = 'configs/resnet_cifar/resnet20_snn-{}_cifar10{}.py work_dirs/resnet20_cifar10.pth'
FIFTH = RESNET.format('advanced', '-fifth')
WHOLE_DIGITS = 'python tools/demo.py --work-dir work_dirs/whole'
DEMO, MOPS, LIGHT = 'python tools/demo.py', 'synaptic operations', 'retinanet_r50-thin_fpn_snn-light_digits'


def sweep(model: str, folder: str, arguments: str) -> str:
    return f'python tools/sweep.py {model} --work-dir work_dirs/sweep/{folder} {arguments}'


def swept(folder: str, head: str = '', **named):
    return markdown(f'work_dirs/sweep/{folder}/table.md', head, **named)


def whole(row: dict) -> dict:
    """A row of docs/detectors.md: additions, and behind a comma multiplications of what a rate code leaves graded."""
    if row['time_steps'] is None:
        return {(f'{row["detector"]}, ANN', 'mAP'): f'{row["bbox_mAP"]:.3f}'}
    kind, _, options = row['pipeline'].removeprefix('whole-').partition(':')
    named = ', '.join(f'`{word}`' for word in (kind.removeprefix('differential'), options) if word)
    name = ', '.join(filter(None, [row['detector'], 'SNN', named, str(row['time_steps'])]))
    counts = [f'{row.get(f"{kind}_operations", 0) / 1e6:.0f}' for kind in ('event', 'graded')]
    return {(name, 'mAP'): f'{row["bbox_mAP"]:.3f}', (name, 'energy'): f'{row["event_energy_ratio"]:.3f}',
            (name, 'operations, millions'): ', '.join(counts[:1 if counts[1] == '0' else 2]),
            **by_part(name, row, 'event'), **by_part(f'{row["detector"]}, ANN', row, 'ann')}


def by_part(name: str, row: dict, kind: str) -> dict:
    """The cell with what backbone, neck, and heads together have of the ANN's energy."""
    shares = {key.removesuffix(f'_{kind}_share'): value for key, value in row.get('shares', {}).items()
              if key.endswith(f'_{kind}_share')}
    values = [shares.pop(part) for part in ('backbone', 'neck') if part in shares] + [sum(shares.values())]
    return {(name, 'backbone, neck, heads'): ', '.join(f'{value:.3f}' for value in values)} if shares else {}


def by_time(row: dict) -> dict:
    """A row of the blood cells' table, which has a column for each T."""
    name = f'{METHODS.get(row["pipeline"])} (`{row["pipeline"]}`)'
    return {} if row['time_steps'] is None else {
        (f'{row["detector"]}, {name}', f'T = {row["time_steps"]}'): f'{row["bbox_mAP"]:.3f}'}


def by_detector(row: dict) -> dict:
    """A row of the detectors' table of docs/signed.md."""
    name = f'{row["detector"]}, digits' + ', `signed` and weights' * (row['pipeline'] == WEIGHTS)
    return {(name, f'T = {row["time_steps"]}' if row['time_steps'] else 'ANN'): f'{row["bbox_mAP"]:.3f}'}


def reported(folder: Path) -> dict:
    """The table of docs/report.md."""
    cells = {}
    for row in json.loads(Path(f'work_dirs/report/{LIGHT}/report.json').read_text())['rows']:
        name, last = f'`{row["pipeline"]}`', row.get('layers', [{}])[-1]
        if row['time_steps'] == 8:
            cells |= {(name, 'mAP'): row['coco/bbox_mAP'], (name, 'agreement, mAP'): row['agreement/bbox_mAP'],
                      (name, 'before'): last['before']['median'], (name, 'after'): last['after']['median'],
                      (name, 'energy'): row['spike/energy_ratio']}
    return {cell: f'{value:.4f}' for cell, value in cells.items()}


TABLES = [
    Table('docs/report.md', 'pipeline | mAP', (
        f'python tools/report.py {DIGITS.format("retinanet", "_snn-light")} --pipelines none light signed --time-steps '
        '2 4 8 --num-images 4 --test-images 6',), reported, minutes=2),
    Table('README.md', 'Detector | Method', (
        f'{DEMO} --time-steps 8 --pipelines none light advanced signed', f'{DEMO} --time-steps 16 --pipelines signed'),
        markdown('work_dirs/demo/table.md', only=(
            lambda row: row.endswith((' 8', '(`signed`), 16', '–')) and 'weights' not in row)), minutes=30),
    Table('docs/results.md', 'Detector | Method', (DEMO,), markdown('work_dirs/demo/table.md'), (), 240, 'Digits'),
    Table('docs/results.md', 'Detector | Method', tuple(f'{DEMO} --data bccd --pipelines {rest}' for rest in (
        'none light advanced', 'signed --time-steps 8 16')), stored('work_dirs/demo_bccd/table.json', by_time),
          ('data/bccd',), 300, 'Blood cells'),
    Table('docs/detectors.md', 'detector |  | T', (
        f'{WHOLE_DIGITS} --pipelines {WHOLE} --time-steps 2 3 4', f'{WHOLE_DIGITS} --detectors FCOS YOLOX --pipelines '
        f'{WHOLE} --time-steps 4', f'{WHOLE_DIGITS} --detectors RetinaNet --pipelines {WHOLE}:narrowing=1 '
        '--time-steps 3', f'{WHOLE_DIGITS} --pipelines whole-signed --time-steps 4 8 16',
        f'{WHOLE_DIGITS} --pipelines whole-advanced --time-steps 8 16'),
          stored('work_dirs/whole/table.json', whole), minutes=300, under='What it costs'),
    Table('docs/signed.md', 'detector | ANN', (
        f'{DEMO} --work-dir work_dirs/demo_signed --time-steps 8 16 --pipelines signed {WEIGHTS}',),
        stored('work_dirs/demo_signed/table.json', by_detector), minutes=30),
    Table('docs/reproduce.md', 'checkpoint | epochs', tuple(
        f'python tools/test.py {DIGITS.format(detector, "")}' for detector in ('retinanet', 'faster-rcnn')),
        printed(*((f'`{detector}_r50-thin_fpn_digits.pth`', {'test mAP': ('coco/bbox_mAP', 1)})
                  for detector in ('retinanet', 'faster-rcnn')))),
    Table('docs/signed.md', 'T | top-1', (
        sweep(RESNET.format('signed', ''), 'signed', '--time-steps 2 4 8 16 --pipelines signed --seeds 5 --ceiling'),),
        transposed(('top-1, %', swept('signed', 'accuracy')), ('ceiling', swept('signed', 'ceiling')),
                   (f'{MOPS}, millions', swept('signed', MOPS)), ('spikes per neuron', swept('signed', 'spikes'))),
        CIFAR, 400),
    *(Table('docs/signed.md', head, (sweep(
        RESNET.format('signed', '-fifth'), 'all', '--time-steps 2 4 8 --pipelines none light '
        'potential:potential=position advanced:potential=position,iterations=200,learning_rate=0.01 '
        'signed:max_spikes=2,max_rate=1 signed'),), swept('all', head), CIFAR, 60)
      for head in ('accuracy/top1 (ANN', MOPS)),
    Table('docs/classification.md', 'earlier methods', (sweep(
        FIFTH, 'earlier', '--time-steps 16 --pipelines maxact percentile spike-norm rmp'),), swept('earlier'), CIFAR),
    Table('docs/classification.md', 'top-1, %, T = 8', (sweep(
        FIFTH, 'table6', '--time-steps 8 --pipelines light --num-images 32 64 128 256 --seeds 2'),), swept('table6'),
        CIFAR, 20),
]
