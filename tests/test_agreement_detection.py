"""Agreement of a spiking detector with its own ANN, on a trained detector and real digits."""
import json
import re
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')

from mmengine.config import Config
from mmengine.runner import Runner

import mmsnn
from mmsnn.openmmlab.wrapper import spiking_parts

sys.path.insert(0, str(Path(__file__).parent))

from test_tools import CHECKPOINT, config_file, digits, run_tool  # noqa: F401


@pytest.fixture(scope='module')
def runner(tmp_path_factory, digits):  # noqa: F811
    cfg = Config.fromfile(config_file(tmp_path_factory.mktemp('agreement'), digits, 'none', 4, dict(num_images=2)))
    cfg.test_evaluator = [dict(type='mmsnn.AgreementMetric')]
    cfg.load_from = str(CHECKPOINT)
    runner = Runner.from_cfg(cfg)
    runner.test()  # loads and calibrates
    return runner


@pytest.fixture(scope='module')
def batches(runner):
    return list(runner.test_dataloader)


@pytest.fixture
def spiking(runner):
    """The detector; whatever a test makes of its spiking part is undone."""
    (part,) = spiking_parts(runner.model).values()
    yield runner.model, part
    part.runs_as = 'snn'


def agreement(runner, batches, model, **options):
    metric = mmsnn.AgreementMetric(**options)
    metric.dataset_meta = runner.test_dataloader.dataset.metainfo
    metric.watch(model)
    return metric, lambda: evaluate(metric, batches, model)


def evaluate(metric, batches, model):
    for batch in batches:
        metric.process(batch, [sample.to_dict() for sample in model.test_step(batch)])
    return metric.evaluate(size=len(batches))


def test_the_ann_agrees_with_itself(runner, batches, spiking):
    model, part = spiking
    metric, run = agreement(runner, batches, model)
    part.runs_as = 'ann'
    result = run()
    # Every detection that counts as an object is also predicted, above those that do not; classes without any object,
    # and sizes without any (large, here), do not count.
    assert result['agreement/bbox_mAP'] == result['agreement/bbox_mAP_50'] == result['agreement/bbox_mAP_75'] == 1
    assert result['agreement/bbox_mAP_s'] == 1
    assert part.runs_as == 'ann'


def test_the_same_metric_judges_again_from_the_start(runner, batches, spiking):
    """As in a sweep, which tests one model many times: nothing of the first test may be left in the second."""
    model, part = spiking
    metric, run = agreement(runner, batches, model)
    assert 0 < (first := run())['agreement/bbox_mAP'] < 1
    part.runs_as = 'ann'
    assert evaluate(metric, batches[:2], model)['agreement/bbox_mAP'] == 1
    part.runs_as = 'snn'
    assert run() == first


def test_agreement_is_the_map_against_what_the_ann_detects(runner, batches, spiking, tmp_path):
    """Independently: the ANN's detections as an annotation file, and mmdet's own metric on it."""
    from mmdet.evaluation import CocoMetric
    model, part = spiking
    classes = runner.test_dataloader.dataset.metainfo['classes']
    truth = dict(images=[], annotations=[], categories=[dict(id=i, name=name) for i, name in enumerate(classes)])
    found = []
    for batch in batches:
        part.runs_as = 'ann'
        (sample,) = model.test_step(batch)
        height, width = sample.ori_shape
        truth['images'].append(dict(id=sample.img_id, width=width, height=height, file_name=''))
        for box, label, score in zip(*(sample.pred_instances[key].tolist() for key in ('bboxes', 'labels', 'scores'))):
            if score >= .5:
                x, y, right, bottom = box
                truth['annotations'].append(dict(
                    id=len(truth['annotations']) + 1, image_id=sample.img_id, category_id=label, iscrowd=0,
                    bbox=[x, y, right - x, bottom - y], area=(right - x) * (bottom - y)))
        part.runs_as = 'snn'
        found.append(model.test_step(batch)[0].to_dict())
    (tmp_path / 'truth.json').write_text(json.dumps(truth))
    coco = CocoMetric(ann_file=str(tmp_path / 'truth.json'), metric='bbox')
    coco.dataset_meta = dict(classes=classes)
    coco.process({}, found)
    expected = coco.evaluate(size=len(found))
    _, run = agreement(runner, batches, model, score_threshold=.5)
    assert len(truth['annotations']) > 10 and 0 < expected['coco/bbox_mAP'] < 1
    assert run() == {key.replace('coco/', 'agreement/'): value for key, value in expected.items()}


def test_images_on_which_the_ann_finds_nothing(runner, batches, spiking):
    model, part = spiking
    blank = [dict(batch, inputs=[torch.full_like(batch['inputs'][0], 128)]) for batch in batches[:1]]
    part.runs_as = 'ann'
    assert not (model.test_step(blank[0])[0].pred_instances.scores >= .3).any()
    # One such image among others changes nothing; nothing but such images leaves nothing to judge by.
    _, run = agreement(runner, blank + batches[1:], model)
    assert run()['agreement/bbox_mAP'] == 1
    _, run = agreement(runner, blank, model)
    assert run()['agreement/bbox_mAP'] == -1
    # What is detected there all the same is wrong.
    part.runs_as = 'snn'
    _, run = agreement(runner, blank + batches[1:], model, score_threshold=.3)
    assert 0 < run()['agreement/bbox_mAP'] < 1


def test_a_spiking_model_that_finds_nothing(runner, batches, spiking):
    model, part = spiking
    metric, _ = agreement(runner, batches, model)
    for batch in batches:
        (sample,) = model.test_step(batch)
        sample.pred_instances = sample.pred_instances[:0]
        metric.process(batch, [sample.to_dict()])
    assert metric.evaluate(size=len(batches))['agreement/bbox_mAP'] == 0


def test_what_the_ann_computes_is_no_cost_of_the_spiking_model(runner, batches, spiking):
    model, _ = spiking

    def cost(*others):
        metric = mmsnn.SpikeMetric()
        metric.watch(model)
        for batch in batches:
            samples = [sample.to_dict() for sample in model.test_step(batch)]
            for each in (metric, *others):
                each.process(batch, samples)
        return metric.evaluate(size=len(batches))

    alone = cost()
    assert alone['spike/other_macs'] > 0
    assert cost(agreement(runner, batches, model)[0]) == alone


def test_two_processes_find_what_one_finds(runner, batches, spiking, tmp_path, digits):  # noqa: F811
    config = config_file(tmp_path, digits, 'none', 4, dict(num_images=2),
                         test_evaluator=dict(_delete_=True, type='mmsnn.AgreementMetric'))
    output = run_tool('test', config, CHECKPOINT, '--launcher', 'pytorch', processes=2)
    _, run = agreement(runner, batches, spiking[0])
    assert re.findall(r'agreement/bbox_mAP: ([\d.]+)', output) == [f"{run()['agreement/bbox_mAP']:.4f}"]
