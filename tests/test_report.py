"""tools/report.py on a trained detector and a classifier: its numbers anew, its page without a network."""
import html.parser
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')
pytest.importorskip('jinja2')
pytest.importorskip('matplotlib')

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

import mmsnn
from mmsnn.experiments.drawing import COLORS, DARK, draw_detections, verdicts
from mmsnn.experiments.figures import stages
from mmsnn.experiments.inspection import class_names
from mmsnn.experiments.intervals import scores_without, standard_error
from mmsnn.experiments.methods import readable
from mmsnn.experiments.page import by_method, cheapest
from mmsnn.experiments.report import choose_images, derive
from mmsnn.openmmlab.hooks import plain_config
from mmsnn.openmmlab.wrapper import spiking_parts

sys.path.insert(0, str(Path(__file__).parent))

from test_tools import CHECKPOINT, ROOT, config_file, digits, run_tool  # noqa: F401

from networks import simulate

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


@contextmanager
def one_core():
    """Let a tool use as many threads as the tests do, on any machine: sums in another order would move spikes."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@pytest.fixture(scope='module')
def detector(tmp_path_factory, digits):  # noqa: F811
    folder = tmp_path_factory.mktemp('detector')
    arguments = [config_file(folder, digits, 'light', hook=dict(num_images=2)), CHECKPOINT, '--time-steps', 2, 4,
                 '--pipelines', 'none', 'light', 'signed', '--test-images', 3, '--out', folder / 'report']
    with one_core():
        return arguments, run_tool('report', *arguments), folder / 'report'


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """Random weights and images of noise: a report is not about how good a network is."""
    import cv2
    import numpy as np
    folder = tmp_path_factory.mktemp('classifier')
    draw = np.random.default_rng(0)
    for split in ('train', 'test'):
        for label in ('cat', 'dog', 'frog'):
            (folder / split / label).mkdir(parents=True)
            for number in range(4):
                image = draw.integers(0, 255, (16, 16, 3), np.uint8)
                cv2.imwrite(str(folder / split / label / f'{number}.png'), image)
    config = folder / 'tiny.py'
    loader = (f"dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict("
              f"type='CustomDataset', data_root='{folder}', data_prefix='%s', pipeline=[dict(type='LoadImageFromFile'),"
              " dict(type='PackInputs')]))")
    config.write_text(
        "_base_ = 'mmpretrain::_base_/default_runtime.py'\n"
        "custom_imports = dict(imports=['mmsnn'])\n"
        "data_preprocessor = dict(num_classes=3, mean=[127.] * 3, std=[60.] * 3)\n"
        "model = dict(type='mmsnn.SpikingClassifier', time_steps=4, classifier=dict(type='ImageClassifier', "
        "backbone=dict(type='mmsnn.CifarResNet', depth=8, base_channels=4), neck=dict(type='GlobalAveragePooling'), "
        "head=dict(type='LinearClsHead', num_classes=3, in_channels=16)))\n"
        "custom_hooks = [dict(type='mmsnn.CalibrationHook', pipeline='light', num_images=4, batch_size=2)]\n"
        f"train_dataloader = {loader % 'train'}\ntest_dataloader = {loader % 'test'}\ntest_cfg = dict()\n"
        "train_cfg = dict(by_epoch=True, max_epochs=1)\noptim_wrapper = dict(optimizer=dict(type='SGD', lr=.1))\n"
        f"test_evaluator = dict(type='Accuracy', topk=(1,))\nwork_dir = '{folder}/work'\n")
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        cfg = Config.fromfile(config)
        net = MODELS.build(dict(cfg.model.classifier, data_preprocessor=cfg.data_preprocessor))
    torch.save(dict(state_dict=net.state_dict()), folder / 'ann.pth')
    out = folder / 'report'
    run_tool('report', config, folder / 'ann.pth', '--time-steps', 2, 4, '--pipelines', 'none', ADVANCED,
             '--seeds', 2, '--ceiling', '--out', out)
    return out


ADVANCED = 'advanced:iterations=5,learning_rate=0.01'


def test_classes_without_names_have_numbers():
    assert class_names(SimpleNamespace(metainfo=dict(classes=('cat', 'dog'))), 2) == ['cat', 'dog']
    assert class_names(SimpleNamespace(metainfo={}), 3) == class_names([], 3) == ['0', '1', '2']


def row_of(report, pipeline, time_steps, seed=0):
    (row,) = [row for row in report['rows'] if (row['pipeline'], row['time_steps']) == (pipeline, time_steps)
              and row['seed'] in (seed, None)]
    return row


def measured(out, checkpoint, pipeline, time_steps, **options):
    """The config of a report, tested as ``tools/test.py`` does, in this process."""
    cfg = Config.fromfile(out / 'config.py')
    cfg.custom_hooks[0].update(pipeline=pipeline, progress=False, **options)
    (cfg.model if 'time_steps' in cfg.model else cfg.model.backbone).time_steps = time_steps
    cfg.load_from = str(checkpoint)
    runner = Runner.from_cfg(cfg)
    return runner, runner.test()


def test_numbers_of_a_detector(detector):
    _, _, out = detector
    report = json.loads((out / 'report.json').read_text())
    row = row_of(report, 'light', 4)
    runner, metrics = measured(out, CHECKPOINT, 'light', 4)
    assert report['metric'] == 'coco/bbox_mAP' and metrics['coco/bbox_mAP'] > .2
    for key in metrics:  # scores, agreement, rates, operations, energies
        assert row[key] == pytest.approx(metrics[key], rel=1e-9), key
    (part,) = spiking_parts(runner.model).values()
    state = part.snn.state_dict()
    for kind, name in dict(thresholds='threshold', bias='bias', potential='initial_potential').items():
        assert row['memory'][kind] == sum(v.nbytes for k, v in state.items() if k.endswith(f'.{name}')
                                          and '.neurons.' in k)
    assert row['memory']['weights'] == 0
    spike = runner.test_loop.evaluator.metrics[1]
    hook = next(hook for hook in runner.hooks if hasattr(hook, 'reports'))
    for layer, calibrated in zip(row['layers'], hook.reports['backbone'], strict=True):
        assert layer['name'] == calibrated.name and layer['threshold'] == pytest.approx(calibrated.threshold)
        assert layer['firing_rate'] == spike.layers[layer['name']]['firing_rate']
    # The errors of the second layer by hand: the first one's spikes, and what the second makes of them.
    errors = channel_errors_of(runner, part, hook, row['layers'][1]['name'])
    found = row['layers'][1]['after']
    assert found['count'] == len(errors)
    assert found['median'] == pytest.approx(float(errors.quantile(.5)), rel=1e-4)
    assert found['mean'] == pytest.approx(float(errors.mean()), rel=1e-4)

    # Before calibration light is none; thresholds alone leave nothing to calibrate.
    none = row_of(report, 'none', 4)
    assert [layer['before'] for layer in row['layers']] == [layer['after'] for layer in none['layers']]
    after, before = ([layer[state]['median'] for layer in row['layers']] for state in ('after', 'before'))
    assert sum(after) < sum(before)


def channel_errors_of(runner, part, hook, name):
    """Relative errors of a layer's channels, from the spikes of each step."""
    squares, ann, found = 0, part.converted(), {}
    handle = ann.neurons[name].register_forward_hook(lambda _m, _i, out: found.update(activation=out.clone()))
    for image in hook.batches(runner.model, runner.cfg):
        ann.network(image)
        rate = simulate(part.snn, image)[1][name]['spikes'].mean(0)
        squares = squares + torch.stack([value.double().square().sum((0, 2, 3)) for value in (
            found['activation'] - rate, found['activation'])])
    handle.remove()
    return (squares[0] / squares[1])[squares[1] > 0]


