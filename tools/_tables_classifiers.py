"""Commands of the tables about classifiers; see tools/_tables.py."""
from shlex import quote

from _tables_classifier_rows import DELAYED, INGREDIENTS, exported, of_a_classifier

from mmsnn.experiments import readers as read
from mmsnn.experiments.readers import sweep
from mmsnn.experiments.recompute import Table

CIFAR = 'data/cifar10', 'work_dirs/resnet20_cifar10.pth'
CIFAR_32 = 'data/cifar10', 'work_dirs/resnet32_cifar10.pth'
IMAGENET = 'data/imagenet300', 'work_dirs/mobilenet-v2_in1k.pth'
RESNET = 'configs/resnet_cifar/resnet20_snn-{}_cifar10{}.py work_dirs/resnet20_cifar10.pth'
RESNET_32 = 'configs/resnet_cifar/resnet32_snn-signed_cifar10.py work_dirs/resnet32_cifar10.pth'
MOBILENET = 'configs/mobilenet_v2/mobilenet-v2_snn-{}_in1k.py work_dirs/mobilenet-v2_in1k.pth'
ON_IMAGENET = ('--cfg-options ' + ' '.join(
    f'{split}_dataloader.dataset.{key}={value}' for split, list_of in (('test', 'heldout'), ('train', 'calibration'))
    for key, value in dict(split='', data_root='data/imagenet300', data_prefix='images',
                           ann_file=f'{list_of}.txt').items())
    + ' test_dataloader.batch_size=10 custom_hooks.0.num_images=50 custom_hooks.0.batch_size=10')
ADVANCED, FIFTH = RESNET.format('advanced', ''), RESNET.format('advanced', '-fifth')
SIGNED, SIGNED_FIFTH, DEV = (RESNET.format('signed', part) for part in ('', '-fifth', '-dev'))
PER_POSITION = 'potential:potential=position'
METHODS = {name: name for name in ('none', 'light', 'advanced')} | {'potential, per position': PER_POSITION}
SYNTHETIC = {'training images': 'table7-real', 'synthesised from the BN statistics': 'table7-synthetic',
             'Gaussian noise': 'table7-noise'}
