"""Tests of tools/make_digits.py."""
import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('sklearn')
cv2 = pytest.importorskip('cv2')
TOOL = Path(__file__).resolve().parent.parent / 'tools' / 'make_digits.py'
COUNTS = dict(train=5, val=2, test=3)


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('make_digits', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*')) if path.is_file()
    }


def test_same_seed_same_bytes(tool, tmp_path):
    for name, seed in dict(a=0, b=0, c=1).items():
        assert tool.make_digits(tmp_path / name, **COUNTS, seed=seed)
    a, b, c = (hashes(tmp_path / name) for name in 'abc')
    assert a == b
    assert len(a) == sum(COUNTS.values()) + 4  # three json files and done.json
    assert a.keys() == c.keys() and not any(a[key] == c[key] for key in a)


def test_coco_files(tool, tmp_path):
    tool.make_digits(tmp_path / 'out', **COUNTS)
    for split, count in COUNTS.items():
        coco = json.loads((tmp_path / 'out' / f'{split}.json').read_text())
        assert [category['name'] for category in coco['categories']] == list('0123456789')
        assert [image['id'] for image in coco['images']] == list(range(count))
        sizes = {}
        for image in coco['images']:
            pixels = cv2.imread(str(tmp_path / 'out' / split / image['file_name']))
            assert pixels.shape[:2] == (image['height'], image['width'])
            assert all(160 <= side <= 256 for side in pixels.shape[:2])
            sizes[image['id']] = image['width'], image['height']
        ids = [annotation['id'] for annotation in coco['annotations']]
        assert len(ids) == len(set(ids)) >= 3 * count * 0.9
        for annotation in coco['annotations']:
            x, y, w, h = annotation['bbox']
            width, height = sizes[annotation['image_id']]
            assert x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= width and y + h <= height
            assert annotation['area'] == w * h


def test_boxes_are_tight(tool, monkeypatch):
    """On a flat background every pixel that differs is ink: none lies outside the boxes, each box side touches some."""
    monkeypatch.setattr(tool, 'draw_background', lambda h, w, rng: np.full((h, w, 3), 100, np.float32))
    digits, boxes = tool.load_digits(), 0
    for seed in range(10):
        image, objects = tool.draw_scene(digits.images / 16, digits.target, np.random.default_rng(seed))
        ink = (image != 100).any(2)
        inside = np.zeros_like(ink)
        for label, (x, y, w, h) in objects:
            assert 0 <= label <= 9
            patch = ink[y:y + h, x:x + w]
            assert patch[0].any() and patch[-1].any() and patch[:, 0].any() and patch[:, -1].any()
            inside[y:y + h, x:x + w] = True
            boxes += 1
        assert not (ink & ~inside).any()
    assert boxes >= 30


def test_splits_share_no_digit_sample(tool, monkeypatch, tmp_path):
    used = {}
    monkeypatch.setattr(tool, 'make_split', lambda folder, name, count, indices, seed: used.update({name: indices}))
    tool.make_digits(tmp_path / 'out')
    assert list(used) == ['train', 'val', 'test']
    together = np.concatenate(list(used.values()))
    assert sorted(together) == list(range(1797))


def test_rerun_does_nothing(tool, tmp_path):
    out = tmp_path / 'out'
    assert tool.make_digits(out, **COUNTS)
    marker = out / 'train' / 'untouched'
    marker.touch()
    assert not tool.make_digits(out, **COUNTS)
    assert marker.exists()
    assert tool.make_digits(out, **COUNTS | dict(val=1))  # other parameters: made anew
    assert not marker.exists() and len(list((out / 'val').iterdir())) == 1


def test_killed_run_leaves_nothing(tool, monkeypatch, tmp_path):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool.cv2, 'imwrite', fail)
    with pytest.raises(KeyboardInterrupt):
        tool.make_digits(tmp_path / 'out', **COUNTS)
    assert not list(tmp_path.iterdir())


def test_foreign_folder_is_left_alone(tool, tmp_path):
    (tmp_path / 'thesis.txt').write_text('precious')
    with pytest.raises(FileExistsError, match='not made by this tool'):
        tool.make_digits(tmp_path, **COUNTS)
    assert (tmp_path / 'thesis.txt').read_text() == 'precious'