def test_predictions_of_a_detector(detector):
    _, _, out = detector
    report = json.loads((out / 'report.json').read_text())
    cfg = plain_config(Config.fromfile(out / 'config.py'))
    cfg.load_from = str(CHECKPOINT)
    runner = Runner.from_cfg(cfg)
    metrics = runner.test()
    ann = report['rows'][0]
    assert ann['coco/bbox_mAP'] == metrics['coco/bbox_mAP'] > .5
    for shown, batch in zip(ann['predictions'], runner.test_dataloader, strict=True):  # 3 of 3 images
        found = runner.model.test_step(batch)[0].pred_instances
        found = found[found.scores >= .3]
        assert shown['labels'] == found.labels.tolist() and len(shown['labels']) > 0
        torch.testing.assert_close(torch.tensor(shown['bboxes']), found.bboxes)


def test_only_the_annotations_of_tested_images_count(detector, digits):  # noqa: F811
    _, _, out = detector
    coco = json.loads((out / 'annotations.json').read_text())
    assert [image['id'] for image in coco['images']] == [0, 1, 2]  # 3 of 4, evenly spaced
    every = json.loads((digits / 'test.json').read_text())['annotations']
    assert coco['annotations'] == [entry for entry in every if entry['image_id'] < 3]
    assert Config.fromfile(out / 'config.py').test_dataloader.dataset.indices == [0, 1, 2]


