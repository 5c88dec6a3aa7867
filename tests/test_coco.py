"""The COCO configs build, convert, calibrate on real images and evaluate (with random weights: no download)."""
import json
from pathlib import Path

import pytest

pytest.importorskip('mmdet')

from mmengine.config import Config
from mmengine.runner import Runner

from mmsnn import CalibrationHook
from mmsnn.openmmlab.wrapper import spiking_parts

ROOT = Path(__file__).parent.parent
COCO = ROOT.parent / 'shared' / 'data' / 'coco'
CONFIGS = sorted(path for net in ('retinanet', 'faster-rcnn') for path in (ROOT / 'configs').glob(
    f'*/{net}_r50_fpn_1x_snn-*_coco.py'))  # test_detector_zoo.py has the others
WHOLE = [path for path in CONFIGS if '-whole-' in path.name]


def test_there_is_a_config_for_each_detector_and_pipeline():
    assert len(CONFIGS) == 10 and len(WHOLE) == 2
    for path in CONFIGS:
        cfg = Config.fromfile(path)
        assert cfg.custom_hooks[0].pipeline in path.name
        backbone = cfg.model.detector.backbone if path in WHOLE else cfg.model.backbone.backbone
        assert backbone.depth == 50 and cfg.load_from.endswith('.pth')


@pytest.mark.skipif(not COCO.is_dir(), reason=f'no COCO images at {COCO}')
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_two_real_images_from_calibration_to_map(path, tmp_path):
    cfg = Config.fromfile(path)
    cfg.merge_from_dict({
        'work_dir': str(tmp_path), 'load_from': None, 'log_level': 'WARNING', 'custom_hooks.0.num_images': 2,
        'custom_hooks.0.iterations': 1, 'test_evaluator.ann_file': '',
        'model.time_steps' if path in WHOLE else 'model.backbone.time_steps': 2,
    })
    detector = cfg.model.detector if path in WHOLE else cfg.model
    if path in WHOLE:
        cfg.custom_hooks[0].threshold = 'max'  # the search for the least error takes minutes at these widths
    small = dict(type='Resize', scale=(224, 128), keep_ratio=True)
    for split, year, loader in (('train', 'train2017', cfg.train_dataloader), ('val', 'val2017', cfg.test_dataloader)):
        coco = json.loads((COCO / f'instances_{year}.json').read_text())
        coco['images'] = coco['images'][:2]
        kept = {image['id'] for image in coco['images']}
        coco['annotations'] = [a for a in coco['annotations'] if a['image_id'] in kept]
        (tmp_path / f'{split}.json').write_text(json.dumps(coco))
        loader.dataset.update(data_root='', ann_file=str(tmp_path / f'{split}.json'),
                              data_prefix=dict(img=str(COCO / year)))
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.pipeline = [small if t['type'] == 'Resize' else t for t in loader.dataset.pipeline]
    # Random weights give no confident detection: keep some, so that there is something to evaluate.
    detector.test_cfg.get('rcnn', detector.test_cfg).score_thr = 0.
    cfg.test_evaluator.ann_file = str(tmp_path / 'val.json')
    runner = Runner.from_cfg(cfg)
    metrics = runner.test()
    parts = spiking_parts(runner.model)
    assert all(part.snn.settings['pipeline'] in path.name for part in parts.values())
    # Behind the backbone: 8 ReLUs of RetinaNet's towers on each of 5 levels; one of the RPN on each, and in the RoI
    # head what sends its input and two layers. Identities send the pyramid's sums (3; 4) to its output convolutions,
    # and each of its 5 levels to the head.
    expected = ([49 + 8 * 5 + 3 + 5] if 'retinanet' in path.name else [49 + 5 + 4 + 5, 3]) if path in WHOLE else [49]
    assert [len(part.snn.neurons) for part in parts.values()] == expected
    assert 'coco/bbox_mAP' in metrics
    assert any(isinstance(hook, CalibrationHook) for hook in runner.hooks)
