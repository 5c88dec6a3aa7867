"""Agreement of a spiking model with its own ANN, without annotations."""
import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.structures import DataSample

import mmsnn
from mmsnn.openmmlab.agreement import ann_predictions

from networks import randomise_norms


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def classifier(time_steps):
    torch.manual_seed(0)
    model = MODELS.build(Config(dict(model=dict(
        type='mmsnn.SpikingClassifier', time_steps=time_steps, classifier=dict(
            type='ImageClassifier', backbone=dict(type='mmsnn.CifarResNet', depth=8, base_channels=4),
            neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', num_classes=10, in_channels=16),
            data_preprocessor=dict(mean=[0.] * 3, std=[1.] * 3, num_classes=10))))).model)
    randomise_norms(model.ann)
    model.convert()
    return model.eval()


def batch(count=16):
    return dict(inputs=list(torch.randn(count, 3, 16, 16)), data_samples=[DataSample() for _ in range(count)])


def top1(model, data):
    metric = mmsnn.AgreementMetric()
    metric.watch(model)
    metric.process(data, [sample.to_dict() for sample in model.test_step(data)])
    return metric.evaluate(size=len(data['inputs']))['agreement/top1']


@pytest.mark.parametrize('pipeline', ['none', 'advanced'])
def test_top1_agreement_is_counted_against_the_ann_that_was_loaded(pipeline):
    model, data = classifier(4), batch()
    images = torch.stack(data['inputs'])
    model.calibrate([images], pipeline, progress=False, iterations=5, learning_rate=.5)
    with torch.no_grad():
        expected = 100. * (model(images).argmax(1) == model.ann(images).argmax(1)).double().mean()
    assert top1(model, data) == pytest.approx(float(expected)) and 0 < expected
    assert model.runs_as == 'snn'


def test_agreement_grows_with_time_steps():
    data, found = batch(), []
    for time_steps in (1, 256):
        model = classifier(time_steps)
        model.calibrate([torch.stack(data['inputs'])], 'none', progress=False)
        found.append(top1(model, data))
    assert found[0] < found[1] and found[1] > 90


def test_calibrated_weights_are_not_taken_for_the_ann():
    model, data = classifier(4), batch(4)
    images = torch.stack(data['inputs'])
    for pipeline in ('signed', 'advanced'):
        model.convert()
        model.calibrate([images], pipeline, progress=False, iterations=5)
        again = classifier(4)
        again.load_state_dict(model.state_dict())
        if pipeline == 'signed':
            labels = [sample.pred_label.item() for sample in ann_predictions(again, data)]
            assert labels == model.ann(images).argmax(1).tolist()
    with pytest.raises(RuntimeError, match='not those of the ANN'):
        ann_predictions(again, data)
    assert again.runs_as == 'snn'


def test_wrong_use_is_refused():
    with pytest.raises(RuntimeError, match='watches no model'):
        mmsnn.AgreementMetric().process({}, [])
    metric, model, data = mmsnn.AgreementMetric(), classifier(4), batch(2)
    metric.watch(model)
    model.test_step = lambda data: [DataSample(pred_sem_seg=torch.zeros(2, 2))]
    with pytest.raises(ValueError, match='compares classes, or boxes .* predicts pred_sem_seg: leave it out'):
        metric.process(data, [])
    with pytest.raises(ValueError, match='from 0 to 1'):
        mmsnn.AgreementMetric(score_threshold=30)