def leaves(value, path=''):
    """What lists and dicts within each other hold, by path."""
    if not isinstance(value, (dict, list)):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {name: leaf for key, part in items for name, leaf in leaves(part, f'{path}/{key}').items()}


def test_finished_runs_are_not_repeated(detector):
    arguments, first, out = detector
    assert '7 of 7 runs' in first
    stored = json.loads((out / 'rows.json').read_text())
    lost = stored['rows'].pop()
    (out / 'rows.json').write_text(json.dumps(stored))
    with one_core():
        assert '1 of 7 runs' in run_tool('report', *arguments)
    again = row_of(json.loads((out / 'rows.json').read_text()), lost['pipeline'], lost['time_steps'])
    for key in ('layers', 'predictions'):
        found, expected = leaves(again[key]), leaves(lost[key])
        assert found.keys() == expected.keys()
        for path, value in found.items():
            same = expected[path] if isinstance(value, str) else pytest.approx(expected[path], rel=1e-3)
            assert value == same, path
    other = run_tool('report', *arguments, '--num-images', 3, check=False)
    assert 'holds runs of another config, checkpoint or options' in other
    other = run_tool('report', *arguments[:2], '--out', out.parent / 'other', '--test-images', 9, check=False)
    assert '--test-images must be from 1 to 4' in other


def test_numbers_of_a_classifier(classifier):
    report = json.loads((classifier / 'report.json').read_text())
    assert len(report['rows']) == 1 + 2 * 2 * 2
    row = row_of(report, ADVANCED, 4)
    runner, metrics = measured(classifier, classifier.parent / 'ann.pth', 'advanced', 4, iterations=5,
                               learning_rate=.01)
    assert row['choices'] == dict(iterations=5, learning_rate=.01)
    page = (classifier / 'index.html').read_text()
    assert '<td>advanced, 5 iterations</td>' in page and 'iterations=5,learning_rate=0.01' in page
    assert 'custom_hooks.0.iterations=5' in page, 'the command of each score'
    for key in metrics:
        assert row[key] == pytest.approx(metrics[key], rel=1e-9), key
    assert 'accuracy/top1 (ceiling)' in row and 'layers' not in row_of(report, ADVANCED, 4, seed=1)
    changed = {name for name, value in runner.model.snn.network.named_parameters()
               if not torch.equal(value, dict(runner.model.converted().network.named_parameters())[name])}
    own = dict(runner.model.snn.network.named_parameters())
    assert row['memory']['weights'] == sum(own[name].nbytes for name in changed) > 0
    # The images shown: here with 8 of 12.
    dataset = runner.test_dataloader.dataset
    for shown in row['predictions']:
        (batch,) = [dict(inputs=[data['inputs']], data_samples=[data['data_samples']])
                    for data in [dataset[shown['index']]]]
        (sample,) = runner.model.test_step(batch)
        assert shown['labels'][0] == int(sample.pred_label) and shown['truth'] == sample.gt_label.tolist()
        assert shown['scores'] == pytest.approx(sample.pred_score.sort(descending=True).values.tolist(), rel=1e-5)
    assert [shown['index'] for shown in row['predictions']] == [0, 1, 3, 4, 6, 7, 9, 10]


