"""The line at the end of a test of a spiking model says what a reader wants to know."""
import pytest
import torch

pytest.importorskip('mmengine')

from mmsnn.calibration.procedure import LayerReport
from mmsnn.openmmlab.closing import closing_line, keep_command, score_of, twins


def test_closing_line():
    layers = [LayerReport('a', 1., .4, .1), LayerReport('b', 1., .6, .2), LayerReport('c', 1., .8, .6)]
    metrics = {'spike/firing_rate': .1, 'coco/bbox_mAP': .6, 'coco/bbox_mAP_50': .9}
    assert closing_line(metrics, {'coco/bbox_mAP': .8}, layers, 8, 9, (12.4, 60.), 'KEEP') == (
        'mmsnn: coco/bbox_mAP 0.600 (the ANN: 0.800, 75.0% kept); median relative error of a layer 0.200 (0.600 before '
        'calibration); T = 8, 9 levels a step; 12 s of calibration, 60 s of testing. To keep it: KEEP')
    assert closing_line({'accuracy/top1': 90.}, {}, [LayerReport('a', 1.)], 4, 2, (0., 1.), '') == (
        'mmsnn: accuracy/top1 90.00; T = 4, 2 levels a step; 0 s of calibration, 1 s of testing')


def test_score_is_no_cost_and_no_agreement():
    assert score_of({'agreement/bbox_mAP': .9, 'spike/energy_ratio': 1., 'pascal_voc/mAP': .5}) == 'pascal_voc/mAP'
    assert score_of({'agreement/top1': 90.}) is None


def test_score_is_one_number():
    listed = {'single-label/precision_classwise': [1., .5], 'confusion_matrix/result': torch.eye(2)}
    assert score_of(listed) is None and score_of(listed | {'single-label/recall': .5}) == 'single-label/recall'
    assert closing_line(listed, {}, [], 4, 9, (0., 1.), '').startswith('mmsnn: T = 4')


def test_what_the_ann_predicts_replaces_no_file_of_the_tests(tmp_path):
    metrics = pytest.importorskip('mmdet.evaluation')
    written = [metrics.CocoMetric(outfile_prefix=str(tmp_path / 'test')), metrics.CocoMetric(metric='proposal'),
               metrics.CocoMetric(outfile_prefix=str(tmp_path / 'only'), format_only=True),
               metrics.DumpDetResults(str(tmp_path / 'test.pkl'))]
    written[0].results = [1]
    found = twins(written)
    assert [type(metric).__name__ for metric in found] == ['CocoMetric', 'CocoMetric']
    assert found[0].outfile_prefix is None and found[0].results == [] and found[1].metrics == ['proposal']
    assert written[0].outfile_prefix == str(tmp_path / 'test') and written[0].results == [1]


def test_command_takes_the_options_over():
    typed = ['mmsnn', 'c.py', 'a.pth', '--cfg-options', 'model.time_steps=4', 'x=a b', '--work-dir', 'w']
    assert keep_command('c.py', 'a.pth', typed) == (
        "mmsnn calibrate c.py a.pth -o spiking.pth --cfg-options model.time_steps=4 'x=a b'")
    assert keep_command('c.py', 'a.pth', []) == 'mmsnn calibrate c.py a.pth -o spiking.pth'