REPORTED = {'none': '`none`', 'light': '`light`, the bias corrected once', 'signed': '`signed`'}
REPORTS, TOP_1 = 'work_dirs/report', 'accuracy/top1'
NOISE = 'python -c "import torch; torch.manual_seed(0); torch.save([torch.randn(128, 3, 32, 32)], {})"'
CLASSIFIERS = [
    Table('docs/report.md', 'pipeline | top-1', (
        f'python tools/report.py {SIGNED_FIFTH} --pipelines none light signed --time-steps 4 8 16 --test-images 500',),
        of_a_classifier(f'{REPORTS}/resnet20_snn-signed_cifar10-fifth/report.json', REPORTED), CIFAR, 5),
    Table('docs/classification.md', 'method (ANN', (
        sweep(ADVANCED, 'methods', '--time-steps 4 8 16 --pipelines light advanced --seeds 3'),
        sweep(ADVANCED, 'methods-potential', f'--time-steps 4 8 16 --pipelines {PER_POSITION} --seeds 5'),
        sweep(ADVANCED, 'methods-rounds', '--time-steps 4 8 --pipelines light:rounds=2 --seeds 5')), read.together(
            read.swept('methods', rows={'`light`, one correction (as published)': 'light', '`advanced`': 'advanced'}),
            read.swept('methods-potential', rows={'`potential`, per position': PER_POSITION}),
            read.swept('methods-rounds', rows={'`light`, two corrections': 'light:rounds=2'})), CIFAR, 900),
    *(Table('docs/classification.md', head, (sweep(
        FIFTH, 'times', f'--time-steps 4 8 16 32 64 --pipelines none light {PER_POSITION} advanced'),),
        read.swept('times', own, METHODS), CIFAR, 120)
      for head, own in (('top-1, % (ANN: 91.70) | T = 4', 'accuracy'), (read.SIZES, read.SIZES))),
    Table('docs/classification.md', 'earlier methods', (sweep(
        FIFTH, 'earlier', '--time-steps 16 --pipelines maxact percentile spike-norm rmp'),),
        read.swept('earlier'), CIFAR),
    Table('docs/classification.md', '(a) top-1', (sweep(
        FIFTH, 'table1a', '--time-steps 16 --pipelines none --thresholds max-layer mmse-layer --shift none bias'),),
        read.swept('table1a'), CIFAR, 5),
    Table('docs/classification.md', '(b, d, e) top-1', (sweep(
        FIFTH, 'table1bde', '--time-steps 16 --pipelines none light advanced --thresholds max-layer percentile-layer '
        'mmse-layer mmse'),), read.swept('table1bde'), CIFAR, 120),
    Table('docs/classification.md', 'top-1, %, T = 8', (sweep(
        FIFTH, 'table6', '--time-steps 8 --pipelines light --num-images 32 64 128 256 --seeds 2'),),
        read.swept('table6'), CIFAR, 20),
    Table('docs/classification.md', 'top-1, % (ANN: 83.50)', (sweep(
        MOBILENET.format('advanced'), 'mobilenet', f'--time-steps 16 --pipelines light {PER_POSITION} {ON_IMAGENET}'),),
        read.swept('mobilenet', rows={'light': 'light', 'potential, per position': PER_POSITION}), IMAGENET, 60),
    Table('docs/export.md', 'file | neurons', tuple(
        f'python tools/check_export.py {RESNET.format(name, "")} --format {how} --cfg-options model.time_steps=8'
        for name, how in (('light', 'nir --double'), ('light', 'nir'), ('light', 'onnx'), ('signed', 'onnx'))),
        exported('`light`, NIR, float64 on both sides', '`light`, NIR, float32', '`light`, ONNX, float32',
                 '`signed`, ONNX, float32'), CIFAR, 5),
    *(Table('docs/signed.md', f'{name}T | top-1', (sweep(
        model, folder, f'--time-steps {steps} --pipelines signed --seeds 5 --ceiling{options}'),),
        read.over_time(folder), needs, minutes) for name, model, folder, steps, options, needs, minutes in (
            ('', SIGNED, 'signed', '2 4 8 16', '', CIFAR, 400),
            ('ResNet-32, ', RESNET_32, 'signed-32', '8', '', CIFAR_32, 200),
            ('MobileNetV2, ', MOBILENET.format('signed'), 'signed-mobilenet', '16', f' {ON_IMAGENET}', IMAGENET, 400))),
    *(Table('docs/signed.md', head, (sweep(
        SIGNED_FIFTH, 'all', f'--time-steps 2 4 8 --pipelines none light {PER_POSITION} '
        'advanced:potential=position,iterations=200,learning_rate=0.01 signed:max_spikes=2,max_rate=1 signed'),),
        read.swept('all', head), CIFAR, 60) for head in ('accuracy/top1 (ANN', read.SIZES)),
    Table('docs/signed.md', ' | T = 2 | ceiling', (
        sweep(DEV, 'ingredients', f'--time-steps 2 4 --ceiling --pipelines {" ".join(map(quote, INGREDIENTS))}'),
        sweep(DEV, 'signed-delay1', '--time-steps 2 4 --ceiling --pipelines signed --cfg-options model.delay=1')),
        read.together(*(read.with_ceiling(folder, names, TOP_1, 2) for folder, names in (
            ('ingredients', INGREDIENTS), ('signed-delay1', DELAYED)))), CIFAR, 300),
    Table('docs/signed.md', '128 calibration images', (
        f'python tools/synthesise.py {SIGNED_FIFTH} -o work_dirs/synthetic_cifar10.pth --size 32 32 --num-images 128 '
        '--iterations 200', NOISE.format("'work_dirs/noise_cifar10.pth'"), *(
            sweep(SIGNED_FIFTH, folder, '--time-steps 4 --pipelines light signed --num-images 128' + (
                f' --cfg-options custom_hooks.0.images=work_dirs/{folder.partition("-")[2]}_cifar10.pth'
                if 'real' not in folder else '')) for folder in SYNTHETIC.values())),
        read.across(SYNTHETIC), CIFAR, 20),
]