def test_indices_of_the_config_are_kept(classifier):
    cfg = Config.fromfile(classifier.parent / 'tiny.py')
    cfg.test_dataloader.dataset.indices = [1, 5, 7, 11]
    assert derive(cfg, 3, 2, classifier.parent).test_dataloader.dataset.indices == [1, 7]
    assert derive(cfg, 3, 2, classifier.parent).custom_hooks[0].num_images == 3
    assert cfg.test_dataloader.dataset.indices == [1, 5, 7, 11] and cfg.custom_hooks[0].num_images == 4


class Two(BaseDataset):
    def load_data_list(self):
        return [dict(img_path='0.png'), dict(img_path='1.png')]


def test_data_sets_around_others_cannot_be_limited(tmp_path):
    one = dict(type=Two, pipeline=[])
    cfg = Config(dict(default_scope='mmdet', test_dataloader=dict(dataset=one)))
    assert choose_images(cfg, 1) == {'0.png'} and cfg.test_dataloader.dataset.indices == [0]
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[one, one])
    with pytest.raises(ValueError, match='ConcatDataset, the test data set, takes no indices: omit --test-images'):
        choose_images(cfg, 1)


def test_evaluator_with_metrics_of_its_own_is_refused(tmp_path):
    evaluator = dict(type='MultiDatasetsEvaluator', metrics=[dict(type='Accuracy')], dataset_prefixes=['one'])
    with pytest.raises(ValueError, match='MultiDatasetsEvaluator, the test evaluator, takes no metrics beside its own'):
        derive(Config(dict(test_evaluator=evaluator)), None, None, tmp_path)


def test_costs_have_the_names_that_the_page_knows(tmp_path):
    score = dict(type='Accuracy', prefix='val')
    cfg = Config(dict(test_evaluator=[score, dict(type='mmsnn.SpikeMetric', prefix='cost')]))
    assert derive(cfg, None, None, tmp_path).test_evaluator == [
        score, dict(type='mmsnn.SpikeMetric'), dict(type='mmsnn.AgreementMetric')]


class References(html.parser.HTMLParser):
    """Collects whatever a page may load or link to."""

    def __init__(self, text):
        super().__init__()
        self.found, self.ids, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ('src', 'srcset', 'href', 'data', 'poster', 'action'):
                self.found.append(value)
            if name == 'id':
                self.ids.append(value)


