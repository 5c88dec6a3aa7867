"""Commands of the tables of docs/paper_networks.md; see tools/_tables.py."""
from _tables_classifier_rows import layer_by_layer

from mmsnn.experiments import readers as read
from mmsnn.experiments.readers import sweep
from mmsnn.experiments.recompute import Table

PAGE, DATA, VGG, RESNET = 'docs/paper_networks.md', 'data/cifar10', 'vgg16bn_cifar10.pth', 'resnet20-4x_cifar10.pth'
CONFIGS = {'vgg16bn': f'configs/vgg/vgg16bn_snn-none_cifar10{{}}.py {VGG}',
           'vgg16': 'configs/vgg/vgg16_snn-none_cifar10{}.py vgg16_cifar10.pth',
           'resnet20-4x': f'configs/resnet_cifar/resnet20-4x_snn-none_cifar10{{}}.py checkpoints/{RESNET}'}
ADVANCED = 'advanced:iterations=200,learning_rate=0.01'
PAPER = 'advanced:iterations=5000,learning_rate=0.00001'
EARLIER = {'`percentile` (Robust-Norm)': 'percentile', '`maxact`': 'maxact', '`spike-norm`': 'spike-norm',
           '`rmp`, and `tsc`, whose rates are the same': 'rmp'}
FLOOR, LAYER = 'none:rounding=floor', 'none:rounding=floor,channel_wise=False'
IMAGES = 'work_dirs/augmented_cifar10.pth'  # the page has the program that makes them
AUGMENTED = f' custom_hooks.0.images={IMAGES}'
LAYERS = f'{LAYER} {LAYER.replace("none", "light")}'
RULES = '--thresholds max-layer percentile-layer mmse-layer mmse'


def of_both(rows: dict[str, str]) -> dict[str, str]:
    """Rows of ``none``, and the same of ``light``."""
    return rows | {page.replace('none', 'light'): own.replace('none', 'light') for page, own in rows.items()}


def on_augmented(model: str) -> list[tuple]:
    """Sweeps that are calibrated on augmented images."""
    return [(model, 'tenth', 'augmented', '4 8 --pipelines none light', AUGMENTED,
             of_both({'`none`, augmented images': 'none'})),
            (model, 'tenth', 'augmented-floor', f'4 8 --pipelines {LAYERS}', AUGMENTED,
             of_both({'`none`, all of these': LAYER}))]


SCORED = of_both({'`none`': 'none', '`none`, scored with the floor': FLOOR,
                  '`none`, the same for a whole layer': LAYER})
# How a table's first line begins -> its sweeps: the model, which test images, what the folder is called behind the
# model's name, the axes, further settings, and what the page calls the rows, where it has names of its own.
SWEEPS: dict[str, list[tuple]] = {
    'VGG-16 with BN, every fifth': [
        ('vgg16bn', 'fifth', 'light', '4 8 16 --pipelines light --seeds 5', '', {'`light`': 'light'}),
        ('vgg16bn', 'fifth', 'advanced', f'16 --pipelines {ADVANCED} --seeds 5', '', {'`advanced`': ADVANCED}),
        ('vgg16bn', 'fifth', 'paper', f'16 --pipelines {PAPER} --num-images 1024', '',
         {"`advanced`, the paper's 5,000 iterations and 1,024 images": PAPER}),
        ('vgg16bn', 'fifth', 'earlier', '8 16 32 --pipelines maxact percentile spike-norm rmp', '', EARLIER)],
    'VGG-16 with BN, every fiftieth': [
        ('vgg16bn', 'fiftieth', '512', '512 --pipelines none maxact', '', {'`none`': 'none', '`maxact`': 'maxact'})],
    'VGG-16 without BN': [
        ('vgg16', 'tenth', 'earlier', '16 32 --pipelines light percentile rmp', '', {'`light`': 'light'} | {
            page: own for page, own in EARLIER.items() if own in ('percentile', 'rmp')})],
    'ResNet-20 (4x), every fifth': [
        ('resnet20-4x', 'fifth', 'light', '4 8 --pipelines light --seeds 5', '', {'`light`': 'light'})],
    'ResNet-20 (4x), every tenth image, earlier': [
        ('resnet20-4x', 'tenth', 'earlier', '16 32 --pipelines percentile rmp maxact', '', {
            page: own for page, own in EARLIER.items() if own != 'spike-norm'})],
    'VGG-16 with BN, every tenth': [
        ('vgg16bn', 'tenth', 'floor', f'4 8 --pipelines {" ".join(SCORED.values())}', '', SCORED),
        *on_augmented('vgg16bn')],
    'ResNet-20 (4x), every tenth image, ANN': [
        ('resnet20-4x', 'tenth', 'plain', f'4 8 --pipelines none light {LAYERS} none:shift=None', '', of_both({
            '`none`': 'none', '`none`, scored with the floor for a whole layer': LAYER}) | {
                '`none`, ClipFloor': 'none:shift=None'}),
        *on_augmented('resnet20-4x')],
    'the choice': [
        ('vgg16bn', 'tenth', 'shift', '4 8 --pipelines none --thresholds mmse mmse-layer --shift none bias '
         '--num-images 128', '', {'`none`': 'none, mmse, shift bias', '`none`, ClipFloor': 'none, mmse, shift none'})],
    '(a) top-1': [('vgg16bn', 'tenth', 'table1a', '16 --pipelines none --thresholds max-layer mmse-layer --shift none '
                   'bias', '', None)],
    '(b, d) top-1': [('vgg16bn', 'tenth', 'table1bd', f'16 --pipelines none light {RULES}', '', None)],
    'top-1, %, T = 8': [('vgg16bn', 'tenth', 'table6', '8 --pipelines light --num-images 32 64 128 256 --seeds 3', '',
                         None)]}


def swept(head: str, sweeps: list[tuple]) -> Table:
    """A table that sweeps fill."""
    return Table(PAGE, head, tuple(
        sweep(CONFIGS[model].format(f'-{images}'), f'{model}-{name}', f'--time-steps {axes} --cfg-options '
              f'model.dtype=bfloat16 model.compile=True{settings}')
        for model, images, name, axes, settings, _ in sweeps),
        read.together(*(read.swept(f'{model}-{name}', 'accuracy', rows) for model, _, name, _, _, rows in sweeps)),
        (DATA, CONFIGS[sweeps[0][0]].split()[-1], *([IMAGES] if any(AUGMENTED in each for each in sweeps) else [])),
        30 * len(sweeps))


PAPER_NETWORKS = [
    Table(PAGE, '(ANN on these', (
        f'python tools/report.py {CONFIGS["vgg16bn"].format("")} --pipelines none light --time-steps 4 16 --num-images '
        '128 --test-images 200',),
        read.stored('work_dirs/report/vgg16bn_snn-none_cifar10/report.json', layer_by_layer), (DATA, VGG), 5),
    Table(PAGE, 'network | top-1', (
        f'python tools/test.py configs/resnet_cifar/resnet20-4x_cifar10.py checkpoints/{RESNET}',),
        read.printed(('ResNet-20 (4x), `configs/resnet_cifar/resnet20-4x_cifar10.py`',
                      {'top-1, 10,000 test images': ('accuracy/top1', 1)})), (DATA,), 15),
    *(swept(head, sweeps) for head, sweeps in SWEEPS.items())]
