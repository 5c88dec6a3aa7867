"""Commands of the tables about detectors; see tools/_tables.py."""
from _tables_detector_rows import by_detector, by_time, narrowing, reported, whole, without_shares

from mmsnn.experiments import readers as read
from mmsnn.experiments.demo import WEIGHTS, WHOLE
from mmsnn.experiments.readers import sweep
from mmsnn.experiments.recompute import Table

DIGITS = 'configs/digits/{0}_r50-thin_fpn{1}_digits.py checkpoints/{0}_r50-thin_fpn_digits.pth'
BCCD = DIGITS.replace('digits', 'bccd')
OTHERS = {name: f'configs/digits/{name}{{}}_digits.py checkpoints/{name}_digits.pth'
          for name in ('fcos_r50-thin_fpn_gn-head', 'yolox_thin')}
NETS, NEEDS_BCCD, WORK = ('retinanet', 'faster-rcnn'), ('data/bccd',), '--work-dir work_dirs'
DEMO, TEST, LIGHT = 'python tools/demo.py', 'python tools/test.py', 'retinanet_r50-thin_fpn_snn-light_digits'
VAL = ('--cfg-options test_evaluator.ann_file=data/{0}/val.json test_dataloader.dataset.ann_file=val.json'
       ' test_dataloader.dataset.data_prefix.img=val/')
VAL_BCCD = VAL.format('bccd').rpartition(' ')[0]  # one folder holds all images
A = 'signed:bias=True'
ON_VALIDATION = {  # of docs/signed.md
    'signed': '`signed`', A: 'and bias (A)', WEIGHTS: '`signed` and weights',
    f'{A},weights=True,iterations=200,learning_rate=0.003': 'A and weights', f'{A},rounds=2': 'A, two rounds',
    f'{A},max_spikes=8,max_rate=4': 'A with a rate of 4', f'{A},max_spikes=None': 'A without a bound'}
SYNTHETIC = {'training images': 'table7-digits-real', 'synthesised from the BN statistics': 'table7-digits-synthetic',
             'Gaussian noise': 'table7-digits-noise'}
NARROWING = (('RetinaNet', DIGITS.format('retinanet', '_snn-whole-differential'), '2 3'),
             ('Faster R-CNN', DIGITS.format('faster-rcnn', '_snn-whole-differential'), '3'),
             ('YOLOX', OTHERS['yolox_thin'].format('_snn-whole-differential'), '4'),
             ('FCOS', OTHERS['fcos_r50-thin_fpn_gn-head'].format('_snn-whole-differential'), '4'))


def trained(names: dict[str, str], val: str):
    """Commands and reader for the scores of checkpoints, on test and on validation images."""
    commands = tuple(f'{TEST} {model}{options}' for model in names.values() for options in ('', f' {val}'))
    return commands, read.printed(*((f'`{name}.pth`', {f'{split} mAP': ('coco/bbox_mAP', 1)})
                               for name in names for split in ('test', 'val')))


TRAINED = trained({**{f'{net}_r50-thin_fpn_digits': DIGITS.format(net, '') for net in NETS},
                   **{f'{name}_digits': model.format('') for name, model in OTHERS.items()}}, VAL.format('digits'))