@pytest.mark.parametrize('name', ['detector', 'classifier'])
def test_page_needs_nothing_else(name, request):
    value = request.getfixturevalue(name)
    out = value[-1] if name == 'detector' else value
    text = (out / 'index.html').read_text()
    page = References(text)
    outside = [reference for reference in page.found if not reference.startswith(('data:', '#'))]
    assert outside == [] and '://' not in re.sub(r'data:[^"]*', '', text) and '@import' not in text
    assert {reference[1:] for reference in page.found if reference.startswith('#')} <= set(page.ids)
    assert 'script' not in page.tags and page.tags.count('img') >= 8
    pictures = 3 * (2 + 2 * 3) if name == 'detector' else 8  # annotated, ANN, three pipelines at two T
    figures = 6  # scores, errors at two T, rates, energy, thresholds: each light and dark
    assert sum(reference.startswith('data:image/') for reference in page.found) == pictures + 2 * figures
    assert {path.name for path in (out / 'figures').iterdir()} >= {
        f'{stem}{theme}.png' for stem in ('scores', 'errors-2', 'errors-4', 'rates', 'energy', 'thresholds')
        for theme in ('', '-dark')}
    # What a reader sees is what report.json has.
    report = json.loads((out / 'report.json').read_text())
    (ann, *rows), metric, places = report['rows'], report['metric'], 2 if name == 'classifier' else 3
    assert f'<b>{ann[metric]:.{places}f} ± {2 * standard_error(ann["scores_without"]):.{places}f}</b>' in text
    assert '<h1>RetinaNet with ResNet-50 on ' in text if name == 'detector' else '<h1>CifarResNet-8 on ' in text
    assert f'{ann["tested"]} of {4 if name == "detector" else 12} test images' in text
    means = {key: (sum(row[metric] for row in group), sum(row['spike/event_energy_ratio'] for row in group))
             for key, group in by_method(rows).items()}
    best = max(score for score, _ in means.values())
    pipeline, steps = min((key for key, (score, _) in means.items() if score >= .99 * best),
                          key=lambda key: means[key][1])
    assert f'<span>{readable(p for p, _ in means)[pipeline]}, T = {steps}: the\ncheapest of these runs' in text
    assert not re.findall(r'<t[dh][^>]*></t[dh]>', text), 'empty cells'
    assert report['command'].startswith('mmsnn report ') and report['versions']['mmsnn'] == mmsnn.__version__


def test_scores_without_a_group(detector):
    """Of three images, each left out: what mmdet says of the other two, by an annotation file of these alone."""
    _, _, out = detector
    report = json.loads((out / 'report.json').read_text())
    cfg = plain_config(Config.fromfile(out / 'config.py'))
    cfg.load_from = str(CHECKPOINT)
    coco = json.loads((out / 'annotations.json').read_text())
    kept = [image for image in coco['images'] if image['id'] != 1]
    (out / 'two.json').write_text(json.dumps(dict(coco, images=kept, annotations=[
        entry for entry in coco['annotations'] if entry['image_id'] != 1])))
    cfg.test_dataloader.dataset.indices = [0, 2]
    cfg.test_evaluator[0].ann_file = str(out / 'two.json')
    scores = report['rows'][0]['scores_without']
    assert len(scores) == 3 and scores[1] == Runner.from_cfg(cfg).test()['coco/bbox_mAP']


def test_interval_of_a_mean():
    class Mean:
        def compute_metrics(self, results):
            return dict(mean=sum(results) / len(results))

    values = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = scores_without(Mean(), values.tolist(), 'mean')
    assert standard_error(scores) == pytest.approx(float(values.std()) / 12 ** .5)
    assert scores_without(Mean(), [1.], 'mean') == []


def test_detections_are_right_or_wrong():
    truth = dict(bboxes=[[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], labels=[0, 1, 1])
    found = dict(bboxes=[[0, 0, 10, 6], [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 4]], labels=[0, 0, 0, 1],
                 scores=[.5, .9, .8, .7])
    # Overlaps .6, but a better one has the box; all of it; another class; overlaps .4 alone.
    assert verdicts(found, truth) == ([False, True, False, False], [False, True, True])
    assert verdicts(dict(bboxes=[], labels=[], scores=[]), truth) == ([], [True] * 3)
    assert verdicts(found, dict(bboxes=[], labels=[])) == ([False] * 4, [])


def test_boxes_are_drawn_in_the_colours_of_the_verdicts():
    from PIL import ImageColor
    image = np.full((120, 500, 3), 90, np.uint8)
    truth = dict(bboxes=[[50, 60, 150, 110], [300, 60, 400, 110]], labels=[0, 0])
    found = dict(bboxes=[[50, 60, 150, 110], [180, 60, 260, 110]], labels=[0, 0], scores=[.9, .8])
    picture = draw_detections(image, found, truth, ['cell'])
    assert picture.shape == image.shape
    for kind, x in dict(right=100, wrong=220).items():
        assert tuple(picture[110, x]) == ImageColor.getrgb(COLORS[kind]), kind
    side = [tuple(pixel) for pixel in picture[70:100, 400]]  # dashed
    assert ImageColor.getrgb(COLORS['missed']) in side and (90, 90, 90) in side
    small = draw_detections(image[:, :50], None, truth, ['cell'])
    assert small.shape[1] > 400, 'small pictures are enlarged'


def test_labels_leave_each_other_room():
    from PIL import ImageColor
    box = [60, 60, 160, 110]
    found = dict(bboxes=[box, box, box], labels=[0, 1, 0], scores=[.9, .8, .7])
    picture = draw_detections(np.full((240, 500, 3), 90, np.uint8), found, None, ['cell', 'nucleus'])
    dark = (picture == ImageColor.getrgb(DARK)).all(2)
    rows = np.flatnonzero(dark[:, 70:80].any(1))  # where labels that begin at the left side of the box are
    assert rows.min() < 50 and rows.max() > 115, 'one above the box, another below it'


def test_stages_of_names():
    assert stages(['relu', 'layer1_0_relu', 'layer1_0_relu_1', 'layer2_0_relu']) == [
        ('stem', 1, 1), ('layer1', 2, 3), ('layer2', 4, 4)]
    assert stages(['backbone_relu', 'backbone_layer1_0_relu', 'relu', 'relu_1']) == [
        ('stem', 1, 1), ('layer1', 2, 2), ('head', 3, 4)]
    assert stages(['backbone_features_0_activate', 'backbone_stages_1_0_act', 'head_layers_0_act']) == [
        ('features', 1, 1), ('stages 1', 2, 2), ('head', 3, 3)]
    assert stages(['layer1_relu', 'neck_conv_identity', 'add_identity', 'neck_fpn_identity', 'head_relu', 'x']) == [
        ('layer1', 1, 1), ('neck', 2, 4), ('head', 5, 6)], 'a sum within a stage belongs to it'
    assert stages([f'layer{number}_relu' for number in range(20)]) == [], 'too many to name'


def test_the_cheapest_run_near_the_best():
    def row(score, energy):
        return [dict(score=score, **{'spike/event_energy_ratio': energy})]

    groups = {('none', 8): row(.5, 1.), ('light', 8): row(.793, 2.), ('signed', 8): row(.8, 3.),
              ('signed', 16): row(.79, 1.)}
    assert cheapest(groups, 'score') == ('light', 8)


@pytest.mark.skipif(BROWSER is None, reason='needs Chromium')
@pytest.mark.parametrize('name', ['detector', 'classifier'])
@pytest.mark.parametrize('width', [1200, 390])
def test_page_opens_in_a_browser(name, width, request, tmp_path):
    value = request.getfixturevalue(name)
    page = (value[-1] if name == 'detector' else value) / 'index.html'
    # A copy that reports what is broken or sticks out; the page itself has no script. It stands in a frame, as windows
    # of a phone's width are too small for the browser.
    (tmp_path / 'copy.html').write_text(
        page.read_text() + '<script>onload = () => { const wide = document.documentElement.scrollWidth - innerWidth; '
        'const broken = [...document.images].filter(i => !i.complete || !i.naturalWidth).length; '
        'parent.postMessage(`width ${innerWidth}, broken ${broken}, wider ${Math.max(0, wide)}`, "*"); }</script>')
    frame = tmp_path / 'frame.html'
    frame.write_text('<script>onmessage = event => { document.title = event.data; }</script>'
                     f'<iframe src="copy.html" style="border: 0; width: {width}px; height: 900px"></iframe>')
    for attempt in (page, frame):
        result = subprocess.run(
            [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr', '--v=0',
             f'--user-data-dir={tmp_path}/profile', '--window-size=1300,950', '--virtual-time-budget=3000',
             '--dump-dom', attempt.as_uri()], text=True, capture_output=True, timeout=100)
        assert result.returncode == 0 and '</html>' in result.stdout
        assert not [line for line in result.stderr.splitlines() if 'CONSOLE' in line]
    assert f'width {width}, broken 0, wider 0' in result.stdout