TRAINED_BCCD = trained({f'{net}_r50-thin_fpn_bccd': BCCD.format(net, '') for net in NETS}, VAL_BCCD)
SWEPT = tuple(model.format('retinanet', '_snn-signed') for model in (DIGITS, BCCD))
EIGHT, CEILING = '--time-steps 8 --pipelines light signed', '--time-steps 8 --ceiling --pipelines'
NOISE = ('python -c "import torch; torch.manual_seed(0); torch.save([torch.randn{}], \'work_dirs/noise_{}.pth\')"')
WHOLE_DIGITS, WHOLE_BCCD = f'{DEMO} {WORK}/whole', f'{DEMO} --data bccd {WORK}/whole_bccd'
DETECTORS = [
    Table('docs/report.md', 'pipeline | mAP', (
        f'python tools/report.py {DIGITS.format("retinanet", "_snn-light")} --pipelines none light signed --time-steps '
        '2 4 8 --num-images 4 --test-images 6',), read.stored(f'work_dirs/report/{LIGHT}/report.json', reported),
        minutes=2),
    Table('README.md', 'Detector | Method', (
        f'{DEMO} --time-steps 8 --pipelines none light advanced signed', f'{DEMO} --time-steps 16 --pipelines signed'),
        read.markdown('work_dirs/demo/table.md', only=(
            lambda row: row.endswith((' 8', '(`signed`), 16', '–')) and 'weights' not in row)), minutes=30),
    Table('docs/results.md', 'Detector | Method', (DEMO,), read.markdown('work_dirs/demo/table.md'), (), 240, 'Digits'),
    Table('docs/results.md', 'Detector | Method | T | mAP', (
        f'{DEMO} --data bccd --pipelines none light advanced signed --time-steps 8 16',),
        read.markdown('work_dirs/demo_bccd/table.md', only=lambda row: row.endswith((' 8', ' 16', '–'))),
        NEEDS_BCCD, 60, 'Blood cells'),
    Table('docs/results.md', 'Detector | Method | T = 32', (
        f'{DEMO} --data bccd --pipelines none light advanced --time-steps 32 64',),
        read.stored('work_dirs/demo_bccd/table.json', by_time), NEEDS_BCCD, 240, 'Blood cells'),
    Table('docs/detectors.md', 'detector |  | T', (
        f'{WHOLE_DIGITS} --pipelines {WHOLE} --time-steps 2 3 4',
        f'{WHOLE_DIGITS} --detectors FCOS YOLOX --pipelines {WHOLE} --time-steps 4',
        f'{WHOLE_DIGITS} --detectors RetinaNet --pipelines {WHOLE}:narrowing=1 --time-steps 3',
        f'{WHOLE_DIGITS} --pipelines whole-signed --time-steps 4 8 16',
        f'{WHOLE_DIGITS} --pipelines whole-advanced --time-steps 8 16'),
          read.stored('work_dirs/whole/table.json', whole), minutes=300),
    Table('docs/detectors.md', 'blood cells |  | T', (f'{WHOLE_BCCD} --pipelines {WHOLE} --time-steps 3 4',),
          read.stored('work_dirs/whole_bccd/table.json', without_shares), NEEDS_BCCD, 20),
    Table('docs/near_lossless.md', 'mAP (energy)', tuple(
        f'python tools/report.py {model} --pipelines differential:narrowing=1 differential:narrowing=3 --time-steps '
        f'{steps} --out work_dirs/report/narrowing-{number} {VAL.format("digits")}'
        for number, (_, model, steps) in enumerate(NARROWING)), read.together(*(
            read.stored(f'work_dirs/report/narrowing-{number}/report.json', narrowing(name))
            for number, (name, _, _) in enumerate(NARROWING))), minutes=60),
    Table('docs/signed.md', 'detector | ANN', (
        f'{DEMO} {WORK}/demo_signed --time-steps 8 16 --pipelines signed {WEIGHTS}',),
        read.stored('work_dirs/demo_signed/table.json', by_detector('digits')), minutes=30, rows='digits'),
    Table('docs/signed.md', 'detector | ANN', (f'{DEMO} --data bccd {WORK}/demo_bccd_signed --time-steps 8 16 '
                                               '--pipelines signed',),
          read.stored('work_dirs/demo_bccd_signed/table.json', by_detector('blood cells')), NEEDS_BCCD, 60,
          rows='blood cells'),
    Table('docs/signed.md', ' | digits | ceiling', (sweep(
        SWEPT[0], 'validation', f'{CEILING} {" ".join(ON_VALIDATION)} {VAL.format("digits")}'),),
        read.with_ceiling('validation', ON_VALIDATION, 'coco/bbox_mAP', 3, 'digits'), minutes=120, rows='digits'),
    Table('docs/signed.md', ' | digits | ceiling', (sweep(
        SWEPT[1], 'validation-bccd', f'{CEILING} {" ".join(list(ON_VALIDATION)[:4])} {VAL_BCCD}'),),
        read.with_ceiling('validation-bccd', ON_VALIDATION, 'coco/bbox_mAP', 3, 'blood cells'), NEEDS_BCCD, 200,
        rows='blood cells'),
    Table('docs/signed.md', '16 calibration images', (
        f'python tools/synthesise.py {SWEPT[0]} -o work_dirs/synthetic_digits.pth --size 192 192 --num-images 16 '
        '--batch-size 16 --iterations 300', NOISE.format((16, 3, 192, 192), 'digits'),
        sweep(SWEPT[0], 'table7-digits-real', EIGHT),
        *(sweep(SWEPT[0], f'table7-digits-{images}', f'{EIGHT} --cfg-options '
                f'custom_hooks.0.images=work_dirs/{images}_digits.pth') for images in ('synthetic', 'noise'))),
        read.across(SYNTHETIC), minutes=30),
    Table('docs/reproduce.md', 'checkpoint | epochs', *TRAINED, minutes=10, rows='digits'),
    Table('docs/reproduce.md', 'checkpoint | epochs', *TRAINED_BCCD, NEEDS_BCCD, 10, rows='blood cells'),
]
